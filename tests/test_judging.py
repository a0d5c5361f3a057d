"""Prompts of the judge and the reranker, and the probability of the answer "Yes"."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from unime import load_model
from unime.judge_model import JudgeModel
from unime.judging import (
    LISTWISE_PROMPT,
    PAIRWISE_PROMPT,
    conversation_images,
    label_tokens,
    listwise_messages,
    pairwise_messages,
    prompt_tensors,
    render,
)


RED, BLUE = Image.new("RGB", (40, 24), "red"), Image.new("RGB", (24, 48), "blue")
QUERY = {"image": RED, "text": "What is this? No or Yes"}
CANDIDATES = [
    {"text": "a pizza"},
    {"image": BLUE, "text": "the candidate with the longest text, and an image"},
    {"image": BLUE, "instruction": "Represent the given image."},
]
CONVERSATIONS = [pairwise_messages(QUERY, candidate) for candidate in CANDIDATES]


@pytest.fixture(scope="module", params=["llava", "qwen2.5-vl", "smolvlm"])
def judge(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> tuple[PreTrainedModel, ProcessorMixin]:
    folder = tiny_model(request.param)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    return model, AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("penalty", [1.0, 1.05, 3.0])
def test_probabilities_equal_those_of_a_generated_token_with_one_forward_pass(judge, penalty: float) -> None:
    model, processor = judge
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    judge_pairs = JudgeModel(model, processor, repetition_penalty=penalty, share_query=False)
    probabilities = torch.tensor(judge_pairs(QUERY, CANDIDATES))
    hook.remove()
    assert len(passes) == 1
    images = [conversation_images(conversation) for conversation in CONVERSATIONS]
    tensors = prompt_tensors(processor, render(processor, CONVERSATIONS), images)
    options = {"max_new_tokens": 1, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    scores = model.generate(**tensors, **options, repetition_penalty=penalty).scores[0]
    generated = scores[:, label_tokens(processor)].softmax(dim=1)[:, 0]
    assert (probabilities - generated).abs().max() < 1e-5
    assert probabilities.std() > 0.01  # the pairs differ


def test_probabilities_do_not_depend_on_the_batch(judge) -> None:
    judge_pairs = JudgeModel(*judge, share_query=False)
    together = torch.tensor(judge_pairs(QUERY, CANDIDATES))
    alone = torch.tensor([judge_pairs(QUERY, [candidate])[0] for candidate in CANDIDATES])
    assert (together - alone).abs().max() < 1e-5


def test_the_pairwise_prompt_is_the_published_one(tiny_model: Callable[[str], Path]) -> None:
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    processor = AutoProcessor.from_pretrained(tiny_model("qwen2.5-vl"))
    query = {"text": "What is it?", "image": RED, "instruction": "Answer the question:"}
    both, texts = render(
        processor, [pairwise_messages(query, {"image": BLUE, "text": "it"}), pairwise_messages("a", "b")]
    )
    end = "<|im_end|>\n<|im_start|>assistant\n"
    prompt = f"<|im_start|>user\n{PAIRWISE_PROMPT}Query:"
    assert both == f"{prompt}{image}Answer the question: What is it?Candidate:{image}it{end}"
    assert texts == f"{prompt}aCandidate:b{end}"


def test_the_listwise_prompt_numbers_the_candidates(tiny_model: Callable[[str], Path]) -> None:
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    processor = AutoProcessor.from_pretrained(tiny_model("qwen2.5-vl"))
    (text,) = render(processor, [listwise_messages(RED, ["a", {"image": BLUE}])])
    end = "<|im_end|>\n<|im_start|>assistant\n"
    assert text == f"<|im_start|>user\n{LISTWISE_PROMPT}Query:{image}Candidates:(1) a(2) {image}{end}"
    with pytest.raises(ValueError, match="at least one"):
        listwise_messages(RED, [])


def test_every_family_keeps_the_order_of_texts_and_images(family: str, tiny_model: Callable[[str], Path]) -> None:
    processor = AutoProcessor.from_pretrained(tiny_model(family))
    (text,) = render(processor, [pairwise_messages({"image": RED, "text": "Q"}, {"image": BLUE, "text": "C"})])
    before, between, after = text.split(processor.image_token)
    assert "Query:" in before
    assert "Candidate:" in between and "Candidate:" not in before + after


def test_a_video_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for a video: give its frames as the item's images"):
        pairwise_messages({"video": [RED, RED]}, "c")


def test_control_tokens_in_texts_are_broken_up(judge) -> None:
    model, processor = judge
    end = processor.tokenizer.eos_token
    (text,) = render(processor, [pairwise_messages(f"a{end}b", "c")])
    assert f"a{end[0]} {end[1:]}b" in text


def test_a_unime_checkpoint_renders_with_the_frame_of_its_backbone() -> None:
    _, processor = load_model("checkpoints/unime-tiny", dtype="float32")
    backbone = AutoProcessor.from_pretrained("checkpoints/tiny-backbone")
    assert render(processor, CONVERSATIONS) == render(backbone, CONVERSATIONS)
