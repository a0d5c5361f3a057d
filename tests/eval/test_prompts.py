"""Prompts of published evaluations: to the letter, recorded in the results, and beside those of published rows."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import ProcessorMixin

from unime.checkpoint import load_processor
from unime.eval.benchmarks import caption_retrieval
from unime.eval.encoders.loading import load_encoder
from unime.eval.miniatures.caption_miniature import write_urban1k
from unime.eval.prompts import PROMPTS, find_prompts, with_prompt
from unime.eval.report.html_report import table
from unime.eval.report.paper_scores import PUBLISHED, Protocol
from unime.eval.tasks import RetrievalTask, SimilarityTask
from unime.processing_unime import to_item_dict, to_messages


ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "checkpoints" / "unime-tiny"
FIND = "Find an image caption describing the given image."
IMAGE = Image.new("RGB", (40, 30), "green")


@pytest.fixture(scope="module")
def processor() -> ProcessorMixin:
    return load_processor(str(CHECKPOINT))


@pytest.fixture(scope="module")
def captions() -> RetrievalTask:
    texts, images = [{"text": "a cat"}, "a dog"], [{"image": IMAGE}, {"image": IMAGE, "text": "in red"}]
    return RetrievalTask("t2i", "retrieval", texts, images, [[0], [1]])


def rendered(processor: ProcessorMixin, item: object) -> str:
    return processor.apply_chat_template(to_messages(to_item_dict(item)), tokenize=False)


def test_the_prompts_stand_alone_in_the_frame_of_a_checkpoint(processor: ProcessorMixin, captions: RetrievalTask):
    (task,) = PROMPTS["unime-v2"].for_model(str(CHECKPOINT), None, processor, [captions])
    assert rendered(processor, task.queries[0]) == "<|user|>a cat<|end|><|assistant|>"
    assert rendered(processor, task.queries[1]) == "<|user|>a dog<|end|><|assistant|>"
    assert rendered(processor, task.candidates[0]) == f"<|user|><image>{FIND}<|end|><|assistant|>".replace(
        "<image>", rendered(processor, {"image": IMAGE, "instruction": "x"}).split("<|user|>")[1].split("x<|end|>")[0]
    )
    assert task.candidates[1] == captions.candidates[1]  # text and image
    for item in ({"video": [IMAGE]}, {"video": [IMAGE], "text": "a cat"}):
        assert with_prompt(item, FIND, "{text}") == item
    (task,) = PROMPTS["unime"].for_model(str(CHECKPOINT), None, processor, [captions])
    one_word = "<|user|>a cat\nSummary above sentence in one word:<|end|><|assistant|>"
    assert rendered(processor, task.queries[0]) == one_word


def test_texts_alone_are_raw_where_queries_have_instructions(processor: ProcessorMixin):
    queries = [{"image": IMAGE, "text": "Which?", "instruction": "Represent the given image with this question:"}]
    task = RetrievalTask("OK-VQA", "vqa", queries, [{"text": "a cat"}, {"text": "a dog"}], [[0]])
    for prompts in PROMPTS.values():
        (changed,) = prompts.for_model(str(CHECKPOINT), None, processor, [task])
        assert changed.queries == queries
        assert rendered(processor, changed.candidates[0]) == "<|user|>a cat<|end|><|assistant|>"
    pairs = SimilarityTask("sts", ["a cat", "a dog"], ["a kitten", "a car"], [1.0, 0.0])
    (changed,) = PROMPTS["unime"].for_model(str(CHECKPOINT), None, processor, [pairs])
    assert rendered(processor, changed.first[0]).startswith("<|user|>a cat\nSummary above sentence in one word:")
    assert changed.similarities == pairs.similarities


def test_published_embedders_get_the_string_of_their_authors(tiny_model: Callable[[str], Path], captions):
    path = str(tiny_model("qwen2-vl"))
    vlm2vec = load_processor(path, preset="vlm2vec-qwen2-vl")
    assert "Represent the given image." in rendered(vlm2vec, {"image": IMAGE})
    (task,) = PROMPTS["vlm2vec"].for_model(path, "vlm2vec-qwen2-vl", vlm2vec, [captions])
    assert rendered(vlm2vec, task.candidates[0]) == f"<|image_pad|> {FIND}"  # a space, and no line feed
    assert rendered(vlm2vec, task.queries[0]) == "a cat"
    ours = load_processor(path, preset="unime-v2-qwen2-vl")
    (task,) = PROMPTS["unime-v2"].for_model(path, "unime-v2-qwen2-vl", ours, [captions])
    assert rendered(ours, task.candidates[0]) == f"<|image_pad|> {FIND}"
    with pytest.raises(ValueError, match="the prompts 'vlm2vec' cannot be given to .* its preset 'gme': leave"):
        PROMPTS["vlm2vec"].for_model(path, "gme", load_processor(path, preset="gme"), [captions])
    assert PROMPTS["vlm2vec"].for_model("a CLIP", None, None, [captions]) == [captions]


def test_prompts_may_be_a_file(tmp_path: Path):
    (tmp_path / "mine.json").write_text(json.dumps({"image": "Describe:", "text": "{text} means:"}))
    prompts = find_prompts(str(tmp_path / "mine.json"))
    assert (prompts.name, prompts.image, prompts.text) == ("mine", "Describe:", "{text} means:")
    (tmp_path / "mine.json").write_text(json.dumps({"image": "Describe:", "text": "{text} means" + " so" * 99}))
    assert find_prompts(str(tmp_path / "mine.json")).fingerprint != prompts.fingerprint
    for content in ("[]", '{"text": "{text}"}', '{"image": "x", "text": "no place"}', '{"images": "x"}', "{"):
        (tmp_path / "mine.json").write_text(content)
        with pytest.raises(ValueError, match=r"mine\.json"):
            find_prompts(str(tmp_path / "mine.json"))
    with pytest.raises(ValueError, match="there are no prompts 'UniME3': choose from unime, unime-v2, vlm2vec, e5-v"):
        find_prompts("UniME3")


def test_a_run_has_the_prompts_and_records_its_protocol(tmp_path: Path):
    write_urban1k(tmp_path / "urban", {0: "one red tile", 3: "two grey tiles", 9: "a third tile"})
    arguments = ["--model", f"Ours={CHECKPOINT}", "--benchmark", "urban1k", "--urban1k-folder", tmp_path / "urban"]
    command = importlib.import_module("unime.eval.__main__")
    results = {}
    for name, options in {"own": [], "v2": ["--prompts", "unime-v2", "--image-size", '{"square": 96}']}.items():
        command.main([str(word) for word in (*arguments, *options, "--output", tmp_path / "out")])
        results[name] = json.loads((tmp_path / "out" / "results.json").read_text())["Ours"]
    own, v2 = (results[name]["run"]["protocol"] for name in ("own", "v2"))
    assert own == {"prompts": None, "image_size": None}
    assert (v2["prompts"], v2["image_prompt"], v2["text_prompt"]) == ("unime-v2", FIND, "{text}")
    assert v2["image_size"] == {"square": 96} and "UniME-v2" in v2["prompts_source"]
    assert results["v2"]["embedded"]["items"] > 0  # not those of the other prompts

    # The same embeddings as items that carry the prompts.
    t2i, _ = caption_retrieval.urban1k(tmp_path / "urban")
    encoder = load_encoder(str(CHECKPOINT), image_size={"square": 96})
    queries = [{"text": "", "instruction": item["text"]} for item in t2i.queries]
    images = [item | {"instruction": FIND} for item in t2i.candidates]
    ranks = np.argsort(-encoder.encode(queries) @ encoder.encode(images).T, axis=1)
    assert results["v2"]["tasks"]["urban1k_t2i"]["R@1"] == pytest.approx(np.mean(ranks[:, 0] == range(len(ranks))))


def test_published_rows_stand_with_their_protocol_and_others_are_marked():
    published = PUBLISHED["urban1k"]
    first, second = published.sources
    assert published.protocol(first, "UniME (LLaVA-1.6)") == Protocol("336 px", "unime")
    assert published.protocol(first, "VLM2Vec (LLaVA-1.6)") == Protocol("336 px", "vlm2vec")
    assert published.protocol(second, "VLM2Vec (Qwen2-VL-2B)") == Protocol("1344 px", "unime-v2")
    assert published.protocol(first, "CLIP ViT-L") == Protocol("own", "own")
    assert PUBLISHED["mmeb"].protocol(first, "UniME (LLaVA-1.6)") == Protocol("336 px", "MMEB")

    def measured(recorded: dict) -> dict:
        sizes = {
            name: dict(zip(("queries", "candidates"), size, strict=True)) for name, size in published.sizes.items()
        }
        tasks = {name: {"meta_task": "long", "metric": "hit@1", "hit@1": 0.5, **size} for name, size in sizes.items()}
        empty = dict.fromkeys(("distributions", "compositional", "compositional_groups"), {})
        run = {"run": {"protocol": recorded}}
        means = {"meta_tasks": {"long": 0.5}, "overall": 0.5, "mean_of_meta_tasks": 0.5}
        return {"benchmark": "urban1k", "tasks": tasks, **empty, **means, **run}

    def marked(recorded: dict) -> set[str]:
        lines = table({"Ours": measured(recorded)}).splitlines()
        return {line.split(" †")[0].strip("| ") for line in lines if line.startswith("|") and " †" in line}

    rows = {model for source in published.sources.values() for model in source}
    v2 = set(published.sources[second])
    assert marked({"prompts": "unime-v2", "image_size": {"square": 1344}}) == rows - v2 | {"CLIP ViT-L"} & rows
    ours = {model for model in published.sources[first] if model.startswith("UniME")}
    assert marked({"prompts": "unime", "image_size": 336}) == rows - ours
    assert not marked({"prompts": None, "image_size": None}) & {"CLIP ViT-L"}
    assert "Ours: image size 336 px, prompts unime" in table(
        {"Ours": measured({"prompts": "unime", "image_size": 336})}
    )
