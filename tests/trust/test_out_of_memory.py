"""A micro-batch that does not fit into memory is split and reported; an item that does not fit alone is named."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ProcessorMixin

from unime import UniMEModel, load_model
from unime.corpus.entry import Entry
from unime.index.entry_embedding import embed_entries
from unime.serve.embedder import Embedder, Task


TINY = str(Path(__file__).resolve().parents[2] / "checkpoints" / "unime-tiny")
COLORS = ["red", "green", "blue", "white"]
ITEMS = [f"number {number}" + " and more" * number for number in range(12)] + [
    {"text": color, "image": Image.new("RGB", (40, 40), color)} for color in COLORS
]
LONG = "a very long text " * 30


@pytest.fixture(scope="module")
def loaded() -> tuple[UniMEModel, ProcessorMixin]:
    return load_model(TINY, dtype="float32")


@contextmanager
def memory_for(model: UniMEModel, tokens: int) -> Iterator[None]:
    """Raise the out-of-memory error of an accelerator for passes with more tokens than this, padding included."""

    def allocate(_: UniMEModel, __: tuple, inputs: dict) -> None:
        if inputs["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    hook = model.register_forward_pre_hook(allocate, with_kwargs=True)
    yield
    hook.remove()


@pytest.mark.parametrize("tokens", [60, 100, 250])
def test_encode_gives_the_same_embeddings_in_less_memory_and_logs_a_warning(
    loaded: tuple[UniMEModel, ProcessorMixin], caplog: pytest.LogCaptureFixture, tokens: int
) -> None:
    model, processor = loaded
    expected = model.encode(ITEMS, processor)
    assert not caplog.records
    with memory_for(model, tokens), caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(model.encode(ITEMS, processor), expected, atol=1e-5)
    assert caplog.records
    for record in caplog.records:
        assert "do not fit into the memory of cpu: splitting them in halves" in record.getMessage()


def test_an_item_that_does_not_fit_alone_is_named(
    loaded: tuple[UniMEModel, ProcessorMixin], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded
    monkeypatch.setattr("unime.modeling_unime.ENCODE_WINDOW_ITEMS", 5)  # the item is the third of its window
    with memory_for(model, 60), pytest.raises(ValueError) as error:
        model.encode([*ITEMS[:7], LONG], processor)
    assert str(error.value).startswith("item 7 (") and "\n" not in str(error.value)
    assert "does not fit into the memory of cpu even on its own: shorten its text" in str(error.value)


def test_other_errors_are_not_treated_as_out_of_memory(loaded: tuple[UniMEModel, ProcessorMixin]) -> None:
    model, processor = loaded

    def fail(_: UniMEModel, __: tuple) -> None:
        raise RuntimeError("device-side assert triggered")

    hook = model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        model.encode(ITEMS, processor)
    hook.remove()


def test_a_long_job_rejects_an_item_that_does_not_fit_and_continues(loaded: tuple[UniMEModel, ProcessorMixin]) -> None:
    model, processor = loaded
    entries = [Entry(str(number), text) for number, text in enumerate([*ITEMS[:4], LONG, *ITEMS[4:8]])]
    with memory_for(model, 60):
        (window,) = embed_entries(model, processor, entries)
    assert [entry.id for entry in window.entries] == ["0", "1", "2", "3", "5", "6", "7", "8"]
    np.testing.assert_allclose(window.vectors, model.encode(ITEMS[:8], processor), atol=1e-5)
    (rejected,) = window.rejected
    assert rejected.id == "4" and "even on its own: shorten its text" in rejected.reason


def test_a_server_refuses_only_the_request_that_does_not_fit(loaded: tuple[UniMEModel, ProcessorMixin]) -> None:
    model, processor = loaded
    embedder = Embedder(model, processor)
    tasks = [Task({"text": text}, truncate=number % 2 == 0) for number, text in enumerate([*ITEMS[:4], LONG])]
    expected = {index: result for results in embedder(tasks) for index, result in results.items()}
    with memory_for(model, 60):
        served = {index: result for results in embedder(tasks) for index, result in results.items()}
    bad = served.pop(len(tasks) - 1)
    for index, after in served.items():
        before = expected[index]
        np.testing.assert_allclose(after.embedding, before.embedding, atol=1e-5)
        assert after.tokens == before.tokens
    assert isinstance(bad, ValueError) and "even on its own" in str(bad)


LIMITED_PROCESS = """
import logging, resource, sys
from pathlib import Path
import numpy as np
import torch
from unime import load_model

torch.set_num_threads(1)
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
model, processor = load_model(sys.argv[1], dtype="float32")
items = [f"number {number} " + "and so on " * 40 for number in range(256)]
expected = model.encode(items, processor, micro_batch_tokens=1000)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 120 * 2**20, resource.RLIM_INFINITY))
embeddings = model.encode(items, processor, micro_batch_tokens=10**6)
np.testing.assert_allclose(embeddings, expected, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_a_process_with_too_little_real_memory_embeds_in_halves() -> None:
    process = subprocess.run(
        [sys.executable, "-c", LIMITED_PROCESS, TINY], capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "do not fit into the memory of cpu: splitting them" in process.stdout
    assert process.stdout.endswith("equal\n")
