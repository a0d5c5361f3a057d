"""Judge candidates of queries with an OpenAI-compatible server that returns log-probabilities, such as vLLM."""

import json
import math
import os
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

from PIL import Image

from .judging import PUBLISHED_REPETITION_PENALTY, Conversation, pairwise_messages
from .processing_unime import Item


TOP_LOGPROBS = 20  # the most that OpenAI's API and vLLM return by default
MAX_ATTEMPTS = 6  # of a request that the server could not answer; the waits between them are 1, 2, 4, ... seconds
RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})


class JudgeEndpoint:
    """A served model that answers whether a candidate meets the requirements of a query.

    The score is exp(y) / (exp(y) + exp(n)) for the log-probabilities y and n of the first tokens of "Yes" and "No". A
    label that is not among the 20 most probable tokens counts as the last of them.

    Args:
        url (`str`): Address of the API, such as `"http://localhost:8000/v1"`.
        model (`str`): Name of the served model.
        repetition_penalty (`float`, *optional*, defaults to 1.05): Divides y - n. That equals the repetition penalty
            of the published scores where both logits are positive, as theirs are. vLLM returns log-probabilities from
            before its own penalty by default.
        concurrency (`int`, *optional*, defaults to 32): Requests at the same time.
        timeout_s (`float`, *optional*, defaults to 600): Seconds to wait for an answer.
        api_key (`str`, *optional*): Key of the API; by default the environment variable `OPENAI_API_KEY`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        repetition_penalty: float = PUBLISHED_REPETITION_PENALTY,
        concurrency: int = 32,
        timeout_s: float = 600.0,
        api_key: str | None = None,
    ):
        self.url, self.model = url.rstrip("/") + "/chat/completions", model
        self.repetition_penalty, self.timeout_s = repetition_penalty, timeout_s
        key = os.environ.get("OPENAI_API_KEY") if api_key is None else api_key
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.threads = ThreadPoolExecutor(concurrency)

    def __call__(self, query: Item, candidates: Sequence[Item]) -> list[float]:
        """Return the probability of "Yes" for each candidate.

        Args:
            query (`str`, `PIL.Image`, `list` or `dict`): The query.
            candidates (`list`): The candidates.

        Raises:
            ValueError: An item is malformed, or the server refuses a pair or answers neither "Yes" nor "No".
            ConnectionError: The server does not answer, or not in the expected form.
        """
        return list(self.threads.map(lambda candidate: self._score(pairwise_messages(query, candidate)), candidates))

    def _score(self, conversation: Conversation) -> float:
        (turn,) = conversation
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [_part(part) for part in turn["content"]]}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }
        answer = self._post(json.dumps(body).encode())
        try:
            top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            logprobs = {entry["token"]: float(entry["logprob"]) for entry in top}
        except (KeyError, IndexError, TypeError, ValueError):
            raise ConnectionError(
                f"{self.url} answers without the log-probabilities of the most probable tokens: use a server that "
                "returns `top_logprobs`, such as vLLM"
            ) from None
        labels = [_first_token(label, logprobs) for label in ("Yes", "No")]
        if labels == [None, None]:
            most_probable = max(logprobs, key=lambda token: logprobs[token], default="")
            raise ValueError(f"the judge answers neither Yes nor No, but {most_probable!r}: choose another judge")
        last = min(logprobs.values())
        yes, no = (last if token is None else logprobs[token] for token in labels)
        return 1 / (1 + math.exp(min((no - yes) / self.repetition_penalty, 700)))

    def _post(self, body: bytes) -> Any:
        for attempt in range(MAX_ATTEMPTS):
            request = urllib.request.Request(self.url, body, self.headers)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                reason = f"{error.code}: {error.read(2000).decode(errors='replace')}"
                if error.code in (400, 413, 422):
                    raise ValueError(f"the server refuses the pair ({reason})") from None
                if error.code not in RETRIED_STATUS:
                    advice = "check the address, the model and the key"
                    raise ConnectionError(f"{self.url} answers {reason}: {advice}") from None
            except (OSError, ValueError) as error:  # no connection, a timeout, or an answer that is not JSON
                reason = str(error)
            if attempt < MAX_ATTEMPTS - 1:
                time.sleep(2**attempt)
        raise ConnectionError(f"{self.url} does not answer ({reason}): start the server, then repeat the command")


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a conversation as the API takes it, with an image as a PNG."""
    if part["type"] == "text":
        return part
    file = BytesIO()
    image: Image.Image = part["image"]
    image.save(file, format="PNG")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"}}


def _first_token(label: str, logprobs: dict[str, float]) -> str | None:
    """Return the token that a tokenizer begins a label with: the longest one that the label starts with.

    Of two such tokens, the one without a space counts; some tokenizers add a space to the beginning of a text.
    """
    matching = (token for token in logprobs if token.strip() and label.startswith(token.lstrip()))
    return max(matching, key=lambda token: (len(token.lstrip()), -len(token)), default=None)


__all__ = ["JudgeEndpoint"]
