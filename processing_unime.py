"""Items, and the chat template that holds every prompt.

An *item* is a `str`, a `PIL.Image`, a list of texts and images in their order, or a dict with any of the keys
`"text"`, `"image"` (one image or a list), `"video"` (a list of frames) and `"instruction"`. In a dict, `"content"` (a
list of texts, images and videos) replaces `"text"`, `"image"` and `"video"`. The backbone's own processor
tokenizes texts and preprocesses images and videos, so nothing here depends on an architecture.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from io import BytesIO
from threading import Lock
from typing import IO, Any, cast

from PIL import ExifTags, Image, ImageFile, ImageOps
from transformers import AutoProcessor, ProcessorMixin

from .image_colors_unime import to_8_bit, to_srgb


Item = str | Image.Image | Sequence[Any] | Mapping[str, Any]
Part = str | int | tuple[int, ...]  # of a normalized item: a text, the index of an image, those of a video's frames
HASHED_BYTES = 2**18  # of an image at a time
_FILE_LOCK = Lock()
ITEM_KEYS = ("text", "image", "video", "content", "instruction")
SUMMARY_PROMPT = "Summarize the above {} in one word:"  # arXiv 2504.17432, section 3.1.2, in the wording of its README

# Processors with a video processor whose tensors, tokens and positions the tests compare with the native model's.
VIDEO_PROCESSORS = frozenset(
    {"LlavaOnevisionProcessor", "Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor"}
)
# Those with times in tokens or positions. Whoever renders the template must say that the processor gets the times.
TIMED_PROCESSORS = frozenset({"Qwen2_5_VLProcessor", "Qwen3VLProcessor"})

# Of templates with a `frame`: breaks up control tokens inside a text by a space.
BREAK_UP = """\
{%- macro break_up(text) -%}
{%- set broken = namespace(text=text) -%}
{%- for token in frame.control if token in text -%}
{%- set broken.text = broken.text.replace(token, token[0] ~ ' ' ~ token[1:]) -%}
{%- endfor -%}
{{- broken.text -}}
{%- endmacro -%}
"""

# The only place that holds prompts. The instruction is the system message (as sentence-transformers passes its
# prompts) and stands before the first text. Texts, images and videos keep their order, with one exception: where all
# images follow the only text, the images come first, because sentence-transformers renders a dict with the keys "text"
# and "image" in this form, and the order of keys means nothing. An empty text at the end keeps the order. Control
# tokens inside texts are broken up by a space, whoever renders the template.
TEMPLATE = """\
{%- set frame = FRAME -%}
"""
TEMPLATE += BREAK_UP
TEMPLATE += """\
{%- set ns = namespace(instruction='', leading='', inner='', kind='', first='', body='', text='', ordered=false) -%}
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if content is string -%}{%- set content = [{'type': 'text', 'text': content}] -%}{%- endif -%}
{%- for part in content -%}
{%- if part['type'] in ('image', 'video') -%}
{%- set placeholder = frame[part['type']] -%}
{%- if not placeholder -%}{{- raise_exception(frame.no_video) -}}{%- endif -%}
{%- if part['type'] == 'video' and frame.untimed and not with_times -%}
{{- raise_exception(frame.untimed) -}}
{%- endif -%}
{%- set ns.kind = ns.kind or part['type'] -%}
{%- if not ns.body and not ns.text -%}{%- set ns.leading = ns.leading ~ placeholder -%}
{%- else -%}
{%- set ns.first = ns.first if ns.body else ns.text -%}
{%- set ns.body = ns.body ~ break_up(ns.text) ~ placeholder -%}
{%- set ns.inner = ns.inner ~ placeholder -%}
{%- set ns.text = '' -%}
{%- endif -%}
{%- elif part['type'] == 'text' and message['role'] == 'system' -%}
{%- set ns.instruction = ns.instruction ~ part['text'] -%}
{%- elif part['type'] == 'text' -%}
{%- if ns.body and part['text'] and not ns.text -%}{%- set ns.body = ns.body ~ frame.image_end -%}{%- endif -%}
{%- set ns.text = ns.text ~ ('\\n' if ns.text else '') ~ part['text'] -%}
{%- if ns.body -%}{%- set ns.ordered = true -%}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- if ns.inner and not ns.leading and not ns.ordered -%}
{%- set ns.leading = ns.inner -%}
{%- set ns.body = '' -%}
{%- set ns.text = ns.first -%}
{%- endif -%}
{%- set ns.body = ns.body ~ (break_up(ns.text) if ns.text else frame.image_end if ns.body) -%}
{{- frame.image_start ~ ns.leading ~ frame.image_end if ns.leading else frame.start -}}
{%- if ns.instruction -%}
{{- break_up(ns.instruction).rstrip() ~ (' ' ~ ns.body if ns.body else '') -}}
{%- elif ns.body or not ns.leading -%}
{%- set kind = ns.kind ~ ' and sentence' if ns.kind else 'sentence' -%}
{{- ns.body ~ ('\\n' if ns.text or not ns.body else '') ~ frame.summary.replace('{}', kind) -}}
{%- else -%}
{{- frame.summary.replace('{}', ns.kind) -}}
{%- endif -%}
{{- frame.end -}}
"""
TEMPLATE_DATE = date(2024, 7, 26)  # where a backbone's template prints today's date; that of Llama's own templates
NO_VIDEO = (
    "this checkpoint's chat template has no place for a video: pass its frames as separate images, or load a backbone "
    "with a video processor (LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL, Qwen3-VL)"
)
UNTIMED_VIDEO = (
    "this model reads at what times the frames of a video were taken, which is not passed on here: call "
    "`UniMEModel.encode`, or pass the frames as separate images"
)
TEMPLATE_HEAD = TEMPLATE.partition("FRAME")[0]  # identifies a template as UniME's


def named_tokens(processor: ProcessorMixin) -> set[str]:
    """Return the tokens that a processor has under a name, such as `image_token` and `boi_token`.

    Args:
        processor (`ProcessorMixin`): The backbone's native processor.
    """
    names = {name for owner in (type(processor), processor) for name in vars(owner) if name.endswith("_token")}
    values = {getattr(processor, name) for name in names}
    return {value for value in values if isinstance(value, str) and value}


def control_tokens(processor: ProcessorMixin, frame: str) -> set[str]:
    """Return the strings that a tokenizer turns into control tokens, which texts must not contain.

    Other tokens that were added to a vocabulary, such as `<b>` and `<table>` in Gemma's, are parts of texts.

    Args:
        processor (`ProcessorMixin`): The backbone's native processor.
        frame (`str`): What the chat template writes around texts and images.
    """
    named = named_tokens(processor)
    added = processor.tokenizer.added_tokens_decoder.values()
    return {
        token.content
        for token in added
        if len(token.content.strip()) > 1 and (token.special or token.content in named or token.content in frame)
    }


def chat_template(processor: ProcessorMixin, summary: str = SUMMARY_PROMPT) -> str:
    """Return UniME's chat template for a backbone.

    The template keeps the frame that the backbone was trained with (role markers, image placeholder, start of the
    answer), which is derived from the backbone's own chat template. For a backbone without a chat template, each image
    token stands on a line of its own and there are no role markers.

    Args:
        processor (`ProcessorMixin`): The backbone's native processor.
        summary (`str`, *optional*): Prompt of an item without an instruction; `{}` stands for the kind of item.

    Returns:
        `str`: Jinja source for `processor.chat_template`, which is saved with the checkpoint.

    Raises:
        ValueError: The backbone has no image token, or its chat template has no place for texts and images.
    """
    text = "\x00"
    # Some processors replace another token than the image token, such as the one that begins an image.
    tokens = named_tokens(processor)
    family = type(processor).__name__
    template = processor.chat_template
    if template is not None and "strftime_now" in template:
        template = _fixed_date() + template

    def around_text(images: int) -> tuple[str, str]:
        if template is None:
            return (processor.image_token + "\n") * images, ""
        parts = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        turn = [{"role": "user", "content": parts}]
        before, after = processor.apply_chat_template(
            turn, chat_template=template, add_generation_prompt=True, tokenize=False
        ).split(text)
        return before, after

    try:
        start, end = around_text(0)
        (one_image, _), (two_images, _) = around_text(1), around_text(2)
    except Exception as error:  # templates and processors raise errors of many types
        reason = "it has no image token" if template is None else str(error).partition("\n")[0]
        raise ValueError(
            f"the backbone's {family} cannot render a text and images in turn ({reason}): choose a backbone whose "
            "processor has an image token, and whose chat template takes texts and images"
        ) from None
    width = len(two_images) - len(one_image)
    # The image placeholder is the part of the one-image prompt that the two-image prompt repeats: the last such part,
    # since an earlier one may begin with the end of a role marker that the placeholder ends with too.
    starts = (
        i
        for i in range(len(one_image) - width, -1, -1)
        if one_image[: i + width] + one_image[i:] == two_images
        and any(token in one_image[i : i + width] for token in tokens)
    )
    first = next(starts, None)
    if first is None:
        raise ValueError(
            f"the backbone's {family} does not write the same placeholder for each image: give its processor a chat "
            "template that does"
        )
    control = sorted(control_tokens(processor, start + two_images + end), key=lambda token: (-len(token), token))
    image = one_image[first : first + width]
    if family in VIDEO_PROCESSORS:
        video = {"video": image.replace(processor.image_token, processor.video_token)}
        video |= {"untimed": UNTIMED_VIDEO} if family in TIMED_PROCESSORS else {}
    else:
        video = {"video": "", "no_video": NO_VIDEO}
    frame = {
        "start": start,
        "image_start": one_image[:first],
        "image": image,
        **video,
        "image_end": one_image[first + width :],
        "end": end,
        "summary": summary,
        "control": control,
    }
    return TEMPLATE.replace("FRAME", json.dumps(frame, ensure_ascii=False))


def _fixed_date() -> str:
    """Return a macro that a template calls instead of transformers' function for the date."""
    directives = {f"%{letter}": TEMPLATE_DATE.strftime(f"%{letter}") for letter in "aAbBdHIjmMpSyY"}
    replacements = "".join(f".replace('{directive}', '{value}')" for directive, value in directives.items())
    return "{% macro strftime_now(format) %}{{ format" + replacements + " }}{% endmacro %}\n"


def processor_from_backbone(backbone: str, summary: str = SUMMARY_PROMPT, **kwargs) -> ProcessorMixin:
    """Load a backbone's native processor and give it UniME's chat template.

    Args:
        backbone (`str`): Folder or Hub id of the backbone.
        summary (`str`, *optional*): Prompt of an item without an instruction, see [`chat_template`].
        kwargs: Passed to `AutoProcessor.from_pretrained` (image size, ...).
    """
    processor = AutoProcessor.from_pretrained(backbone, **{"trust_remote_code": False} | kwargs)
    if TEMPLATE_HEAD not in (processor.chat_template or ""):  # a plain export already has UniME's template
        processor.chat_template = chat_template(processor, summary)
    return processor


def to_item_dict(item: Item) -> dict[str, Any]:
    """Return an item as a dict with the keys `text`, `images`, `content` and `instruction`.

    `content` has the order of texts, images and videos: each text as a `str`, each image as its index in the list
    `images`, each video as a tuple of the indices of its frames in this list. `text` joins the texts by line feeds,
    for encoders that have no order.

    Raises:
        ValueError: The item contains neither text, image nor video, a value of the wrong type, a text that is not
            valid Unicode, or an unknown key.
    """
    if isinstance(item, str):
        item = {"text": item}
    elif isinstance(item, Image.Image):
        item = {"image": item}
    elif isinstance(item, (list, tuple)):
        item = {"content": item}
    elif not isinstance(item, Mapping):
        raise ValueError(
            "expected a str, a PIL image, a list of them or a dict with 'text' and/or 'image', got "
            f"{type(item).__name__}"
        )
    unknown = [repr(key) for key in item if key not in ITEM_KEYS]
    if unknown:
        raise ValueError(f"unknown item key {', '.join(unknown)}; valid keys are {', '.join(ITEM_KEYS)}")
    text, images, frames, content, instruction = (item.get(key) for key in ITEM_KEYS)
    expected_image = "'image' must be a PIL image or a list of them"
    for name, value in (("text", text), ("instruction", instruction)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"'{name}' must be a str, got {type(value).__name__}")
    if content is None:
        stills = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
        frames = [] if frames is None else _frames(frames)
        images = [*frames, *stills]
        video = [tuple(range(len(frames)))] if frames else []
        content = [*video, *range(len(frames), len(images)), *([] if text is None else [text])]
    elif text is not None or images is not None or frames is not None:
        raise ValueError("'content' replaces 'text' and 'image': put the text and the images into 'content'")
    else:
        content, images = split_content(content)
        expected_image = "a part of 'content' must be a text or a PIL image"
    texts = [part for part in content if isinstance(part, str)]
    for name, value in (*(("text", text) for text in texts), ("instruction", instruction or "")):
        try:
            value.encode()
        except UnicodeEncodeError as error:  # a lone surrogate, which tokenizers reject
            raise ValueError(
                f"'{name}' is not valid Unicode at character {error.start}: remove that character"
            ) from None
    for image in images:
        if not isinstance(image, Image.Image):
            raise ValueError(f"{expected_image}, got {type(image).__name__}: open it with PIL.Image")
    if not content:
        raise ValueError(f"expected 'text' or 'image' (or both), got the keys {sorted(item)}")
    text = "\n".join(texts) if texts else None
    return {"text": text, "images": images, "content": content, "instruction": instruction}


def render(processor: ProcessorMixin, items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return normalized items as the chat template of a processor renders them, videos with the times of their frames.

    Raises:
        TemplateError: The template has no prompt for such an item.
    """
    return processor.apply_chat_template([to_messages(item) for item in items], tokenize=False, with_times=True)


def _frames(frames: Any) -> list[Any]:
    if not isinstance(frames, (list, tuple)) or not frames:
        given = "an empty list" if isinstance(frames, (list, tuple)) else type(frames).__name__
        raise ValueError(f"'video' must be a list of PIL images, the frames in their order, got {given}")
    return list(frames)


def split_content(content: Any) -> tuple[list[Part], list[Any]]:
    """Return the order of a list of texts, images and videos, and the images.

    Args:
        content (`list`): Each part is a text, an image, `{"type": "text", "text": ...}`, `{"type": "image", "image":
            ...}` or `{"type": "video", "video": [...]}`. An image may have any type except `str` and `dict`, in a dict
            any type.

    Returns:
        `tuple[list[str | int | tuple[int, ...]], list]`: The order, with each image as its index in the second list,
        and each video as those of its frames. Adjacent texts are joined by a line feed; an empty text before an image
        or after other texts is left out.

    Raises:
        ValueError: It is not a list, it is empty, or a part has another form.
    """
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"'content' must be a list of texts and images, got {type(content).__name__}")
    if not content:
        raise ValueError("'content' is empty: it needs a text or an image")
    order: list[Part] = []
    images: list[Any] = []
    for part in content:
        if isinstance(part, Mapping):
            kind, value = _read_part(part)
        else:
            kind, value = ("text" if isinstance(part, str) else "image"), part
        last = order[-1] if order else None
        if kind == "text" and isinstance(last, str):
            order[-1] = f"{last}\n{value}" if last else value
        elif kind == "text":
            order.append(value)
        else:
            if last == "":
                order.pop()
            frames = _frames(value) if kind == "video" else [value]
            indices = tuple(range(len(images), len(images) + len(frames)))
            order.append(indices if kind == "video" else indices[0])
            images += frames
    if order and order[-1] == "" and any(isinstance(part, str) for part in order[:-1]):
        order.pop()
    return order, images


def _read_part(part: Mapping[str, Any]) -> tuple[str, Any]:
    values = {key: value for key, value in part.items() if value is not None}
    kind = values.pop("type", None)
    if (kind == "text" and isinstance(values.get("text"), str)) or kind in ("image", "video"):
        if values.keys() == {kind}:
            return kind, values[kind]
    raise ValueError(
        "a part of 'content' must be a text, an image, {'type': 'text', 'text': ...}, {'type': 'image', 'image': "
        f"...}} or {{'type': 'video', 'video': [...]}}, got a dict with the keys {sorted(map(str, part))}"
    )


def join_content(order: Sequence[Part], images: Sequence[Any]) -> list[Any]:
    """Return the list of texts, images and videos that [`split_content`] split.

    Args:
        order (`list`): Texts, indices of images, and tuples of the indices of frames.
        images (`list`): Images and frames, whatever stands for them.
    """
    return [
        part
        if isinstance(part, str)
        else images[part]
        if isinstance(part, int)
        else {"type": "video", "video": [images[index] for index in part]}
        for part in order
    ]


def images_and_videos(item: Mapping[str, Any]) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """Return the images of a normalized item that are no frames of videos, and the frames of its videos."""
    images = [item["images"][part] for part in item["content"] if isinstance(part, int)]
    videos = [[item["images"][index] for index in part] for part in item["content"] if isinstance(part, tuple)]
    return images, videos


def frames_as_images(item: Item) -> Item:
    """Return an item with the frames of its videos as separate images; an item without a video stays as it is.

    Raises:
        ValueError: The item is malformed.
    """
    parts = to_item_dict(item)
    if not any(isinstance(part, tuple) for part in parts["content"]):
        return item
    flat = [index for part in parts["content"] for index in (part if isinstance(part, tuple) else (part,))]
    return {"content": join_content(flat, parts["images"]), "instruction": parts["instruction"]}


def is_interleaved(item: Mapping[str, Any]) -> bool:
    """Return whether a text of a normalized item stands before an image."""
    return any(isinstance(part, str) for part in item["content"][:-1])  # adjacent texts have been joined


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as the model sees it, which is how a viewer shows it: sRGB, upright, transparency on white.

    The image itself stays as it is: a file that is opened but not decoded yet is decoded in a copy. The EXIF
    orientation is applied. An animation gives its current frame, which is the first one of a newly opened file. A
    16-bit image keeps the upper 8 of the bits that it uses. Color profiles (Display P3, Adobe RGB, CMYK, ...) and the
    gamma of a PNG are applied. An image that needs no change is returned as it is.

    Raises:
        ValueError: The image is empty, or its mode has no RGB meaning.
        Exception: The file is damaged; Pillow's decoders raise errors of many types.
    """
    if 0 in image.size:
        raise ValueError(f"it is empty ({image.width} x {image.height} pixels): use an image with pixels")
    image = decoded(image)
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):  # Pillow would clip all values at 255
        raise ValueError(f"its mode {image.mode} has no RGB meaning: save it with 8 or 16 bits per channel")
    if image.mode.startswith("I;16"):
        image = to_8_bit(image)
    image = to_srgb(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def decoded(image: Image.Image) -> Image.Image:
    """Return an image whose pixels are in memory: the image itself, or a copy of a file that is only opened."""
    if isinstance(image, ImageFile.ImageFile) and image._im is None:
        image = _reopen(image)
    image.load()
    return image


def _reopen(image: ImageFile.ImageFile) -> ImageFile.ImageFile:
    """Open the file of an image that is not decoded yet once more, at its frame and in its draft mode."""
    with _FILE_LOCK:  # the same image may be read by several threads
        file = cast(IO[bytes], image.fp)
        position = file.tell()
        file.seek(0)
        copy = type(image)(BytesIO(file.read()))
        file.seek(position)
    if image.tell():
        copy.seek(image.tell())
    copy.draft(image.mode, image.size)
    return copy


def to_messages(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a normalized item as the conversation that chat templates and sentence-transformers expect.

    An empty text at the end tells UniME's template that the texts before the last image keep their place.
    """
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else part
        if isinstance(part, dict)  # a video
        else {"type": "image", "image": part}
        for part in join_content(item["content"], item["images"])
    ]
    if is_interleaved(item) and not isinstance(item["content"][-1], str):
        content.append({"type": "text", "text": ""})
    turns = [{"role": "user", "content": content}]
    if item["instruction"]:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": item["instruction"]}]})
    return turns


def normalize_item(item: Item, index: int) -> dict[str, Any]:
    """Return an item as [`to_item_dict`] does, with its images converted by [`to_rgb`].

    Args:
        item (`str`, `PIL.Image`, `list` or `dict`): The item.
        index (`int`): Index of the item, used in error messages.

    Raises:
        ValueError: The item is malformed, or one of its images is damaged.
    """
    try:
        normalized = to_item_dict(item)
    except ValueError as error:
        raise ValueError(f"item {index}: {error}") from None
    try:
        images = [to_rgb(image) for image in normalized["images"]]
    except Exception as error:  # decoding happens here, and Pillow raises errors of many types
        raise ValueError(f"item {index}: its image cannot be read ({error}): repair or replace it") from None
    for video in (part for part in normalized["content"] if isinstance(part, tuple)):
        sizes = sorted({images[frame].size for frame in video})
        if len(sizes) > 1:
            shapes = " and ".join(f"{width} x {height}" for width, height in sizes)
            raise ValueError(
                f"item {index}: the frames of a video must have one size, got {shapes} pixels: resize them"
            )
    return normalized | {"images": images}


def _hash_pixels(image: Image.Image) -> bytes:
    digest = hashlib.sha256()  # most processors have instructions for it
    rows = max(1, HASHED_BYTES // (3 * image.width))  # in strips, which stay in the caches
    for top in range(0, image.height, rows):
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.digest()


def item_hash(item: Mapping[str, Any]) -> int:
    """Return a 63-bit hash of a normalized item. Equal items have equal hashes in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for text in (item["instruction"], item["text"]):
        encoded = b"" if text is None else b"+" + text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    for image in item["images"]:
        digest.update(f"{image.size}".encode() + _hash_pixels(image))
    if is_interleaved(item) or any(isinstance(part, tuple) for part in item["content"]):
        # Otherwise the images come first, and the order adds nothing.
        digest.update(repr(item["content"]).encode())
    return int.from_bytes(digest.digest(), "big") >> 1


__all__ = [
    "Item",
    "chat_template",
    "decoded",
    "frames_as_images",
    "images_and_videos",
    "is_interleaved",
    "item_hash",
    "join_content",
    "normalize_item",
    "processor_from_backbone",
    "render",
    "split_content",
    "to_item_dict",
    "to_messages",
    "to_rgb",
]
