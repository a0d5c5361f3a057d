"""Compare an OpenAI-compatible `/v1/embeddings` endpoint with the local checkpoint, modality by modality.

    python recipes/parity.py --url http://localhost:8000/v1 --model checkpoints/unime-tiny

Status 1 if any item's cosine is below the threshold. `--form` says what is sent:

* `chat`: a conversation in `messages`, images as data URLs, the instruction as system message: the server renders
  the checkpoint's template. What `unime serve` and vLLM take.
* `rendered`: the prompt, rendered here, in `input`: for servers of text that know no templates, such as
  text-embeddings-inference.
* `input`: the bare text in `input`. `unime serve` renders it; vLLM and text-embeddings-inference do not, so their
  embeddings of it are others: this form shows by how much.
"""

import json
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from transformers import HfArgumentParser, ProcessorMixin

from unime import load_model
from unime.checkpoint import PROMPTS
from unime.processing_unime import to_item_dict, to_messages


Body = dict[str, Any]
TEXTS = [
    "a cat",
    "A slice of pizza, half eaten, on a paper plate.",
    "Ein Pfad führt durch den Wald — 森の中の道 🌲",
    "two dogs\nplay with a ball; " * 20,
    "a text that says <image> and <|im_end|>",
]
SIZES = [(64, 64), (224, 224), (320, 96), (96, 320), (640, 480)]  # (width, height)
INSTRUCTIONS = {"text": PROMPTS["text_to_image"], "image": PROMPTS["image"], "both": PROMPTS["question"]}


@dataclass
class ScriptArguments:
    """Which server, which checkpoint, and how close they must be."""

    url: str = field(metadata={"help": "Base address that the server's /embeddings and /models follow."})
    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "The local checkpoint."})
    served: str | None = field(default=None, metadata={"help": "The model's name there; the first if not given."})
    form: str = field(default="chat", metadata={"help": "What is sent.", "choices": ["chat", "rendered", "input"]})
    threshold: float = field(default=0.999, metadata={"help": "Least cosine of any item."})
    key: str = field(default="none", metadata={"help": "Bearer token for the server."})
    timeout: float = field(default=120.0, metadata={"help": "Seconds to wait for an answer."})
    json: bool = field(default=False, metadata={"help": "Print JSON."})


def draw_image(number: int, size: tuple[int, int]) -> Image.Image:
    """Draw an image with a colour gradient and a shape, different for each number."""
    across = Image.linear_gradient("L").rotate(90).resize(size)
    down = Image.linear_gradient("L").resize(size)
    drawn = Image.merge("RGB", [across, down, Image.new("L", size, 50 * number % 256)])
    corner = [size[0] // 4, size[1] // 4, size[0] // 4 * (2 + number % 2), size[1] // 2]
    ImageDraw.Draw(drawn).ellipse(corner, fill=(40 * number % 256, 200, 255 - 30 * number))
    return drawn


def probes() -> dict[str, list[dict[str, Any]]]:
    """Give the items of every row of the table, by modality and with or without instruction."""
    pictures = [draw_image(number, size) for number, size in enumerate(SIZES)]
    plain = {
        "text": [{"text": text} for text in TEXTS],
        "image": [{"image": image} for image in pictures],
        "both": [{"text": text, "image": image} for text, image in zip(TEXTS, pictures, strict=True)],
    }
    rows = {}
    for modality, items in plain.items():
        rows[modality] = items
        rows[f"{modality}, instruction"] = [item | {"instruction": INSTRUCTIONS[modality]} for item in items]
    return rows


def chat_body(item: dict[str, Any]) -> Body:
    """Write an item as a conversation with its images as data URLs."""
    conversation = to_messages(to_item_dict(item))
    for message in conversation:
        message["content"] = [_sent(part) for part in message["content"]]
    return {"messages": conversation}


def _sent(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    file = BytesIO()
    part["image"].save(file, "PNG")  # without loss: what is compared is the model, not a codec
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"}}


def rendered_body(item: dict[str, Any], processor: ProcessorMixin) -> Body:
    """Write a text item as the prompt that the template makes of it."""
    (prompt,) = processor.apply_chat_template([to_messages(to_item_dict(item))], tokenize=False)
    begin = processor.tokenizer.bos_token
    # A prompt that begins with that token itself must not get a second one.
    return {"input": prompt} | ({"add_special_tokens": False} if begin and prompt.startswith(begin) else {})


class Endpoint:
    """An OpenAI-compatible server of embeddings."""

    def __init__(self, url: str, key: str, timeout: float, served: str | None = None):
        self.url, self.key, self.timeout = url.rstrip("/"), key, timeout
        self.served = served or self._ask("/models")["data"][0]["id"]

    def embed(self, body: Body) -> np.ndarray:
        """Ask for one embedding, `(dimensions,)`.

        Raises:
            ValueError: The server cannot be reached, or it refuses the request.
        """
        answer = self._ask("/embeddings", {"model": self.served, "encoding_format": "float"} | body)
        return np.asarray(answer["data"][0]["embedding"], dtype=np.float32)

    def _ask(self, path: str, body: Body | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, data, headers), timeout=self.timeout
            ) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            raise ValueError(f"{self.url}{path} refused the request with status {error.code}: {said}") from None
        except OSError as error:
            raise ValueError(f"{self.url}{path} does not answer ({error}): is the server up?") from None


def cosines(ours: np.ndarray, theirs: list[np.ndarray]) -> np.ndarray:
    """Give the cosine of each pair; the server's vectors need not be of unit length.

    Raises:
        ValueError: The server's vectors have another number of dimensions.
    """
    wrong = {len(vector) for vector in theirs} - {ours.shape[1]}
    if wrong:
        raise ValueError(f"the checkpoint has {ours.shape[1]} dimensions, the server answers {wrong.pop()}")
    vectors = np.stack(theirs)
    return (ours * vectors).sum(axis=1) / np.linalg.norm(vectors, axis=1)


def compare(script: ScriptArguments) -> dict[str, Any]:
    """Embed all probes here and there; gives the cosines' least and mean of each row."""
    endpoint = Endpoint(script.url, script.key, script.timeout, script.served)
    model, processor = load_model(script.model, dtype="float32")
    bodies = {
        "chat": chat_body,
        "rendered": lambda item: rendered_body(item, processor),
        "input": lambda item: {"input": item["text"]},
    }
    rows = {}
    for name, items in probes().items():
        # What a form cannot carry is not asked: images need a conversation, bare text has no place for instructions.
        if (script.form != "chat" and "image" in items[0]) or (script.form == "input" and "instruction" in items[0]):
            continue
        found = cosines(model.encode(items, processor), [endpoint.embed(bodies[script.form](item)) for item in items])
        rows[name] = {"items": len(items), "least": float(found.min()), "mean": float(found.mean())}
    least = min(row["least"] for row in rows.values())
    return {
        "url": script.url,
        "served": endpoint.served,
        "model": script.model,
        "form": script.form,
        "threshold": script.threshold,
        "rows": rows,
        "equal": bool(least >= script.threshold),  # false for a vector that is not a number, too
    }


def table(result: dict[str, Any]) -> str:
    """Lay a comparison out for reading."""
    lines = [f"{result['served']} at {result['url']} against {result['model']}, sent as {result['form']}"]
    lines.append(f"{'':<22}{'items':>6}{'least cosine':>14}{'mean cosine':>13}")
    for name, row in result["rows"].items():
        below = "" if row["least"] >= result["threshold"] else "  below the threshold"
        lines.append(f"{name:<22}{row['items']:>6}{row['least']:>14.6f}{row['mean']:>13.6f}{below}")
    verdict = "the same embeddings" if result["equal"] else "other embeddings"
    return "\n".join([*lines, f"{verdict} (threshold {result['threshold']})"])


if __name__ == "__main__":
    (arguments,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()
    try:
        outcome = compare(arguments)
    except (ValueError, OSError) as error:
        print(f"parity: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(outcome, indent=2) if arguments.json else table(outcome))
    sys.exit(0 if outcome["equal"] else 1)
