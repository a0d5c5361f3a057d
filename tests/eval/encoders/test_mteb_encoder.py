"""UniME in mteb: scores on small OpenMoji tasks equal our own evaluation."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

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

from unime import UniMEModel, load_model, save_checkpoint  # noqa: E402
from unime.eval.encoders import mteb_encoder  # noqa: E402
from unime.eval.encoders.mteb_encoder import UniMEEncoder, model_meta  # noqa: E402
from unime.eval.tasks import CompositionalTask, RetrievalTask, SimilarityTask, evaluate  # noqa: E402
from unime.openmoji.benchmark import tasks as openmoji  # noqa: E402


ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = ROOT / "checkpoints" / "unime-tiny"
NAME = "unime/unime-tiny"
CODES = {"t": "text", "i": "image", "v": "video"}
OTHER_TASKS = ["MockBitextMiningTask", "MockImageClusteringFastTask", "MockInstructionReranking"]
OTHER_TASKS += ["MockMultiChoiceTask", "MockRetrievalDialogTask", "MockZeroShotClassificationTask"]


def task_metadata(
    name: str, task_type: str, category: str, score: str, prompt: str | dict | None = None
) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="OpenMoji.",
        dataset={"path": "openmoji", "revision": "1"},
        type=task_type,
        category=category,
        modalities=sorted({CODES[code] for code in category if code in CODES}),
        eval_langs=["eng-Latn"],
        main_score=score,
        prompt=prompt,
    )


def with_data(task_class: type[AbsTask], metadata: TaskMetadata, data: dict, **attributes: object) -> AbsTask:
    """Make a task from data instead of a download."""

    def load_data(self: AbsTask, **kwargs: object) -> None:
        self.dataset, self.data_loaded = data, True

    return type(metadata.name, (task_class,), {"metadata": metadata, "load_data": load_data, **attributes})()


def retrieval(task: RetrievalTask, category: str, prompt: dict[str, str] | None = None) -> AbsTask:
    """Convert our task to mteb's: the same items in its columns, their instructions as the task's prompt."""

    def rows(items: list[dict], prefix: str) -> Dataset:
        columns = {key: [item[key] for item in items] for key in ("text", "image", "video") if key in items[0]}
        return Dataset.from_dict({"id": [f"{prefix}{index}" for index in range(len(items))]} | columns)

    relevant = {f"q{query}": {f"d{index}": 1 for index in positives} for query, positives in enumerate(task.positives)}
    split = {
        "queries": rows(list(task.queries), "q"),
        "corpus": rows(list(task.candidates), "d"),
        "relevant_docs": relevant,
        "top_ranked": None,
    }
    metadata = task_metadata(f"OpenMoji_{task.name}", "Any2AnyRetrieval", category, "hit_rate_at_1", prompt)
    return with_data(AbsTaskRetrieval, metadata, {"default": {"test": split}})


def similarities(pairs: SimilarityTask) -> AbsTask:
    data = {"sentence1": pairs.first, "sentence2": pairs.second, "score": pairs.similarities}
    metadata = task_metadata("OpenMojiSTS", "STS", "t2t", "cosine_spearman")
    return with_data(AbsTaskSTS, metadata, DatasetDict(test=Dataset.from_dict(data)), min_score=0, max_score=1)


def score(model: object, task: AbsTask) -> float:
    results = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
    return results.task_results[0].get_score()


def without_instructions(items: list[dict]) -> list[dict]:
    return [{key: value for key, value in item.items() if key != "instruction"} for item in items]


@pytest.fixture(scope="module")
def encoder() -> UniMEEncoder:
    return model_meta(str(CHECKPOINT), NAME).load_model("cpu", dtype="float32")


@pytest.fixture(scope="module")
def model() -> UniMEModel:
    return UniMEModel.from_pretrained(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def openmoji_tasks() -> dict[str, RetrievalTask | CompositionalTask]:
    return {task.name: task for tasks in openmoji("test", 40) for task in tasks}


@pytest.fixture(scope="module")
def pairs(openmoji_tasks: dict) -> SimilarityTask:
    """Pair captions with edited and with other captions; the similarity is the share of common words."""
    captions, edited = (
        [item["text"] for item in items]
        for items in (openmoji_tasks["replace_att"].captions, openmoji_tasks["replace_att"].negatives)
    )
    first, second = captions * 2, edited + captions[1:] + captions[:1]
    words = [(set(left.split()), set(right.split())) for left, right in zip(first, second, strict=True)]
    return SimilarityTask("pairs", first, second, [len(left & right) / len(left | right) for left, right in words])


@pytest.mark.parametrize(("name", "category"), [("name_t2i", "t2i"), ("name_i2t", "i2t"), ("composed", "it2i")])
def test_retrieval_scores_equal_ours(
    name: str, category: str, encoder: UniMEEncoder, model: UniMEModel, openmoji_tasks: dict
) -> None:
    task = openmoji_tasks[name]
    prompts = {"query": task.queries[0].get("instruction"), "document": task.candidates[0].get("instruction")}
    theirs = score(encoder, retrieval(task, category, {side: text for side, text in prompts.items() if text}))
    ours = evaluate(model.encode, [task], model="UniME", progress=False)[0]["tasks"][name]["hit@1"]
    assert theirs == pytest.approx(ours, abs=1e-5) and ours > 0.5


class Decoder:
    """What torchcodec gives of a video file: the number of frames, and frames by their indices."""

    def __init__(self, frames: list[Image.Image]):
        self.frames = torch.stack([torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in frames])
        self.metadata = SimpleNamespace(num_frames=len(frames))

    def get_frames_at(self, indices: list[int]) -> SimpleNamespace:
        return SimpleNamespace(data=self.frames[indices])


@pytest.mark.parametrize("name", ["qwen2-vl", "llava"])  # with and without a video processor
def test_a_task_of_videos_has_our_scores(name: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    save_checkpoint(*load_model(str(tiny_model(name))), tmp_path)
    encoder = model_meta(str(tmp_path), f"unime/{name}").load_model("cpu", dtype="float32", num_frames=4)
    described = {"modalities": ["image", "text", "video"]}  # as if torchcodec were installed
    encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update=described)
    noise = np.random.default_rng(0).integers(0, 256, (6, 10, 32, 48, 3), dtype=np.uint8)
    clips = [[Image.fromarray(frame) for frame in frames] for frames in noise]
    candidates = [{"video": frames} for frames in clips]
    queries = [{"text": f"video {number}"} for number in range(3)]
    task = RetrievalTask("videos", "retrieval", queries, candidates, [[number] for number in range(3)])
    key = "video" if name == "qwen2-vl" else "image"
    read = [{key: [frames[index] for index in (0, 3, 6, 9)]} for frames in clips]
    ours, _ = evaluate(encoder.model.encode, [replace(task, candidates=read)], model=name, progress=False)
    assert score(encoder, retrieval(task, "t2v")) == pytest.approx(ours["tasks"]["videos"]["hit@1"])

    metadata = task_metadata("Videos", "Any2AnyRetrieval", "t2v", "hit_rate_at_1")
    arguments = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default", "show_progress_bar": False}
    expected = encoder.model.encode(read)
    for videos in (clips, [Decoder(frames) for frames in clips]):
        embeddings = encoder.encode([{"video": videos}], prompt_type=PromptType.document, **arguments)
        np.testing.assert_allclose(embeddings, expected, atol=1e-6)


def test_similarity_scores_equal_ours(encoder: UniMEEncoder, model: UniMEModel, pairs: SimilarityTask) -> None:
    ours = evaluate(model.encode, [pairs], model="UniME", progress=False)[0]["tasks"]["pairs"]["spearman"]
    assert score(encoder, similarities(pairs)) == pytest.approx(ours, abs=1e-4) and 0.3 < ours < 1


def test_pair_classification_uses_our_cosines(encoder: UniMEEncoder, model: UniMEModel, pairs: SimilarityTask) -> None:
    threshold = np.quantile(pairs.similarities, 0.75)
    labels = [int(similarity > threshold) for similarity in pairs.similarities]
    data = Dataset.from_dict({"sentence1": pairs.first, "sentence2": pairs.second, "labels": labels})
    metadata = task_metadata("OpenMojiPairs", "PairClassification", "t2t", "cosine_ap")
    cosines = (model.encode(pairs.first) * model.encode(pairs.second)).sum(axis=1)
    theirs = score(encoder, with_data(AbsTaskPairClassification, metadata, DatasetDict(test=data)))
    ours = average_precision_score(labels, cosines)
    assert theirs == pytest.approx(ours, abs=1e-4) and 0.5 < ours < 1


def test_compositional_scores_equal_ours(encoder: UniMEEncoder, model: UniMEModel, openmoji_tasks: dict) -> None:
    edited = openmoji_tasks["replace_rel"]
    images, captions, negatives = (
        without_instructions(items) for items in (edited.images, edited.captions, edited.negatives)
    )
    data = {"image": [item["image"] for item in images], "caption": [item["text"] for item in captions]}
    data["negative"] = [item["text"] for item in negatives]
    task = with_data(
        AbsTaskImageTextPairClassification,
        task_metadata("OpenMojiReplace", "Compositionality", "i2t", "text_acc"),
        DatasetDict(test=Dataset.from_dict(data)),
        images_column_names=["image"],
        texts_column_names=["caption", "negative"],
    )
    plain = CompositionalTask(edited.name, images, captions, negatives)
    ours = evaluate(model.encode, [], [plain], model="UniME", progress=False)[0]["compositional"][edited.name]
    assert score(encoder, task) == pytest.approx(ours) and 0.5 < ours < 1


@pytest.mark.filterwarnings("ignore:Precision is ill-defined")
def test_image_classification_uses_our_embeddings(
    encoder: UniMEEncoder, model: UniMEModel, openmoji_tasks: dict
) -> None:
    images, labels = (
        list(openmoji_tasks["category"].queries),
        [label for (label,) in openmoji_tasks["category"].positives],
    )
    split = {"train": slice(0, None, 2), "test": slice(1, None, 2)}
    data = {
        name: Dataset.from_dict({"image": [item["image"] for item in images[part]], "label": labels[part]})
        for name, part in split.items()
    }
    task = with_data(
        AbsTaskClassification,
        task_metadata("OpenMojiCategory", "ImageClassification", "i2c", "accuracy", images[0]["instruction"]),
        DatasetDict(data),
        input_column_name="image",
        samples_per_label=len(images),
        n_experiments=1,
    )
    embeddings = model.encode(images)
    probe = LogisticRegression(max_iter=100).fit(embeddings[split["train"]], labels[split["train"]])
    ours = probe.score(embeddings[split["test"]], labels[split["test"]])
    assert score(encoder, task) == pytest.approx(ours) and ours > 0.4


@pytest.mark.filterwarnings("ignore")  # from mteb's own code
@pytest.mark.parametrize("name", OTHER_TASKS)
def test_other_task_types_run(name: str, encoder: UniMEEncoder) -> None:
    assert 0 <= score(encoder, vars(mock_tasks)[name]()) <= 1


@pytest.mark.filterwarnings("ignore")  # mteb warns about prompts that do not name a task
def test_mteb_runs_the_folder_without_our_code(
    encoder: UniMEEncoder, openmoji_tasks: dict, pairs: SimilarityTask
) -> None:
    sentence_transformer = SentenceTransformer(str(CHECKPOINT), device="cpu", model_kwargs={"dtype": "float32"})
    assert score(sentence_transformer, similarities(pairs)) == pytest.approx(
        score(encoder, similarities(pairs)), abs=1e-4
    )
    # mteb assumes that a folder is a text model; for a Hub id it reads the modalities from the checkpoint.
    wrapped = SentenceTransformerEncoderWrapper(sentence_transformer)
    wrapped.mteb_model_meta = model_meta(str(CHECKPOINT), NAME)
    task = retrieval(openmoji_tasks["name_t2i"], "t2i")
    assert score(wrapped, task) == pytest.approx(score(encoder, task), abs=1e-5)


def test_text_and_image_of_a_row_are_one_item_with_the_instruction(
    encoder: UniMEEncoder, model: UniMEModel, openmoji_tasks: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mteb_encoder, "ENCODE_WINDOW_ITEMS", 2)  # three rows make two windows
    items = list(openmoji_tasks["composed"].queries[:2]) + [{"text": "in grey", "image": Image.new("L", (40, 30), 90)}]
    items = [item | {"instruction": "Find it:"} for item in items]
    batches = [{key: [item[key] for item in rows] for key in ("text", "image")} for rows in (items[:1], items[1:])]
    metadata = task_metadata("OpenMojiComposed", "Any2AnyRetrieval", "it2i", "hit_rate_at_1", {"query": "Find it:"})
    arguments = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default", "show_progress_bar": False}
    as_queries = encoder.encode(batches, prompt_type=PromptType.query, batch_size=1, **arguments)
    np.testing.assert_allclose(as_queries, model.encode(items), atol=1e-5)
    with monkeypatch.context() as bounded:
        bounded.setattr(mteb_encoder, "MAX_WINDOW_PIXELS", 1)  # every image ends a window
        windows = mteb_encoder.item_windows([*batches, {"text": ["a", "b"]}], metadata.name, None)
        assert [len(window) for window in windows] == [1, 1, 1, 2]
    as_documents = encoder.encode(batches, prompt_type=PromptType.document, **arguments)
    np.testing.assert_allclose(as_documents, model.encode(without_instructions(items)), atol=1e-5)
    assert np.abs(as_queries - as_documents).max() > 0.01
    with pytest.raises(ValueError, match="'OpenMojiComposed' has the columns audio, but UniME embeds text, image and"):
        encoder.encode([{"audio": [0]}], **arguments)


@pytest.mark.parametrize(
    ("prompts", "prompt", "expected"),  # for a query, a document, and no side
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
def test_the_instruction_comes_from_prompts_then_from_the_task(
    encoder: UniMEEncoder, monkeypatch: pytest.MonkeyPatch, prompts: dict | None, prompt: object, expected: list
) -> None:
    monkeypatch.setattr(encoder, "model_prompts", prompts)
    metadata = task_metadata("OpenMojiPrompts", "Any2AnyRetrieval", "t2i", "hit_rate_at_1", prompt)
    assert [encoder.instruction(metadata, side) for side in (PromptType.query, PromptType.document, None)] == expected


def test_prompts_with_unknown_keys_are_refused() -> None:
    with pytest.raises(KeyError, match="Task name image is not valid"), pytest.warns(UserWarning):
        UniMEEncoder(str(CHECKPOINT), prompts={"image": "Show:"})


def test_embeddings_are_truncated_if_the_meta_allows_it(model: UniMEModel) -> None:
    meta = model_meta(str(CHECKPOINT), NAME, embed_dim=[64, 192])
    short = meta.load_model("cpu", embed_dim=64, dtype="float32")
    metadata = task_metadata("OpenMojiShort", "STS", "t2t", "cosine_spearman")
    truncated = short.encode([{"text": ["a cat"]}], task_metadata=metadata, hf_split="test", hf_subset="default")
    np.testing.assert_allclose(truncated, model.encode(["a cat"], truncate_dim=64), atol=1e-5)


def test_the_documented_command_runs(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    openmoji_tasks: dict,
    pairs: SimilarityTask,
) -> None:
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        mteb, "get_tasks", lambda names: [similarities(pairs), retrieval(openmoji_tasks["name_t2i"], "t2i")]
    )
    command = dedent("\n".join(re.findall(r"^ {4}.*|^$", mteb_encoder.__doc__, re.M)))
    assert command.strip() in (ROOT / "eval" / "README.md").read_text()
    exec(command, {})
    printed = capsys.readouterr().out
    assert "OpenMojiSTS" in printed and "loader=UniMEEncoder" in printed
    scores = sorted(path.name for path in tmp_path.glob("runs/mteb/results/unime__unime-tiny/*/*.json"))
    assert scores == ["OpenMojiSTS.json", "OpenMoji_name_t2i.json", "model_meta.json"]
