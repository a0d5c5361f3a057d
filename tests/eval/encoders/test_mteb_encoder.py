"""mteb on a UniME checkpoint: small tasks of the OpenMoji world, whose scores are those of our own evaluation."""

import re
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score


pytest.importorskip("mteb")

import mteb  # noqa: E402
from datasets import Dataset, DatasetDict  # noqa: E402
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS  # noqa: E402
from mteb.abstasks.image.image_text_pair_classification import AbsTaskImageTextPairClassification  # noqa: E402
from mteb.abstasks.pair_classification import AbsTaskPairClassification  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.mocks import mock_tasks  # noqa: E402
from mteb.models import SentenceTransformerEncoderWrapper  # noqa: E402
from mteb.types import PromptType  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402

from unime import UniMEModel  # noqa: E402
from unime.eval.encoders import mteb_encoder  # noqa: E402
from unime.eval.encoders.mteb_encoder import UniMEEncoder, model_meta  # noqa: E402
from unime.eval.tasks import CompositionalTask, RetrievalTask, SimilarityTask, evaluate  # noqa: E402
from unime.openmoji.benchmark import tasks as openmoji  # noqa: E402


ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = ROOT / "checkpoints" / "unime-tiny"
NAME = "unime/unime-tiny"
CODES = {"t": "text", "i": "image"}
OTHER_KINDS = ["MockBitextMiningTask", "MockImageClusteringFastTask", "MockInstructionReranking"]
OTHER_KINDS += ["MockMultiChoiceTask", "MockRetrievalDialogTask", "MockZeroShotClassificationTask"]


def described(name: str, kind: str, category: str, score: str, prompt: str | dict | None = None) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="Of the OpenMoji world.",
        dataset={"path": "openmoji", "revision": "1"},
        type=kind,
        category=category,
        modalities=sorted({CODES[code] for code in category if code in CODES}),
        eval_langs=["eng-Latn"],
        main_score=score,
        prompt=prompt,
    )


def given(kind: type[AbsTask], metadata: TaskMetadata, data: dict, **attributes: object) -> AbsTask:
    """Make a task whose data is given in place of downloaded."""

    def load_data(self: AbsTask, **kwargs: object) -> None:
        self.dataset, self.data_loaded = data, True

    return type(metadata.name, (kind,), {"metadata": metadata, "load_data": load_data, **attributes})()


def search(task: RetrievalTask, category: str, prompt: dict[str, str] | None = None) -> AbsTask:
    """Our search as mteb's: the same items in its columns, their instructions as the task's prompt."""

    def rows(items: list[dict], sign: str) -> Dataset:
        columns = {key: [item[key] for item in items] for key in ("text", "image") if key in items[0]}
        return Dataset.from_dict({"id": [f"{sign}{index}" for index in range(len(items))]} | columns)

    right = {f"q{query}": {f"d{index}": 1 for index in found} for query, found in enumerate(task.positives)}
    split = {
        "queries": rows(list(task.queries), "q"),
        "corpus": rows(list(task.candidates), "d"),
        "relevant_docs": right,
        "top_ranked": None,
    }
    metadata = described(f"OpenMoji_{task.name}", "Any2AnyRetrieval", category, "hit_rate_at_1", prompt)
    return given(AbsTaskRetrieval, metadata, {"default": {"test": split}})


def similarities(pairs: SimilarityTask) -> AbsTask:
    data = {"sentence1": pairs.first, "sentence2": pairs.second, "score": pairs.similarities}
    metadata = described("OpenMojiSTS", "STS", "t2t", "cosine_spearman")
    return given(AbsTaskSTS, metadata, DatasetDict(test=Dataset.from_dict(data)), min_score=0, max_score=1)


def score(model: object, task: AbsTask) -> float:
    results = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
    return results.task_results[0].get_score()


def plain(items: list[dict]) -> list[dict]:
    return [{key: value for key, value in item.items() if key != "instruction"} for item in items]


@pytest.fixture(scope="module")
def encoder() -> UniMEEncoder:
    return model_meta(str(CHECKPOINT), NAME).load_model("cpu", dtype="float32")


@pytest.fixture(scope="module")
def model() -> UniMEModel:
    return UniMEModel.from_pretrained(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def world() -> dict[str, RetrievalTask | CompositionalTask]:
    return {task.name: task for several in openmoji("test", 40) for task in several}


@pytest.fixture(scope="module")
def pairs(world: dict) -> SimilarityTask:
    """Captions beside edited ones and beside others', as similar as the words that they share."""
    captions, edited = (
        [item["text"] for item in items] for items in (world["replace_att"].captions, world["replace_att"].negatives)
    )
    first, second = captions * 2, edited + captions[1:] + captions[:1]
    words = [(set(one.split()), set(other.split())) for one, other in zip(first, second, strict=True)]
    return SimilarityTask("pairs", first, second, [len(one & other) / len(one | other) for one, other in words])


@pytest.mark.parametrize(("name", "category"), [("name_t2i", "t2i"), ("name_i2t", "i2t"), ("composed", "it2i")])
def test_searches_score_as_ours(
    name: str, category: str, encoder: UniMEEncoder, model: UniMEModel, world: dict
) -> None:
    task = world[name]
    asked = {"query": task.queries[0].get("instruction"), "document": task.candidates[0].get("instruction")}
    found = score(encoder, search(task, category, {side: text for side, text in asked.items() if text}))
    ours = evaluate(model.encode, [task], model="UniME", progress=False)[0]["tasks"][name]["hit@1"]
    assert found == pytest.approx(ours, abs=1e-5) and ours > 0.5


def test_similarities_score_as_ours(encoder: UniMEEncoder, model: UniMEModel, pairs: SimilarityTask) -> None:
    ours = evaluate(model.encode, [pairs], model="UniME", progress=False)[0]["tasks"]["pairs"]["spearman"]
    assert score(encoder, similarities(pairs)) == pytest.approx(ours, abs=1e-4) and 0.3 < ours < 1


def test_pairs_are_classified_by_our_cosines(encoder: UniMEEncoder, model: UniMEModel, pairs: SimilarityTask) -> None:
    most = np.quantile(pairs.similarities, 0.75)
    labels = [int(similarity > most) for similarity in pairs.similarities]
    data = Dataset.from_dict({"sentence1": pairs.first, "sentence2": pairs.second, "labels": labels})
    metadata = described("OpenMojiPairs", "PairClassification", "t2t", "cosine_ap")
    cosines = (model.encode(pairs.first) * model.encode(pairs.second)).sum(axis=1)
    found = score(encoder, given(AbsTaskPairClassification, metadata, DatasetDict(test=data)))
    ours = average_precision_score(labels, cosines)
    assert found == pytest.approx(ours, abs=1e-4) and 0.5 < ours < 1


def test_compositional_probes_score_as_ours(encoder: UniMEEncoder, model: UniMEModel, world: dict) -> None:
    probe = world["replace_rel"]
    images, captions, negatives = (plain(items) for items in (probe.images, probe.captions, probe.negatives))
    data = {"image": [item["image"] for item in images], "caption": [item["text"] for item in captions]}
    data["negative"] = [item["text"] for item in negatives]
    task = given(
        AbsTaskImageTextPairClassification,
        described("OpenMojiReplace", "Compositionality", "i2t", "text_acc"),
        DatasetDict(test=Dataset.from_dict(data)),
        images_column_names=["image"],
        texts_column_names=["caption", "negative"],
    )
    asked = CompositionalTask(probe.name, images, captions, negatives)
    ours = evaluate(model.encode, [], [asked], model="UniME", progress=False)[0]["compositional"][probe.name]
    assert score(encoder, task) == pytest.approx(ours) and 0.5 < ours < 1


@pytest.mark.filterwarnings("ignore:Precision is ill-defined")
def test_images_are_classified_on_our_vectors(encoder: UniMEEncoder, model: UniMEModel, world: dict) -> None:
    images, labels = list(world["category"].queries), [right for (right,) in world["category"].positives]
    split = {"train": slice(0, None, 2), "test": slice(1, None, 2)}
    data = {
        name: Dataset.from_dict({"image": [item["image"] for item in images[part]], "label": labels[part]})
        for name, part in split.items()
    }
    task = given(
        AbsTaskClassification,
        described("OpenMojiCategory", "ImageClassification", "i2c", "accuracy", images[0]["instruction"]),
        DatasetDict(data),
        input_column_name="image",
        samples_per_label=len(images),
        n_experiments=1,
    )
    vectors = model.encode(images)
    probe = LogisticRegression(max_iter=100).fit(vectors[split["train"]], labels[split["train"]])
    ours = probe.score(vectors[split["test"]], labels[split["test"]])
    assert score(encoder, task) == pytest.approx(ours) and ours > 0.4


@pytest.mark.filterwarnings("ignore")  # of mteb's own code
@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_of_tasks_run_too(name: str, encoder: UniMEEncoder) -> None:
    assert 0 <= score(encoder, vars(mock_tasks)[name]()) <= 1


@pytest.mark.filterwarnings("ignore")  # mteb lists the checkpoint's named prompts that are no tasks of its own
def test_mteb_runs_the_folder_without_code_of_ours(encoder: UniMEEncoder, world: dict, pairs: SimilarityTask) -> None:
    as_it_is = SentenceTransformer(str(CHECKPOINT), device="cpu", model_kwargs={"dtype": "float32"})
    assert score(as_it_is, similarities(pairs)) == pytest.approx(score(encoder, similarities(pairs)), abs=1e-4)
    # Of a folder mteb assumes a text model; of a Hub id it reads from the checkpoint's files what we tell it here.
    wrapped = SentenceTransformerEncoderWrapper(as_it_is)
    wrapped.mteb_model_meta = model_meta(str(CHECKPOINT), NAME)
    task = search(world["name_t2i"], "t2i")
    assert score(wrapped, task) == pytest.approx(score(encoder, task), abs=1e-5)


def test_a_row_of_text_and_image_is_one_item_with_the_instruction(
    encoder: UniMEEncoder, model: UniMEModel, world: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mteb_encoder, "WINDOW", 2)  # three rows are two windows
    items = list(world["composed"].queries[:2]) + [{"text": "in grey", "image": Image.new("L", (40, 30), 90)}]
    items = [item | {"instruction": "Find it:"} for item in items]
    batches = [{key: [item[key] for item in rows] for key in ("text", "image")} for rows in (items[:1], items[1:])]
    metadata = described("OpenMojiComposed", "Any2AnyRetrieval", "it2i", "hit_rate_at_1", {"query": "Find it:"})
    where = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default", "show_progress_bar": False}
    found = encoder.encode(batches, prompt_type=PromptType.query, batch_size=1, **where)
    np.testing.assert_allclose(found, model.encode(items), atol=1e-5)
    as_documents = encoder.encode(batches, prompt_type=PromptType.document, **where)
    np.testing.assert_allclose(as_documents, model.encode(plain(items)), atol=1e-5)
    assert np.abs(found - as_documents).max() > 0.01
    with pytest.raises(ValueError, match="'OpenMojiComposed' gives audio, but UniME embeds texts and images"):
        encoder.encode([{"audio": [0]}], **where)


@pytest.mark.parametrize(
    ("prompts", "prompt", "expected"),  # of a query, of a document, of what has no side
    [
        (None, None, [None, None, None]),
        (None, "Find:", ["Find:", None, "Find:"]),
        (None, {"query": "Find:"}, ["Find:", None, None]),
        (None, {"query": "Find:", "document": "Show:"}, ["Find:", "Show:", None]),
        ({"document": "Show:"}, "Find:", ["Find:", "Show:", "Find:"]),
        ({"Any2AnyRetrieval-query": "Seek:", "query": "Ask:"}, "Find:", ["Seek:", None, "Find:"]),
        ({"query": ""}, "Find:", ["", None, "Find:"]),
    ],
)
def test_the_instruction_is_ours_then_the_tasks_then_none(
    encoder: UniMEEncoder, monkeypatch: pytest.MonkeyPatch, prompts: dict | None, prompt: object, expected: list
) -> None:
    monkeypatch.setattr(encoder, "model_prompts", prompts)
    metadata = described("OpenMojiPrompts", "Any2AnyRetrieval", "t2i", "hit_rate_at_1", prompt)
    assert [encoder.instruction(metadata, side) for side in (PromptType.query, PromptType.document, None)] == expected


def test_prompts_of_nothing_that_mteb_knows_are_refused() -> None:
    with pytest.raises(KeyError, match="Task name image is not valid"), pytest.warns(UserWarning):
        UniMEEncoder(str(CHECKPOINT), prompts={"image": "Show:"})


def test_dimensions_are_cut_where_the_meta_allows_it(model: UniMEModel) -> None:
    meta = model_meta(str(CHECKPOINT), NAME, embed_dim=[64, 192])
    short = meta.load_model("cpu", embed_dim=64, dtype="float32")
    metadata = described("OpenMojiShort", "STS", "t2t", "cosine_spearman")
    found = short.encode([{"text": ["a cat"]}], task_metadata=metadata, hf_split="test", hf_subset="default")
    np.testing.assert_allclose(found, model.encode(["a cat"], truncate_dim=64), atol=1e-5)


def test_the_documented_command_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture, world: dict, pairs: SimilarityTask
) -> None:
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mteb, "get_tasks", lambda names: [similarities(pairs), search(world["name_t2i"], "t2i")])
    command = dedent("\n".join(re.findall(r"^ {4}.*|^$", mteb_encoder.__doc__, re.M)))
    assert command.strip() in (ROOT / "eval" / "README.md").read_text()
    exec(command, {})
    printed = capsys.readouterr().out
    assert "OpenMojiSTS" in printed and "loader=UniMEEncoder" in printed
    scores = sorted(path.name for path in tmp_path.glob("runs/mteb/results/unime__unime-tiny/*/*.json"))
    assert scores == ["OpenMojiSTS.json", "OpenMoji_name_t2i.json", "model_meta.json"]
