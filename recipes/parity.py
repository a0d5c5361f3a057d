"""Compare the embeddings of an OpenAI-compatible `/v1/embeddings` endpoint with those of the local checkpoint.

    python recipes/parity.py --url http://localhost:8000/v1 --model checkpoints/unime-tiny

The exit status is 1 if the cosine of any item is below the threshold, and 2 if the comparison fails. `--form` selects
the request:

* `chat`: a conversation in `messages`, with images as data URLs and the instruction as system message; the server
  renders the checkpoint's template. `unime serve` and vLLM accept it.
* `rendered`: the prompt, rendered here, in `input`; for text servers that do not use templates, such as
  text-embeddings-inference.
* `input`: the bare text in `input`. `unime serve` renders it; vLLM and text-embeddings-inference do not, so their
  embeddings differ, and this form measures by how much.
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
LONG_TEXTS = [f"{text} " * count for text, count in (("A dog runs over the wet grass.", 40), ("a red kite,", 60))]
IMAGE_SIZES = [(64, 64), (224, 224), (320, 96), (96, 320), (640, 480)]  # (width, height) in pixels
INSTRUCTIONS = {"text": PROMPTS["text_to_image"], "image": PROMPTS["image"], "both": PROMPTS["question"]}


@dataclass
class ScriptArguments:
    """The server, the checkpoint, and how close their embeddings must be."""

    url: str = field(metadata={"help": "Base URL of the server; /embeddings and /models are appended."})
    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "The local checkpoint."})
    served: str | None = field(
        default=None, metadata={"help": "Name of the model on the server. Default: the first that it lists."}
    )
    form: str = field(
        default="chat", metadata={"help": "Form of the request.", "choices": ["chat", "rendered", "input"]}
    )
    threshold: float = field(default=0.999, metadata={"help": "Minimum cosine of every item."})
    key: str = field(default="none", metadata={"help": "Bearer token for the server."})
    timeout: float = field(default=120.0, metadata={"help": "Seconds to wait for a response."})
    json: bool = field(default=False, metadata={"help": "Print JSON."})


def draw_image(index: int, size: tuple[int, int]) -> Image.Image:
    """Draw an image with a color gradient and an ellipse.

    Args:
        index (`int`): Determines the colors and the ellipse.
        size (`tuple[int, int]`): Width and height in pixels.
    """
    across = Image.linear_gradient("L").rotate(90).resize(size)
    down = Image.linear_gradient("L").resize(size)
    image = Image.merge("RGB", [across, down, Image.new("L", size, 50 * index % 256)])
    corners = [size[0] // 4, size[1] // 4, size[0] // 4 * (2 + index % 2), size[1] // 2]
    ImageDraw.Draw(image).ellipse(corners, fill=(40 * index % 256, 200, 255 - 30 * index))
    return image


def sample_items() -> dict[str, list[dict[str, Any]]]:
    """Return the items to compare, by modality, with and without an instruction."""
    images = [draw_image(index, size) for index, size in enumerate(IMAGE_SIZES)]
    by_modality = {
        "text": [{"text": text} for text in TEXTS],
        "image": [{"image": image} for image in images],
        "both": [{"text": text, "image": image} for text, image in zip(TEXTS, images, strict=True)],
    }
    groups = {}
    for modality, items in by_modality.items():
        groups[modality] = items
        groups[f"{modality}, instruction"] = [item | {"instruction": INSTRUCTIONS[modality]} for item in items]
    groups["several images"] = [{"text": TEXTS[0], "image": images[:2]}, {"image": images[1:4]}]
    groups["long text"] = [{"text": text} for text in LONG_TEXTS]
    return groups


def chat_body(item: dict[str, Any]) -> Body:
    """Return the request for an item as a conversation, with its images as data URLs."""
    conversation = to_messages(to_item_dict(item))
    for message in conversation:
        message["content"] = [_request_part(part) for part in message["content"]]
    return {"messages": conversation}


def _request_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    file = BytesIO()
    part["image"].save(file, "PNG")  # lossless, so that only the models are compared
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"}}


def rendered_body(item: dict[str, Any], processor: ProcessorMixin) -> Body:
    """Return the request for a text item as the prompt rendered by the checkpoint's template."""
    (prompt,) = processor.apply_chat_template([to_messages(to_item_dict(item))], tokenize=False)
    bos_token = processor.tokenizer.bos_token
    # The server must not add a second one.
    return {"input": prompt} | ({"add_special_tokens": False} if bos_token and prompt.startswith(bos_token) else {})


class Endpoint:
    """An OpenAI-compatible embedding server.

    Args:
        url (`str`): Base URL of the server.
        key (`str`): Bearer token.
        timeout (`float`): Seconds to wait for a response.
        served (`str`, *optional*): Name of the model on the server. Defaults to the first that it lists.
    """

    def __init__(self, url: str, key: str, timeout: float, served: str | None = None):
        self.url, self.key, self.timeout = url.rstrip("/"), key, timeout
        self.served = served or self._request("/models")["data"][0]["id"]

    def embed(self, body: Body) -> np.ndarray:
        """Return the embedding of one item, `(dimensions,)`.

        Raises:
            ValueError: The server cannot be reached, or it refuses the request.
        """
        answer = self._request("/embeddings", {"model": self.served, "encoding_format": "float"} | body)
        return np.asarray(answer["data"][0]["embedding"], dtype=np.float32)

    def _request(self, path: str, body: Body | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, data, headers), timeout=self.timeout
            ) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")[:500]
            raise ValueError(f"{self.url}{path} refused the request with status {error.code}: {reason}") from None
        except OSError as error:
            raise ValueError(f"{self.url}{path} does not respond ({error}): check that the server is up") from None


def cosines(local: np.ndarray, served: list[np.ndarray]) -> np.ndarray:
    """Return the cosine of each pair of embeddings.

    Args:
        local (`np.ndarray` of shape `(items, dimensions)`): The checkpoint's embeddings, of unit length.
        served (`list[np.ndarray]`): The server's embeddings, of any length.

    Raises:
        ValueError: The server's embeddings have another dimension.
    """
    wrong = {len(embedding) for embedding in served} - {local.shape[1]}
    if wrong:
        raise ValueError(
            f"the checkpoint's embeddings have {local.shape[1]} dimensions, but the server's have {wrong.pop()}: "
            "serve the same checkpoint"
        )
    embeddings = np.stack(served)
    return (local * embeddings).sum(axis=1) / np.linalg.norm(embeddings, axis=1)


def compare(script: ScriptArguments) -> dict[str, Any]:
    """Embed all items locally and on the server, and return the least and mean cosine of each group."""
    endpoint = Endpoint(script.url, script.key, script.timeout, script.served)
    model, processor = load_model(script.model, dtype="float32")
    bodies = {
        "chat": chat_body,
        "rendered": lambda item: rendered_body(item, processor),
        "input": lambda item: {"input": item["text"]},
    }
    rows = {}
    for name, items in sample_items().items():
        # Images need a conversation, and bare text has no place for an instruction.
        if (script.form != "chat" and "image" in items[0]) or (script.form == "input" and "instruction" in items[0]):
            continue
        served = [endpoint.embed(bodies[script.form](item)) for item in items]
        similarities = cosines(model.encode(items, processor), served)
        rows[name] = {"items": len(items), "least": float(similarities.min()), "mean": float(similarities.mean())}
    least = min(row["least"] for row in rows.values())
    return {
        "url": script.url,
        "served": endpoint.served,
        "model": script.model,
        "form": script.form,
        "threshold": script.threshold,
        "rows": rows,
        "equal": bool(least >= script.threshold),  # False for NaN, too
    }


def table(result: dict[str, Any]) -> str:
    """Return a comparison as a table of text."""
    lines = [f"{result['served']} at {result['url']} compared with {result['model']}, form {result['form']}"]
    lines.append(f"{'':<22}{'items':>6}{'least cosine':>14}{'mean cosine':>13}")
    for name, row in result["rows"].items():
        below = "" if row["least"] >= result["threshold"] else "  below the threshold"
        lines.append(f"{name:<22}{row['items']:>6}{row['least']:>14.6f}{row['mean']:>13.6f}{below}")
    verdict = "the embeddings are equal" if result["equal"] else "the embeddings differ"
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
