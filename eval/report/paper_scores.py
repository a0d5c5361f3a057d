"""Scores published by others, in percent, to compare ours with; none of them was measured with this package.

From UniME's paper (arXiv 2504.17432 v4), table 1 for MMEB and table 2 for retrieval and SugarCrepe, and from the paper
of UniME-V2 (arXiv 2510.13515), whose models are based on Qwen2-VL and LLaVA-OneVision.
Rows of DCI are those of LoTLIP's README. Notes:

- MMEB: The column "Overall" is not copied. In all rows of table 1 but LLaVA-OneVision's it is the mean of the four
  meta-tasks. The mean of 36 subsets, our `overall`, follows from the meta-tasks up to 0.1:
  (10 c + 10 v + 12 r + 4 g) / 36. For VLM2Vec on LLaVA-1.6 it gives 60.06; the subsets in table 9 give 60.03.
- Table 2 prints CLIP ViT-L and OpenCLIP ViT-bigG under each other's name: 79.5 (replace) and 74.9 (add) are the means
  of SugarCrepe's own scores for OpenAI's ViT-L-14, 86.5 and 88.4 those for bigG (swap is close, not equal). The names
  are corrected here.
- Text to image comes first, as in table 2: 67.3 and 37.0 are CLIP's image retrieval in E5-V's paper. UniME-V2's paper
  labels these columns in the opposite order.
- According to UniME's authors, all their scores, VLM2Vec's included, use 336 x 336 pixels. The papers of VLM2Vec and
  E5-V print higher scores (Flickr30K: 80.3 and 94.6; 79.5 and 88.2).
- "Stage 1 only" was trained on texts alone; E5-V and those rows are zero-shot, as are CLIP, OpenCLIP and EVA-CLIP.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..benchmarks.mmeb import SETS


Results = Mapping[str, Any]
Percents = tuple[float, ...]

UNIME, UNIME_V2 = "arXiv 2504.17432", "arXiv 2510.13515"
CHART_MODELS = ("CLIP ViT-L", "VLM2Vec (LLaVA-1.6)", "UniME (LLaVA-1.6)")


@dataclass(frozen=True)
class Axis:
    """A published score: its title, and a function that reads ours (a fraction of 1) from `tasks.evaluate`."""

    title: str
    ours: Callable[[Results], float]


@dataclass(frozen=True)
class Protocol:
    """What scores depend on besides the model.

    Args:
        image_size (`str`): Size at which images are read; `OWN` is that of the model.
        prompts (`str`): Prompts of images and texts without an instruction: names of `eval/prompts.py`, `MMEB` where
            every query has an instruction and texts alone are read as they are, `OWN` for those of the model.
    """

    image_size: str
    prompts: str


OWN, MMEB = "own", "MMEB"
_TWO_TOWERS = ("CLIP", "OpenCLIP", "EVA-CLIP")


def measured_protocol(run: Mapping[str, Any], benchmark: str) -> Protocol:
    """Return the protocol of a run, as `run_metadata.protocol` records it; of earlier versions, the model's own."""
    recorded = run.get("protocol", {})
    size, prompts = recorded.get("image_size"), recorded.get("prompts")
    if isinstance(size, dict):
        size = size.get("square", ", ".join(f"{name} {value}" for name, value in size.items()))
    if prompts is not None and benchmark.startswith("mmeb"):
        prompts = MMEB
    reranked = " (reranked)" if recorded.get("reranker") else ""
    prompts = f"{prompts or OWN}{reranked}"
    return Protocol(OWN if size is None else f"{size} px" if isinstance(size, int) else size, prompts)


@dataclass(frozen=True)
class Published:
    """The published scores of a benchmark.

    Args:
        axes (`tuple[Axis, ...]`): Meaning of the scores; the last ones may be means over the others.
        drawn (`int`): Number of leading axes to draw in a chart.
        sources (`Mapping[str, Mapping[str, Percents]]`): Paper and table -> model -> one score per axis in percent.
        sizes (`Mapping[str, tuple[int, ...]]`): Task -> its number of queries and of candidates, or of queries alone
            where candidates differ per query, or of rows if it is compositional.
        note (`str`): What to know for a comparison.
        prompts (`str`, *optional*): The prompts of all rows, where the benchmark states them.
        chart_models (`tuple[str, ...]`, *optional*): Models of the first source to draw in a chart.
        other_sizes (`Mapping[str, tuple[int, ...]]`, *optional*): Task -> its size in another published version of
            the files, which is accepted as well.
    """

    axes: tuple[Axis, ...]
    drawn: int
    sources: Mapping[str, Mapping[str, Percents]]
    sizes: Mapping[str, tuple[int, ...]]
    note: str
    prompts: str | None = None
    chart_models: tuple[str, ...] = CHART_MODELS
    other_sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def protocol(self, source: str, model: str) -> Protocol:
        """Return the protocol of a row.

        UniME's authors state 336 pixels for all their scores, those of VLM2Vec and E5-V included (issue 5 of their
        repository); prompts are those of each model's code. The evaluation scripts of UniME-V2 read images at 1344
        pixels and have one prompt for all models. VLM2Vec-V2 reads at most 1280 patches of 28 pixels.
        """
        if model.startswith(_TWO_TOWERS):
            return Protocol(OWN, OWN)
        if source.startswith(UNIME_V2):
            return Protocol("1344 px", self.prompts or "unime-v2")
        if source.startswith(UNIME):
            prompts = "e5-v" if model.startswith("E5-V") else "unime" if model.startswith("UniME") else "vlm2vec"
            return Protocol("336 px", self.prompts or prompts)
        return Protocol("max 1280 x 28^2" if model.startswith("VLM2Vec-V2") else OWN, self.prompts or OWN)

    @property
    def shown(self) -> dict[str, Percents]:
        """Return the rows to draw in a chart, on its axes; all are from the first source."""
        rows = next(iter(self.sources.values()))
        return {model: rows[model][: self.drawn] for model in self.chart_models}

    def evaluated(self, results: Results) -> list[str]:
        """Return the tasks whose evaluated set has the published size."""
        sizes = _sizes(results)
        return [
            name
            for name, size in self.sizes.items()
            if sizes.get(name, ())[: len(size)] in (size, self.other_sizes.get(name, size))
        ]

    def versions(self, results: Results) -> str:
        """Return which of its published sizes each task was evaluated with, if it has two; otherwise ''."""
        sizes = _sizes(results)
        notes = [
            f" {name} was evaluated on {sizes[name][0]:,} queries; rows are published on {self.sizes[name][0]:,} and "
            f"on {other[0]:,}, by the version of the files."
            for name, other in self.other_sizes.items()
            if name in sizes
        ]
        return "".join(notes)

    def partial(self, results: Results) -> str:
        """Return why no published scores are shown if another set was evaluated, otherwise ''."""
        sizes, names = _sizes(results), self.evaluated(results)
        why = "Published scores are not shown: they "
        for name, size in self.sizes.items():
            if name in sizes and name not in names:
                kinds = ("rows",) if name in results["compositional"] else ("queries", "candidates")
                expected, given = (
                    " and ".join(f"{number:,} {kind}" for number, kind in zip(numbers, kinds, strict=False))
                    for numbers in (size, sizes[name][: len(size)])
                )
                return f"{why}are of {expected} in {name}, and {given} were evaluated."
        if len(names) < len(self.sizes):
            return (
                f"{why}cover all {len(self.sizes)} tasks of {results['benchmark']}, and only {len(names)} of them "
                "were evaluated."
            )
        return ""


def _sizes(results: Results) -> dict[str, tuple[int, ...]]:
    """Return the size of each evaluated task, as in [`Published`]."""
    retrieval = {name: (task.get("queries", 0), task.get("candidates", 0)) for name, task in results["tasks"].items()}
    # Results of earlier versions have no number of rows, and count as another set.
    rows = results.get("compositional_rows", {})
    return retrieval | {name: (rows.get(name, 0),) for name in results["compositional"]}


# Classification, questions, retrieval, grounding; means of the 20 IND and of the 16 OOD subsets.
_MMEB = {
    "CLIP ViT-L": (42.8, 9.1, 53.0, 51.8, 37.1, 38.7),
    "OpenCLIP ViT-bigG": (52.3, 14.0, 50.5, 60.3, 38.9, 45.8),
    "EVA-CLIP 8B": (56.0, 10.4, 49.2, 58.9, 38.1, 45.6),
    "E5-V (Phi-3.5-V)": (39.1, 9.6, 38.0, 57.6, 33.1, 31.9),
    "E5-V (LLaVA-1.6)": (39.7, 10.8, 39.4, 60.2, 34.2, 33.4),
    "UniME, stage 1 only (Phi-3.5-V)": (42.5, 18.3, 40.5, 59.9, 36.0, 38.3),
    "UniME, stage 1 only (LLaVA-1.6)": (43.0, 17.7, 42.5, 63.2, 37.6, 38.6),
    "CLIP ViT-L, fine-tuned": (55.2, 19.7, 53.2, 62.2, 47.6, 42.8),
    "VLM2Vec (Phi-3.5-V)": (54.8, 54.9, 62.3, 79.5, 66.5, 52.0),
    "VLM2Vec (LLaVA-1.6)": (56.8, 50.4, 63.3, 82.6, 64.9, 53.9),
    "UniME (Phi-3.5-V)": (54.8, 55.9, 64.5, 81.8, 68.2, 52.7),
    "UniME (LLaVA-1.6)": (60.6, 52.9, 67.9, 85.1, 68.4, 57.9),
    "UniME (LLaVA-OneVision)": (66.8, 66.6, 70.6, 90.9, 74.6, 65.8),
}
_MMEB_V2 = {
    "VLM2Vec (Qwen2-VL-2B)": (59.0, 49.4, 65.4, 73.4, 66.0, 52.6),
    "VLM2Vec (Qwen2-VL-7B)": (62.6, 57.8, 69.9, 81.7, 72.2, 57.8),
    "UniME (Qwen2-VL-2B)": (59.0, 53.4, 64.9, 69.6, 65.5, 54.6),
    "UniME (Qwen2-VL-7B)": (64.7, 59.0, 71.6, 82.7, 72.2, 61.4),
    "UniME-V2 (Qwen2-VL-2B)": (62.1, 56.3, 68.0, 72.7, 67.4, 58.9),
    "UniME-V2 (Qwen2-VL-7B)": (64.0, 60.1, 73.1, 82.8, 72.0, 63.0),
    "UniME-V2 (LLaVA-OneVision)": (65.3, 67.6, 72.9, 90.2, 74.8, 66.7),
}
# R@1 text to image and image to text on Flickr30K, COCO, ShareGPT4V and Urban1K; SugarCrepe's replace, swap and add.
_RETRIEVAL_SETS = ("flickr30k", "coco", "sharegpt4v", "urban1k")
_RETRIEVAL = {
    "CLIP ViT-L": (67.3, 87.2, 37.0, 58.1, 81.8, 84.0, 47.0, 47.0, 79.5, 62.7, 74.9),
    "OpenCLIP ViT-bigG": (79.5, 92.9, 51.3, 67.3, 90.1, 93.6, 77.8, 80.7, 86.5, 68.9, 88.4),
    "EVA-CLIP 8B": (80.3, 94.5, 52.0, 70.1, 93.1, 91.2, 80.4, 77.8, 85.9, 70.3, 86.7),
    "E5-V (Phi-3.5-V)": (72.2, 79.6, 44.7, 53.4, 86.0, 88.5, 83.8, 83.6, 88.2, 66.6, 75.3),
    "E5-V (LLaVA-1.6)": (77.3, 85.7, 49.1, 57.6, 85.1, 82.1, 88.9, 83.2, 86.3, 68.7, 66.9),
    "UniME, stage 1 only (Phi-3.5-V)": (72.0, 80.6, 44.9, 57.2, 86.8, 92.3, 85.1, 86.9, 90.2, 67.6, 91.2),
    "UniME, stage 1 only (LLaVA-1.6)": (77.2, 84.6, 51.0, 56.4, 89.8, 86.9, 91.3, 82.4, 89.5, 64.8, 94.2),
    "VLM2Vec (Phi-3.5-V)": (68.7, 83.0, 43.7, 59.8, 90.1, 92.0, 87.9, 86.8, 86.2, 66.7, 84.2),
    "VLM2Vec (LLaVA-1.6)": (76.0, 90.6, 46.8, 66.6, 85.8, 90.7, 84.7, 90.8, 85.8, 66.3, 86.5),
    "UniME (Phi-3.5-V)": (77.0, 88.2, 49.8, 66.8, 92.1, 96.4, 92.7, 95.1, 90.1, 70.9, 93.3),
    "UniME (LLaVA-1.6)": (81.9, 93.4, 53.7, 70.1, 93.9, 97.2, 95.2, 95.9, 89.0, 71.5, 94.4),
    "UniME (LLaVA-OneVision)": (83.3, 94.4, 54.8, 74.0, 93.9, 89.3, 94.3, 95.5, 80.5, 65.5, 82.2),
}
_RETRIEVAL_V2 = {
    "VLM2Vec (Qwen2-VL-2B)": (69.3, 89.6, 40.0, 62.5, 78.1, 88.2, 78.7, 83.9, 67.2, 46.5, 66.4),
    "VLM2Vec (Qwen2-VL-7B)": (80.0, 94.2, 49.2, 68.5, 78.5, 90.4, 94.0, 94.2, 70.0, 51.7, 72.2),
    "UniME (Qwen2-VL-2B)": (74.9, 90.6, 44.0, 63.5, 83.6, 88.6, 83.3, 83.2, 65.6, 45.2, 65.7),
    "UniME (Qwen2-VL-7B)": (80.8, 92.7, 50.9, 69.8, 86.5, 93.8, 95.3, 94.0, 68.8, 53.0, 69.8),
    "UniME-V2 (Qwen2-VL-2B)": (79.8, 89.9, 53.7, 65.1, 91.6, 94.2, 95.6, 92.2, 70.9, 51.2, 70.2),
    "UniME-V2 (Qwen2-VL-7B)": (84.6, 93.5, 57.3, 70.3, 94.3, 95.2, 97.2, 96.3, 77.8, 62.2, 79.0),
    "UniME-V2 (LLaVA-OneVision)": (85.5, 93.7, 60.9, 74.1, 95.1, 94.1, 96.3, 96.7, 88.6, 73.7, 90.5),
}

# R@1 text to image and image to text on DCI, from LoTLIP's README (commit 301b906), which prints image to text first;
# until November 2024 it printed the heads of the two columns the other way round.
_DCI = {
    "CLIP ViT-B/32": (40.32, 43.06),
    "CLIP ViT-B/16": (43.01, 45.45),
    "Long-CLIP ViT-B/16": (57.28, 51.68),
    "LoTLIP ViT-B/32": (56.36, 59.90),
    "LoTLIP ViT-B/16": (62.63, 64.11),
}


def _with_mean_of_subsets(rows: Mapping[str, Percents]) -> dict[str, Percents]:
    """Append the mean of MMEB's 36 subsets, given the means of its 10, 10, 12 and 4."""
    return {
        model: (*row, round((10 * row[0] + 10 * row[1] + 12 * row[2] + 4 * row[3]) / 36, 1))
        for model, row in rows.items()
    }


def _retrieval_columns(first: int, last: int) -> dict[str, dict[str, Percents]]:
    """Return a range of columns of the retrieval tables of both sources."""
    sources = {f"{UNIME}, table 2": _RETRIEVAL, UNIME_V2: _RETRIEVAL_V2}
    return {source: {model: row[first:last] for model, row in rows.items()} for source, rows in sources.items()}


def _meta_task(title: str, name: str) -> Axis:
    return Axis(title, lambda results: results["meta_tasks"][name])


def _distribution(name: str) -> Axis:
    return Axis(f"Mean of {name}", lambda results: results["distributions"][name])


def _task(title: str, name: str) -> Axis:
    return Axis(title, lambda results: results["tasks"][name]["R@1"])


def _group(title: str, name: str) -> Axis:
    return Axis(title, lambda results: results["compositional_groups"][name])


# Images and captions of Flickr30K, COCO, ShareGPT4V and Urban1K, and rows of SugarCrepe's files.
_IMAGES_AND_CAPTIONS = ((1000, 5000), (5000, 25_000), (1000, 1000), (1000, 1000))
_SUGARCREPE_ROWS = {
    "replace_obj": 1652,
    "replace_att": 788,
    "replace_rel": 1406,
    "swap_obj": 245,
    "swap_att": 666,
    "add_obj": 2062,
    "add_att": 692,
}
_CLIPS = f"{UNIME} prints CLIP ViT-L and OpenCLIP ViT-bigG under each other's name; the names are corrected here."
_PIXELS = f"According to its authors, all scores in {UNIME}, VLM2Vec's included, use 336 × 336 pixels."

PUBLISHED = {
    "mmeb": Published(
        (
            _meta_task("Classification", "classification"),
            _meta_task("Questions", "vqa"),
            _meta_task("Retrieval", "retrieval"),
            _meta_task("Grounding", "grounding"),
            _distribution("IND"),
            _distribution("OOD"),
            Axis("Mean of 36", lambda results: results["overall"]),
        ),
        4,
        {f"{UNIME}, table 1": _with_mean_of_subsets(_MMEB), UNIME_V2: _with_mean_of_subsets(_MMEB_V2)},
        dict.fromkeys(SETS, (1000,)),
        "The mean of 36 is computed from the published meta-tasks (10, 10, 12 and 4 subsets), up to 0.1; "
        f"the “Overall” of {UNIME} is the mean of the four, except for LLaVA-OneVision. {_PIXELS}",
        MMEB,
    ),
    **{
        name: Published(
            (_task("Text → image, R@1", f"{name}_t2i"), _task("Image → text, R@1", f"{name}_i2t")),
            2,
            _retrieval_columns(2 * index, 2 * index + 2),
            {f"{name}_t2i": (captions, images), f"{name}_i2t": (images, captions)},
            f"{_CLIPS} {_PIXELS}",
        )
        for index, (name, (images, captions)) in enumerate(zip(_RETRIEVAL_SETS, _IMAGES_AND_CAPTIONS, strict=True))
    },
    "sugarcrepe": Published(
        (_group("Replace", "replace"), _group("Swap", "swap"), _group("Add", "add")),
        3,
        _retrieval_columns(8, 11),
        {name: (rows,) for name, rows in _SUGARCREPE_ROWS.items()},
        f"{_CLIPS} {_PIXELS}",
    ),
    "dci": Published(
        (_task("Text → image, R@1", "dci_t2i"), _task("Image → text, R@1", "dci_i2t")),
        2,
        {"README of wuw2019/LoTLIP": _DCI},
        {"dci_t2i": (7805, 7805), "dci_i2t": (7805, 7805)},
        "CLIP reads the first 77 tokens of a caption, Long-CLIP 248.",
        chart_models=("CLIP ViT-B/16", "Long-CLIP ViT-B/16", "LoTLIP ViT-B/16"),
    ),
}
