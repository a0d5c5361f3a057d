"""Items, and the chat template that holds every prompt.

An *item* is a `str`, a `PIL.Image`, or a dict with any of `"text"`, `"image"` (one image or a list) and
`"instruction"`. The backbone's own processor does the tokenising and the pixels; nothing here knows an architecture.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps
from transformers import AutoProcessor, ProcessorMixin


Item = str | Image.Image | Mapping[str, Any]
ITEM_KEYS = ("text", "image", "instruction")  # of an item that is a dict
SUMMARY_PROMPT = "Summarize the above {} in one word:"  # arXiv 2504.17432, section 3.1.2, as its README words it

# The one source of every prompt. Images come first, the instruction is the system message (where
# sentence-transformers puts its prompts), and control tokens inside texts are broken by a space, whoever renders this.
TEMPLATE = """\
{%- set frame = FRAME -%}
{%- set ns = namespace(instruction='', text='', images=0) -%}
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if content is string -%}{%- set content = [{'type': 'text', 'text': content}] -%}{%- endif -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{%- set ns.images = ns.images + 1 -%}
{%- elif part['type'] == 'text' and message['role'] == 'system' -%}
{%- set ns.instruction = ns.instruction ~ part['text'] -%}
{%- elif part['type'] == 'text' -%}{%- set ns.text = ns.text ~ ('\\n' if ns.text else '') ~ part['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- set said = ns.text ~ ns.instruction -%}
{%- for token in frame.control if token in said -%}
{%- set broken = token[0] ~ ' ' ~ token[1:] -%}
{%- set ns.text = ns.text.replace(token, broken) -%}
{%- set ns.instruction = ns.instruction.replace(token, broken) -%}
{%- endfor -%}
{{- frame.image_start ~ frame.image * ns.images ~ frame.image_end if ns.images else frame.start -}}
{%- if ns.instruction -%}
{{- ns.instruction.rstrip() ~ (' ' ~ ns.text if ns.text else '') -}}
{%- elif ns.images and ns.text -%}
{{- ns.text ~ '\\n' ~ frame.summary.replace('{}', 'image and sentence') -}}
{%- elif ns.images -%}
{{- frame.summary.replace('{}', 'image') -}}
{%- else -%}
{{- ns.text ~ '\\n' ~ frame.summary.replace('{}', 'sentence') -}}
{%- endif -%}
{{- frame.end -}}
"""
TEMPLATE_HEAD = TEMPLATE.partition("FRAME")[0]  # by which a template is known as UniME's


def chat_template(processor: ProcessorMixin, summary: str = SUMMARY_PROMPT) -> str:
    """Write UniME's chat template for a backbone, keeping the frame that the backbone was trained with.

    The frame (role markers, image placeholder, start of the answer) is read off the backbone's own chat template; a
    backbone without one gets its image token on a line of its own and nothing else.

    Args:
        processor (`ProcessorMixin`): The backbone's native processor.
        summary (`str`): What is asked of an item without an instruction; `{}` stands for what the item is.

    Returns:
        `str`: Jinja source for `processor.chat_template`, saved with the checkpoint.
    """
    text = "\x00"

    def around_text(images: int) -> tuple[str, str]:
        if processor.chat_template is None:
            return (processor.image_token + "\n") * images, ""
        parts = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        turn = [{"role": "user", "content": parts}]
        before, after = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False).split(text)
        return before, after

    start, end = around_text(0)
    (one, _), (two, _) = around_text(1), around_text(2)
    width = len(two) - len(one)
    # The image's placeholder is the stretch of the one-image prompt that the two-image prompt holds twice.
    first = next(
        i
        for i in range(len(one) - width + 1)
        if one[: i + width] + one[i:] == two and processor.image_token in one[i:]
    )
    added = processor.tokenizer.get_added_vocab()
    control = sorted((token for token in added if len(token.strip()) > 1), key=lambda token: (-len(token), token))
    frame = {
        "start": start,
        "image_start": one[:first],
        "image": one[first : first + width],
        "image_end": one[first + width :],
        "end": end,
        "summary": summary,
        "control": control,
    }
    return TEMPLATE.replace("FRAME", json.dumps(frame, ensure_ascii=False))


def processor_from_backbone(backbone: str, summary: str = SUMMARY_PROMPT, **kwargs) -> ProcessorMixin:
    """Load a backbone's native processor and give it UniME's chat template.

    Args:
        backbone (`str`): Folder or Hub id of the backbone.
        summary (`str`): What is asked of an item without an instruction, see [`chat_template`].
        kwargs: Passed to `AutoProcessor.from_pretrained` (image size, ...).
    """
    processor = AutoProcessor.from_pretrained(backbone, **kwargs)
    if TEMPLATE_HEAD not in (processor.chat_template or ""):  # a plain export has UniME's own already
        processor.chat_template = chat_template(processor, summary)
    return processor


def to_item_dict(item: Item) -> dict[str, Any]:
    """Spell an item out as a dict with `text`, `images` (a list) and `instruction`.

    Raises:
        ValueError: The item holds neither text nor image, a value of the wrong type, a text that is not valid Unicode,
            or something that no model would see.
    """
    if isinstance(item, str):
        item = {"text": item}
    elif isinstance(item, Image.Image):
        item = {"image": item}
    elif not isinstance(item, Mapping):
        raise ValueError(
            f"expected a str, a PIL image or a dict with 'text' and/or 'image', got {type(item).__name__}"
        )
    unknown = [repr(key) for key in item if key not in ITEM_KEYS]
    if unknown:
        raise ValueError(f"an item has no {', '.join(unknown)}: leave that out, the keys are {', '.join(ITEM_KEYS)}")
    text, images, instruction = (item.get(key) for key in ITEM_KEYS)
    images = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    for name, value in (("text", text), ("instruction", instruction)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"'{name}' must be a str, got {type(value).__name__}")
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:  # a lone surrogate, which no tokenizer takes
            raise ValueError(f"'{name}' is not valid Unicode at character {error.start}: mend it") from None
    for image in images:
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"'image' must be a PIL image or a list of them, got {type(image).__name__}: open it with PIL.Image"
            )
    if text is None and not images:
        raise ValueError(f"expected 'text' or 'image' (or both), got the keys {sorted(item)}")
    return {"text": text, "images": images, "instruction": instruction}


def to_rgb(image: Image.Image) -> Image.Image:
    """Make of an image what the model sees, which is what a viewer shows: RGB, upright, on white where transparent.

    Upright is as the EXIF orientation says. Of an animation this is the frame it stands at, the first of a file that
    was just opened; of 16 bits a pixel the upper 8 are kept. An image that is like that already is given back itself.

    Raises:
        ValueError: It has no pixels, or such as are no colours.
        Exception: It is damaged; for broken files Pillow's decoders raise errors of many kinds.
    """
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels: give one that has any")
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):  # Pillow would cut all values at 255
        raise ValueError(f"its pixels are numbers of mode {image.mode}: save it with 8 or 16 bits a pixel")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def to_messages(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turn a spelt-out item into the conversation that chat templates and sentence-transformers know."""
    content = [{"type": "image", "image": image} for image in item["images"]]
    if item["text"] is not None:
        content.append({"type": "text", "text": item["text"]})
    turns = [{"role": "user", "content": content}]
    if item["instruction"]:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": item["instruction"]}]})
    return turns


def normalize_item(item: Item, number: int) -> dict[str, Any]:
    """Spell out the item that errors call `number`, as [`to_item_dict`] does, its images as the model sees them.

    Raises:
        ValueError: It is malformed, or an image of it is damaged.
    """
    try:
        spelt = to_item_dict(item)
    except ValueError as error:
        raise ValueError(f"item {number}: {error}") from None
    try:
        return spelt | {"images": [to_rgb(image) for image in spelt["images"]]}
    except Exception as error:  # only now is it decoded, where Pillow raises errors of many kinds
        raise ValueError(f"item {number}: its image cannot be read ({error}): mend or replace it") from None


def item_hash(item: Mapping[str, Any]) -> int:
    """63-bit hash of what a spelt-out item shows the model: equal items have equal hashes in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for text in (item["instruction"], item["text"]):
        encoded = b"" if text is None else b"+" + text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    for image in item["images"]:
        digest.update(f"{image.size}".encode() + image.tobytes())
    return int.from_bytes(digest.digest(), "big") >> 1


__all__ = [
    "Item",
    "to_item_dict",
    "to_rgb",
    "chat_template",
    "to_messages",
    "processor_from_backbone",
    "normalize_item",
    "item_hash",
]
