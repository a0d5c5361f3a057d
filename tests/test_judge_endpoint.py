"""Judging through a server with the API of OpenAI, as vLLM has it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import exp
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from unime import judge_endpoint
from unime.judge_endpoint import JudgeEndpoint
from unime.judge_model import JudgeModel


QUERY = {"image": Image.new("RGB", (40, 24), "red"), "text": "What is this?"}
CANDIDATES = ["a pizza", {"image": Image.new("RGB", (24, 48), "blue"), "text": "blue"}, "a cat on a red tile"]
ALL_TOKENS = 1000  # more than a tiny vocabulary


@pytest.fixture
def answers() -> Iterator[tuple[str, list]]:
    """Start a server that gives the listed answers, each a status and a value, and then the last one again."""
    listed: list[tuple[int, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, content = listed.pop(0) if len(listed) > 1 else listed[0]
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", listed
    server.shutdown()
    server.server_close()


def tokens(**logprobs: float) -> dict:
    listed = [{"token": token, "logprob": logprob} for token, logprob in logprobs.items()]
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": listed}]}}]}


def test_the_score_is_the_softmax_over_both_labels(answers) -> None:
    url, listed = answers
    listed.append((200, tokens(Yes=-1.0, No=-2.05, Maybe=-9.0)))
    assert JudgeEndpoint(url, "served", repetition_penalty=1.0)("q", ["c"]) == pytest.approx([1 / (1 + exp(-1.05))])
    assert JudgeEndpoint(url, "served")("q", ["c", "d"]) == pytest.approx([1 / (1 + exp(-1.0))] * 2)
    listed[0] = (200, tokens(Yes=-0.1, Maybe=-4.1))  # "No" counts as the last listed token
    assert JudgeEndpoint(url, "served", repetition_penalty=1.0)("q", ["c"]) == pytest.approx([1 / (1 + exp(-4.0))])


def test_what_the_server_cannot_judge_is_an_error_of_the_pair(answers) -> None:
    url, listed = answers
    listed.append((400, "the prompt is too long"))
    with pytest.raises(ValueError, match="the server refuses the pair .*the prompt is too long"):
        JudgeEndpoint(url, "served")("q", ["c"])
    listed[0] = (200, tokens(Maybe=-1.0))
    with pytest.raises(ValueError, match="answers neither Yes nor No, but 'Maybe': choose another judge"):
        JudgeEndpoint(url, "served")("q", ["c"])


def test_a_busy_server_is_asked_again_and_one_that_cannot_be_used_ends_the_run(answers) -> None:
    url, listed = answers
    listed += [(503, "busy"), (200, tokens(Yes=-1.0, No=-1.0))]
    assert JudgeEndpoint(url, "served")("q", ["c"]) == [0.5]
    listed[0] = (401, "wrong key")
    with pytest.raises(ConnectionError, match="401.*wrong key.*check the address, the model and the key"):
        JudgeEndpoint(url, "served", api_key="wrong")("q", ["c"])
    listed[0] = (200, {"choices": [{"message": {"content": "Yes"}}]})
    with pytest.raises(ConnectionError, match="without the log-probabilities"):
        JudgeEndpoint(url, "served")("q", ["c"])


def test_a_server_that_is_not_there_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_endpoint, "MAX_ATTEMPTS", 1)
    with pytest.raises(ConnectionError, match="does not answer .*: start the server"):
        JudgeEndpoint("http://127.0.0.1:9/v1", "served")("q", ["c"])


def test_the_first_token_of_a_label_is_the_longest_that_it_starts_with() -> None:
    assert judge_endpoint._first_token("Yes", {"Y": -1.0, "Yes": -2.0, "": -3.0, "Yesterday": 0.0}) == "Yes"
    assert judge_endpoint._first_token("Yes", {" Yes": -1.0, "Yes": -2.0}) == "Yes"
    assert judge_endpoint._first_token("Yes", {"Y": -1.0, " Yes": -2.0, " ": 0.0}) == " Yes"
    assert judge_endpoint._first_token("No", {"Yes": -2.0}) is None


@pytest.mark.slow
def test_scores_of_a_server_process_equal_those_of_the_model(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_endpoint, "TOP_LOGPROBS", ALL_TOKENS)  # "Yes" is rarely among 20 of random weights
    folder = tiny_model("qwen2.5-vl")
    command = [sys.executable, str(Path(__file__).parent / "judge_server.py"), str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = Timer(240, server.kill)
    deadline.start()
    try:
        address = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
        local = JudgeModel(model, AutoProcessor.from_pretrained(folder), repetition_penalty=1.0)(QUERY, CANDIDATES)
        served = JudgeEndpoint(address, "tiny", repetition_penalty=1.0)(QUERY, CANDIDATES)
        assert served == pytest.approx(local, abs=1e-5)
    finally:
        deadline.cancel()
        server.kill()
        server.wait(30)
