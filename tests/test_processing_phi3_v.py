"""The processor of Phi-3-Vision writes a beginning-of-sequence token behind every image, and reads numbered tags."""

import json
import shutil
from pathlib import Path

import pytest
from phi3_v_parity import IMAGE_TOKEN, draw, write_checkpoint
from transformers import AutoProcessor

from unime import processor_from_backbone
from unime.processing_phi3_v import CHAT_TEMPLATE, Phi3VProcessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("phi3_v"))


@pytest.fixture(scope="module")
def processor(folder: Path) -> Phi3VProcessor:
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor.num_crops = 1  # 313 tokens
    return processor


def pieces(processor: Phi3VProcessor, *texts: str) -> list[int]:
    """Return the tokens of texts that are tokenized alone, with an image between each two."""
    first, *others = (processor.tokenizer(text)["input_ids"] for text in texts)
    return first + [token for other in others for token in [IMAGE_TOKEN] * 313 + other]


@pytest.mark.parametrize(
    "texts",
    [
        ("<|user|>\n", "\nSummary above image in one word:<|end|>\n<|assistant|>\n"),
        ("", "\nRepresent the given image.\n"),
        ("the cat ", "", " sits on\n\n", "?"),
        ("", ""),
        ("\n", " ", "\n<|end|>\n"),
    ],
)
def test_text_between_images_has_the_tokens_that_it_has_alone(
    processor: Phi3VProcessor, texts: tuple[str, ...]
) -> None:
    tagged, images = texts[0], []
    for number, text in enumerate(texts[1:], 1):
        tagged += f"<|image_{number}|>{text}"
        images.append(draw("30x30"))
    expected = pieces(processor, *texts)
    assert processor(text=tagged, images=images)["input_ids"] == [expected]
    plain = "<|image|><s>".join(texts)
    assert processor(text=plain, images=images)["input_ids"] == [expected]
    assert len(expected) - 312 * len(images) == len(processor.tokenizer(plain)["input_ids"])


@pytest.mark.parametrize("text", ["<|image_2|>", "<|image_2|><|image_1|>", "<|image_1|><|image_1|>"])
def test_tags_out_of_order_are_refused(processor: Phi3VProcessor, text: str) -> None:
    with pytest.raises(
        ValueError, match=r"must be numbered <\|image_1\|>, <\|image_2\|>, ... in their order, got \[\d"
    ):
        processor(text=text, images=[draw("30x30")] * text.count("image"))


def test_a_tag_in_a_text_without_images_is_text(processor: Phi3VProcessor) -> None:
    text = "what does <|image_1|> mean?"
    expected = processor.tokenizer(text)["input_ids"]
    assert processor(text=text)["input_ids"] == [expected] and IMAGE_TOKEN not in expected
    batch = processor(text=[text, "<|image_1|>"], images=[[], [draw("30x30")]], padding=True)
    assert batch["input_ids"][0][: len(expected)] == expected and batch["input_ids"][1].count(IMAGE_TOKEN) == 313


def test_a_conversation_of_parts_and_one_of_strings_give_the_authors_prompt(processor: Phi3VProcessor) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    for content, placeholder in (("<|image_1|>\nWhat is it?", "<|image_1|>"), (parts, "<|image|><s>")):
        rendered = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        assert rendered == f"<|user|>\n{placeholder}\nWhat is it?<|end|>\n<|assistant|>\n"


def test_a_published_template_of_the_processor_itself_is_replaced(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    published = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    (tmp_path / "chat_template.jinja").write_text(published)
    assert AutoProcessor.from_pretrained(tmp_path).chat_template == CHAT_TEMPLATE
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert AutoProcessor.from_pretrained(tmp_path).chat_template == "{{ messages[0]['content'] }}"


def test_unimes_template_keeps_the_prompts_of_its_authors(folder: Path) -> None:
    processor = processor_from_backbone(str(folder), "Summary above {} in one word:")
    content = [{"type": "image"}], [{"type": "text", "text": "A cat."}]
    image, text = (processor.apply_chat_template([{"role": "user", "content": parts}]) for parts in content)
    assert image == "<|user|>\n<|image|><s>\nSummary above image in one word:<|end|>\n<|assistant|>\n"
    assert text == "<|user|>\nA cat.\nSummary above sentence in one word:<|end|>\n<|assistant|>\n"


def test_the_tokenizer_stays_the_published_one_after_saving(processor: Phi3VProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)  # without a config.json, from which transformers would tell the tokenizer
    saved = AutoProcessor.from_pretrained(tmp_path)
    for text in ("<|user|>\n a", "\n", " a", "日本<|end|>\n<|assistant|>\n x"):
        assert saved.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer("<|user|>\n")["input_ids"] == [1, 485, 312, 13]
