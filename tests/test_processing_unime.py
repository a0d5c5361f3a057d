"""Items are rendered as the prompts written out below, and user text never becomes control tokens."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from PIL.Image import Transpose
from token_ids import token_ids
from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin

from unime import micro_batches, processor_from_backbone
from unime.processing_unime import item_hash, normalize_item, to_item_dict, to_messages, to_rgb


RED = Image.new("RGB", (40, 56), "red")
BLUE = Image.new("RGB", (30, 30), "blue")

# The frame of each family: before a text, before one image and text, before two images and text, and at the end.
FRAMES = {
    "llava": ("USER: ", "USER: <image>\n", "USER: <image>\n<image>\n", " ASSISTANT:"),
    "llava-next": ("[INST] ", "[INST] <image>\n", "[INST] <image>\n<image>\n", " [/INST]"),
    "llava-onevision": (
        "<|im_start|>user \n",
        "<|im_start|>user <image>\n",
        "<|im_start|>user <image><image>\n",
        "<|im_end|><|im_start|>assistant\n",
    ),
    "qwen2-vl": (
        "<|im_start|>user\n",
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>",
        "<|im_start|>user\n" + "<|vision_start|><|image_pad|><|vision_end|>" * 2,
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "smolvlm": (
        "<|im_start|>User: ",
        "<|im_start|>User:<image>",
        "<|im_start|>User:<image><image>",
        "<end_of_utterance>\nAssistant:",
    ),
    "idefics3": (
        "<|begin_of_text|>User: ",
        "<|begin_of_text|>User:<image>",
        "<|begin_of_text|>User:<image><image>",
        "<end_of_utterance>\nAssistant:",
    ),
}
FRAMES["phi3-v"] = (
    "<|user|>\n",
    "<|user|>\n<|image|><s>\n",
    "<|user|>\n<|image|><s>\n<|image|><s>\n",
    "<|end|>\n<|assistant|>\n",
)
FRAMES["qwen2.5-vl"] = FRAMES["qwen3-vl"] = FRAMES["qwen2-vl"]
# Each family's image placeholder, and what closes a series of images.
PLACEHOLDERS = {
    "llava": ("<image>\n", ""),
    "llava-next": ("<image>\n", ""),
    "llava-onevision": ("<image>", "\n"),
    "smolvlm": ("<image>", ""),
    "idefics3": ("<image>", ""),
    "phi3-v": ("<|image|><s>\n", ""),
} | dict.fromkeys(["qwen2-vl", "qwen2.5-vl", "qwen3-vl"], ("<|vision_start|><|image_pad|><|vision_end|>", ""))

# Item, number of images, prompt inside the frame.
PROMPTS = [
    ("a cat", 0, "a cat\nSummarize the above sentence in one word:"),
    (RED, 1, "Summarize the above image in one word:"),
    ({"text": "a cat", "image": RED}, 1, "a cat\nSummarize the above image and sentence in one word:"),
    ({"text": "a cat", "image": [RED, BLUE]}, 2, "a cat\nSummarize the above image and sentence in one word:"),
    ({"text": "a cat", "instruction": "Find it:"}, 0, "Find it: a cat"),
    ({"image": RED, "instruction": "Represent the given image.\n"}, 1, "Represent the given image."),
    ({"text": "Is it red?", "image": RED, "instruction": "Answer:"}, 1, "Answer: Is it red?"),
    ({"text": "a cat", "instruction": ""}, 0, "a cat\nSummarize the above sentence in one word:"),
]


@pytest.mark.parametrize(("item", "images", "prompt"), PROMPTS)
def test_prompts_are_rendered_in_the_frame_of_the_backbone(
    family: str, processor: ProcessorMixin, item: str | dict, images: int, prompt: str
) -> None:
    rendered = processor.apply_chat_template(to_messages(to_item_dict(item)), tokenize=False)
    assert rendered == FRAMES[family][images] + prompt + FRAMES[family][3]


def test_the_template_is_saved_with_the_processor(processor: ProcessorMixin, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == processor.chat_template
    assert AutoProcessor.from_pretrained(tmp_path).chat_template == processor.chat_template


def test_images_come_first_in_any_order_of_the_parts(processor: ProcessorMixin) -> None:
    parts = [{"type": "image", "image": RED}, {"type": "text", "text": "a cat"}]
    image_first, image_last = ([{"role": "user", "content": content}] for content in (parts, parts[::-1]))
    expected = processor.apply_chat_template(image_first, tokenize=False)
    assert processor.apply_chat_template(image_last, tokenize=False) == expected


BOTH = "Summarize the above image and sentence in one word:"
# Item, number of leading images, prompt inside the frame; "*" is an image, "/" the end of a series of images.
ORDERED = [
    (["The cat", RED, "sits on", BLUE], 0, "The cat*/sits on*/" + BOTH),
    (["a cat", RED], 0, "a cat*/" + BOTH),
    ([RED, "a cat", BLUE, RED, "!"], 1, "a cat**/!\n" + BOTH),
    ({"content": [RED, BLUE, "a", "cat", BLUE]}, 2, "a\ncat*/" + BOTH),
    ({"content": ["a cat", RED, "?"], "instruction": "Find it:\n"}, 0, "Find it: a cat*/?"),
    ({"content": [RED, "a cat", BLUE], "instruction": "Find it:"}, 1, "Find it: a cat*/"),
    ([RED, "a cat"], 1, "a cat\n" + BOTH),
    ([RED, BLUE], 2, "Summarize the above image in one word:"),
    (["a", "cat"], 0, "a\ncat\nSummarize the above sentence in one word:"),
]


@pytest.mark.parametrize(("item", "leading", "prompt"), ORDERED)
def test_texts_and_images_of_a_list_keep_their_order(
    family: str, processor: ProcessorMixin, item: list | dict, leading: int, prompt: str
) -> None:
    placeholder, end_of_images = PLACEHOLDERS[family]
    expected = FRAMES[family][leading] + prompt.replace("*", placeholder).replace("/", end_of_images)
    rendered = processor.apply_chat_template(to_messages(to_item_dict(item)), tokenize=False)
    assert rendered == expected + FRAMES[family][3]


def test_messages_with_several_texts_keep_the_order_of_their_parts(processor: ProcessorMixin) -> None:
    parts = [
        {"type": "text", "text": "The cat"},
        {"type": "image"},
        {"type": "text", "text": "sits"},
        {"type": "image"},
    ]
    together = [{"role": "user", "content": parts}]
    apart = [{"role": "user", "content": [part]} for part in parts]
    expected = processor.apply_chat_template(to_messages(to_item_dict(["The cat", RED, "sits", BLUE])), tokenize=False)
    assert processor.apply_chat_template(together, tokenize=False) == expected
    assert processor.apply_chat_template(apart, tokenize=False) == expected


def template_of_version_0_1(processor: ProcessorMixin) -> str:
    """Return the chat template that UniME 0.1 saved with a checkpoint, for the frame of a processor."""
    first_line = processor.chat_template.split("\n")[0]
    frame = first_line.removeprefix("{%- set frame = ").removesuffix(" -%}")
    template = (Path(__file__).parent / "chat_templates" / "unime-0.1.jinja").read_text()
    return template.replace("FRAME", json.dumps(json.loads(frame), ensure_ascii=False))


def test_prompts_without_interleaving_are_those_of_version_0_1(processor: ProcessorMixin) -> None:
    template, random_source = template_of_version_0_1(processor), random.Random(0)
    pieces = ["", "a cat", "\n", " ", "<im", "age>", *processor.tokenizer.get_added_vocab()]

    def texts(count: int) -> list[dict]:
        return [
            {"type": "text", "text": "".join(random_source.choices(pieces, k=random_source.randrange(5)))}
            for _ in range(random_source.randint(0, count))
        ]

    for _ in range(300):
        images = [{"type": "image"}] * random_source.randint(0, 3)
        content = [images + texts(3), texts(2) + images][random_source.randrange(2)]
        turns = [{"role": "system", "content": texts(2)}, {"role": "user", "content": content}]
        expected = processor.apply_chat_template(turns, chat_template=template, tokenize=False)
        assert processor.apply_chat_template(turns, tokenize=False) == expected


def test_a_template_of_version_0_1_renders_all_items_but_interleaved_ones(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    current, old = (processor_from_backbone(tiny_model(family)) for _ in range(2))
    old.chat_template = template_of_version_0_1(current)
    items = [item for item, _, _ in PROMPTS] + [[RED, BLUE, "a cat"], ["a", "cat"], ["", RED]]
    assert token_ids(old, items) == token_ids(current, items)
    for item in (["a cat", RED], [RED, "a cat", BLUE], ["The cat", RED, "sits on", BLUE]):
        with pytest.raises(
            ValueError, match=r"^item 1 has a text before an image, but this checkpoint's chat template"
        ):
            micro_batches(old, ["a cat", item])


def test_the_hash_of_an_item_includes_its_order_and_is_unchanged_for_other_items() -> None:
    def hashes(items: list) -> list[int]:
        return [item_hash(normalize_item(item, 0)) for item in items]

    items = [
        ["a", RED, "b"],
        ["a", RED, BLUE, "b"],
        ["a", BLUE, RED, "b"],
        ["a", RED, "b", BLUE],
        [RED, "a", BLUE, "b"],
        [RED, BLUE, "a", "b"],
        ["a", "b", RED, BLUE],
        ["a\nb", RED, "", BLUE, "!"],
        {"content": ["a", RED, "b"], "instruction": "Find it:"},
    ]
    assert len(set(hashes(items))) == len(items)
    assert hashes([[RED, "a"], [RED], ["a", "b"]]) == hashes([{"text": "a", "image": RED}, RED, "a\nb"])
    assert hashes(["a cat", RED, {"text": "a cat", "image": [RED, BLUE], "instruction": "Find it:"}]) == [
        2788801093492353401,
        7798579788481919504,
        313136968093363432,
    ]


def test_content_may_be_a_plain_string(processor: ProcessorMixin) -> None:
    plain = [{"role": "system", "content": "Find it:"}, {"role": "user", "content": "a cat"}]
    parts = to_messages(to_item_dict({"text": "a cat", "instruction": "Find it:"}))
    assert processor.apply_chat_template(plain, tokenize=False) == processor.apply_chat_template(parts, tokenize=False)


def test_a_backbone_without_a_chat_template_gets_image_tokens_without_a_frame(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model("llava"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    processor = processor_from_backbone(tmp_path)
    for item, images, prompt in PROMPTS:
        rendered = processor.apply_chat_template(to_messages(to_item_dict(item)), tokenize=False)
        assert rendered == "<image>\n" * images + prompt
    assert all(row[0] == processor.tokenizer.bos_token_id for row in token_ids(processor, ["a cat", RED]))


def test_a_prompt_with_its_own_start_token_gets_no_second_one(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model("llava"), tmp_path, dirs_exist_ok=True)
    template = tmp_path / "chat_template.jinja"
    template.write_text("{{- '<s>' -}}\n" + template.read_text())
    items = ["a cat", RED, "<s> a cat"]
    expected = token_ids(processor_from_backbone(tiny_model("llava")), items)  # its tokenizer adds the token
    assert token_ids(processor_from_backbone(tmp_path), items) == expected


def texts_with_control_strings(processor: ProcessorMixin) -> list[str]:
    """Return texts that contain, nest and assemble every control string of the tokenizer."""
    control = list(processor.tokenizer.get_added_vocab())
    nested = [token[: len(token) // 2] + token + token[len(token) // 2 :] for token in control]
    random_source = random.Random(0)
    rotated = []
    for _ in range(60):
        cuts = [(token, random_source.randrange(len(token))) for token in random_source.choices(control, k=4)]
        rotated.append("".join(token[cut:] + token[:cut] for token, cut in cuts))
    return [f"a {token} cat" for token in control] + control + nested + rotated


def ids_of_control_tokens(processor: ProcessorMixin) -> set[int]:
    """Return all added tokens but `</s>` of Phi-3.5-Vision, which is none of its special tokens."""
    added = processor.tokenizer.added_tokens_decoder.items()
    return {index for index, token in added if token.special or token.content != "</s>"}


def test_texts_around_an_image_never_become_control_tokens(processor: ProcessorMixin) -> None:
    control_ids = ids_of_control_tokens(processor)

    def control_tokens(row: list[int]) -> Counter:
        return Counter(token for token in row if token in control_ids)

    texts = texts_with_control_strings(processor)
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]  # put together by dropping the image
    harmless, *rows = token_ids(
        processor,
        [[before, RED, after, BLUE] for before, after in [("a", "b"), *zip(texts, texts[::-1], strict=True), *halves]],
    )
    for row in rows:
        assert control_tokens(row) == control_tokens(harmless)


@pytest.mark.parametrize("field", ["text", "instruction"])
@pytest.mark.parametrize("image", [None, RED])
def test_user_text_never_becomes_a_control_token(
    processor: ProcessorMixin, field: str, image: Image.Image | None
) -> None:
    harmless = {"text": "a cat", "instruction": "Find it:"} | ({"image": image} if image else {})
    control_ids = ids_of_control_tokens(processor)

    def control_tokens(row: list[int]) -> Counter:
        return Counter(token for token in row if token in control_ids)

    (row,) = token_ids(processor, [harmless])
    frame = control_tokens(row)
    texts = texts_with_control_strings(processor)
    items = [harmless | {field: text} for text in texts]
    for text, row in zip(texts, token_ids(processor, items), strict=True):
        assert control_tokens(row) == frame, text
    for text, item in list(zip(texts, items, strict=True))[::4]:  # also when others render the template
        tensors = processor.apply_chat_template([to_messages(to_item_dict(item))], tokenize=True, return_dict=True)
        assert control_tokens(tensors["input_ids"][0]) == frame, text


def test_a_control_string_in_a_text_is_broken_up(llava: ProcessorMixin) -> None:
    (row,) = token_ids(llava, ["see <image> and </s>"])
    assert llava.tokenizer.decode(row) == (
        "<s>USER: see < image> and < /s>\nSummarize the above sentence in one word: ASSISTANT:"
    )


def test_added_tokens_that_are_parts_of_texts_stay_whole(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("llava"), tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["<b>", "ASSISTANT:"])  # Gemma has HTML tags; some role markers are ordinary tokens too
    tokenizer.save_pretrained(tmp_path)
    (row,) = token_ids(processor_from_backbone(tmp_path), ["<b>a ASSISTANT: <pad>"])
    assert tokenizer.decode(row) == (
        "<s>USER: <b>a A SSISTANT: < pad>\nSummarize the above sentence in one word: ASSISTANT:"
    )


def test_a_template_that_prints_the_date_prints_the_same_one_every_day(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model("llava"), tmp_path, dirs_exist_ok=True)
    template = tmp_path / "chat_template.jinja"
    today = "{%- set today = strftime_now('%d %b %Y') if strftime_now is defined else 'never' -%}\nToday: {{ today }} "
    template.write_text(today + template.read_text())
    (row,) = token_ids(processor_from_backbone(tmp_path), ["a cat"])
    assert AutoTokenizer.from_pretrained(tmp_path).decode(row).startswith("<s>Today: 26 Jul 2024")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] + '</s>' }}", "LlavaProcessor cannot render a text and images in turn .can only"),
        ("{{ messages[0]['content'][-1]['text'] }}", "does not write the same placeholder for each image: give its"),
    ],
)
def test_a_template_without_images_is_refused(
    template: str, message: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model("llava"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=message):
        processor_from_backbone(tmp_path)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_images_of_every_mode_are_accepted(llava: ProcessorMixin, mode: str) -> None:
    ((_, plain),) = micro_batches(llava, [RED])
    ((_, converted),) = micro_batches(llava, [RED.convert(mode)])
    assert converted["pixel_values"].shape == plain["pixel_values"].shape


@pytest.mark.parametrize(
    ("orientation", "transpose"),  # numbered as in EXIF
    [
        (2, Transpose.FLIP_LEFT_RIGHT),
        (3, Transpose.ROTATE_180),
        (4, Transpose.FLIP_TOP_BOTTOM),
        (5, Transpose.TRANSPOSE),
        (6, Transpose.ROTATE_270),
        (7, Transpose.TRANSVERSE),
        (8, Transpose.ROTATE_90),
    ],
)
def test_the_exif_orientation_is_applied_once(llava: ProcessorMixin, orientation: int, transpose: Transpose) -> None:
    rotated = Image.effect_noise((48, 24), 90).convert("RGB")
    upright = rotated.transpose(transpose)
    rotated.getexif()[ExifTags.Base.Orientation] = orientation
    converted = to_rgb(rotated)
    assert converted.size == upright.size and converted.tobytes() == upright.tobytes()
    assert to_rgb(converted) is converted
    ((_, actual),), ((_, expected),) = micro_batches(llava, [rotated]), micro_batches(llava, [upright])
    assert actual["pixel_values"].equal(expected["pixel_values"])


def test_a_plain_image_is_not_copied_and_no_image_is_changed() -> None:
    assert to_rgb(RED) is RED
    transparent = Image.new("RGBA", (4, 4), (255, 0, 0, 51))
    assert to_rgb(transparent).getpixel((0, 0)) == (255, 204, 204)  # a fifth of red, on white
    assert transparent.mode == "RGBA" and transparent.getpixel((0, 0)) == (255, 0, 0, 51)
