"""Judging with the tokens of the query shared by its candidates, and as whole pairs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from unime import load_model
from unime.judge_model import JudgeModel


def noise(width: int, height: int, seed: int) -> Image.Image:
    pixels = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


QUERIES = [
    "a text as query",
    {"image": noise(40, 30, 0), "text": "What is this? Yes or No"},
    {"image": [noise(50, 50, 1), noise(20, 30, 2)], "instruction": "Compare both images."},
]
CANDIDATES = [
    "a pizza",
    {"image": noise(20, 40, 3), "instruction": "Represent the given image."},
    {"image": noise(60, 40, 4), "text": "a candidate with a longer text than the others, and an image"},
    "://begins with a token that may be merged with the prompt's last one",
    "b" * 30,
    {"image": [noise(30, 30, 5), noise(20, 20, 6)]},
]
TINY_BACKBONE = "tiny-backbone"  # its tokenizer adds a space to the beginning of a text
FAST = [TINY_BACKBONE, "fast_vlm", "llava-onevision", "qwen2.5-vl", "smolvlm"]
OTHERS = ["llava", "llava-next", "qwen2-vl", "qwen3-vl", "idefics3"]


@pytest.fixture(
    scope="module", params=[*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)  # every family whose prefixes are shared
def judge(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> tuple[PreTrainedModel, ProcessorMixin]:
    folder = Path("checkpoints", TINY_BACKBONE) if request.param == TINY_BACKBONE else tiny_model(request.param)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    return model, AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("query", QUERIES, ids=["text", "image and text", "two images"])
def test_sharing_the_query_changes_no_score(judge, query) -> None:
    shared, whole = JudgeModel(*judge), JudgeModel(*judge, share_query=False)
    alone = [whole(query, [candidate])[0] for candidate in CANDIDATES]
    assert shared(query, CANDIDATES) == pytest.approx(alone, abs=1e-5)
    assert whole(query, CANDIDATES) == pytest.approx(alone, abs=1e-5)
    assert torch.tensor(alone).std() > 0.01


def test_the_query_passes_through_the_model_once(judge) -> None:
    model, processor = judge
    passes = []
    hook = model.register_forward_pre_hook(
        lambda module, args, inputs: passes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    try:
        texts = [f"candidate number {number}" for number in range(8)]
        JudgeModel(model, processor)("a query that is longer than each of its candidates", texts)
        (one, prefix), (rows, rest) = passes  # one pass for what they share, and one for the candidates
        assert (one, rows) == (1, 8) and rest < prefix / 3
        passes.clear()
        JudgeModel(model, processor, share_query=False)("a query that is longer than its candidates", texts)
        assert len(passes) == 1 and passes[0][0] == 8 and passes[0][1] >= prefix
        passes.clear()
        JudgeModel(model, processor, batch_tokens=3 * rest)("a query", texts)
        assert sum(rows for rows, _ in passes[1:]) == 8 and all(rows * n <= 3 * rest for rows, n in passes[1:])
    finally:
        hook.remove()


def test_a_pair_that_is_too_long_is_an_error(judge) -> None:
    too_long = "c " * judge[0].config.get_text_config().max_position_embeddings
    with pytest.raises(ValueError, match="candidate 1 and its query have .* tokens, but the judge reads"):
        JudgeModel(*judge, share_query=False)("a", ["b", too_long])
    with pytest.raises(ValueError, match="candidate 1 and its query have .* tokens, but the judge reads"):
        JudgeModel(*judge)("a", ["b", too_long])


def test_a_score_that_is_not_finite_is_an_error(tiny_model: Callable[[str], Path]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_model("smolvlm"), dtype="float32")
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="the score of candidate 0 is not finite"):
        JudgeModel(model, AutoProcessor.from_pretrained(tiny_model("smolvlm")))("a", ["b", "c"])


def test_an_embedder_is_refused() -> None:
    with pytest.raises(ValueError, match="does not generate text"):
        JudgeModel(*load_model("checkpoints/unime-tiny", dtype="float32"))
