"""Every interface gives a text the embedding that `encode` gives, or refuses it with a one-sentence error."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_index import TINY, rows
from transformers import ProcessorMixin

from unime import UniMEModel, load_model, micro_batches
from unime.checkpoint import PROMPTS
from unime.corpus.corpus import open_corpus
from unime.data.collator import ContrastiveCollator, DistillationCollator
from unime.data.jsonl import load_rows, load_texts
from unime.eval.embedding_cache import EmbeddingCache
from unime.index.index import Index
from unime.index.queries import query_item
from unime.page.collection import Collection


ErrorMessage = Callable[..., str]
Encode = Callable[[Any], np.ndarray]
Loaded = tuple[UniMEModel, ProcessorMixin]

LONG_TEXT = "a pizza to the left of a cat, " * 33_334  # a million characters
TEXTS = {
    "a million characters": LONG_TEXT,
    "one word of a million characters": "a" * 1_000_000,
    "line feeds before a text": "\n" * 10_000 + "a cat",
    "control characters": "a" + "".join(map(chr, [*range(32), *range(127, 160)])) + "cat",
    "null characters": "\0a\0cat\0",
    "escape sequences": "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "right to left": "قطة على اليسار من כלב",
    "direction overrides": "\u202ea cat\u202c \u2066a dog\u2069",
    "emoji": "👩🏽\u200d🚀🏳️\u200d🌈👨\u200d👩\u200d👧\u200d👦",
    "combining marks": "c" + "\u0301\u0302\u0303" * 60 + "at",
    "no characters": "\ufffe\uffff\U0010ffff\ue000",
    "byte order mark": "\ufeffa cat",
    "line separators": "a\r\ncat\u2028and\u2029a\x85dog\x0b",
    "template code": "{{ messages }}{% for x in y %}{# a #} {{ 7 * 7 }}",
    "markup": "<script>alert(1)</script>&amp;<img src=x onerror=alert(1)>",
    "json": '"}, {"text": "a"',
}
BLANK = {"empty": "", "white space": " \t\n\u3000 "}
INVALID = {
    "lone surrogate": ("a \ud800 cat", 2),
    "surrogates in the wrong order": ("\udc00\ud800", 0),
    "surrogate of a byte": (b"B\xe4r".decode("utf-8", "surrogateescape"), 1),
}
VALID = TEXTS | BLANK
LONG = [name for name, text in TEXTS.items() if len(text) >= 10_000]  # longer than the model's input
SHORT = [name for name in TEXTS if name not in LONG]
OVER_REQUEST_LIMIT = LONG[:2]


@pytest.fixture(scope="module")
def control(tiny: Loaded) -> str:
    """Return a text made of every control token of the model."""
    return "".join(tiny[1].tokenizer.get_added_vocab())


@pytest.fixture(scope="module")
def vectors(encode: Encode) -> dict[str, np.ndarray]:
    """Return the embedding that `encode` gives each text, the reference for the other interfaces."""
    return dict(zip(VALID, encode(list(VALID.values())), strict=True))


# encode


@pytest.mark.parametrize("key", ["text", "instruction"])
@pytest.mark.parametrize("name", VALID, ids=lambda name: f"{name}-encode")
def test_encode_gives_a_unit_vector(
    name: str, key: str, encode: Encode, vectors: Any, error_message: ErrorMessage
) -> None:
    if key == "instruction" and name in LONG:  # a prompt is never truncated
        message = error_message(lambda: encode([{"text": "a cat", "instruction": VALID[name]}]))
        assert message.startswith("item 0 needs ") and "but max_length is 1024: raise max_length" in message
        return
    vector = vectors[name] if key == "text" else encode({"text": "a cat", "instruction": VALID[name]})
    assert vector.shape == (192,) and np.isfinite(vector).all()
    np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)
    if name in LONG:  # the text is truncated
        np.testing.assert_allclose(vector, encode(VALID[name][:9000]), atol=1e-5)
        assert np.abs(vector - encode(VALID[name][:50])).max() > 1e-4


@pytest.mark.parametrize("key", ["text", "instruction"])
@pytest.mark.parametrize("name", INVALID, ids=lambda name: f"{name}-encode")
def test_encode_refuses_invalid_unicode(name: str, key: str, encode: Encode, error_message: ErrorMessage) -> None:
    text, position = INVALID[name]
    message = error_message(lambda: encode(["a cat", {"text": "a cat"} | {key: text}]))
    assert message == f"item 1: '{key}' is not valid Unicode at character {position}: remove that character"


def test_control_tokens_in_a_text_are_read_as_text(control: str, encode: Encode, tiny: Loaded) -> None:
    _, processor = tiny
    added = set(processor.tokenizer.get_added_vocab().values())

    def frame(item: dict) -> list[int]:
        ((_, tensors),) = micro_batches(processor, [item])
        return [token for token in tensors["input_ids"][0].tolist() if token in added]

    for item in ({"text": control}, {"text": "a cat", "instruction": control}):
        assert frame(item) == frame({"text": "a cat"})
        assert np.isfinite(encode(item)).all()


# Training


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Return rows of stage 2 with every text, the invalid ones last, and the valid texts of stage 1."""
    folder = tmp_path_factory.mktemp("training")
    texts = [*VALID.values(), *[text for text, _ in INVALID.values()]]
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"query": {"text": text}, "positive": {"text": "a cat"}}) + "\n" for text in texts)
    )
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in VALID.values()))
    return load_rows(folder / "rows.jsonl"), load_texts(folder / "texts.jsonl")


def same_tensors(actual: dict, expected: dict) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("name", [*SHORT, *BLANK, LONG[2]])
def test_training_reads_the_text_as_written(name: str, stage: int, training: Any, tiny: Loaded) -> None:
    prepare = partial(micro_batches, tiny[1], max_length=1024)
    row = training[2 - stage][list(VALID).index(name)]
    assert (row["text"] if stage == 1 else row["query"]["text"]) == VALID[name]
    items = [VALID[name]] if stage == 1 else [VALID[name], "a cat"]
    collate = DistillationCollator(prepare) if stage == 1 else ContrastiveCollator(prepare)
    for actual, (_, expected) in zip(collate([row])["micro_batches"], prepare(items), strict=True):
        assert same_tensors(actual, dict(expected))


@pytest.mark.parametrize("name", INVALID, ids=lambda name: f"{name}-training row")
def test_the_error_of_invalid_unicode_names_the_training_row(
    name: str, training: Any, error_message: ErrorMessage
) -> None:
    number = len(VALID) + list(INVALID).index(name)
    message = error_message(lambda: training[0][number])
    assert message.startswith(f"rows.jsonl, row {number}, query: 'text' is not valid Unicode at character ")


@pytest.mark.parametrize("name", INVALID, ids=lambda name: f"{name}-text of stage 1")
def test_the_error_of_invalid_unicode_names_the_text_of_stage_1(
    name: str, tmp_path: Path, error_message: ErrorMessage
) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in ("a cat", INVALID[name][0])]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    message = error_message(lambda: load_texts(tmp_path / "texts.jsonl"))
    assert message.startswith("texts.jsonl, row 1: 'text' ")


# Evaluation


@pytest.mark.parametrize("name", SHORT, ids=lambda name: f"{name}-evaluation")
def test_an_evaluation_embeds_the_text(name: str, tmp_path: Path, encode: Encode, vectors: Any) -> None:
    (vector,) = EmbeddingCache(encode, tmp_path)([TEXTS[name]])
    np.testing.assert_allclose(vector, vectors[name], atol=1e-5)


# Index and search


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, dict[str, str]]:
    """Index every text of a JSONL file; return the index and the reasons of the rejected entries."""
    folder = tmp_path_factory.mktemp("index")
    texts = VALID | {name: text for name, (text, _) in INVALID.items()}
    lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()]
    (folder / "texts.jsonl").write_text("".join(lines))
    index = Index.create(folder / "index", TINY)
    index.sync(open_corpus(folder / "texts.jsonl"), *load_model(TINY, dtype="float32"))
    rejected = map(json.loads, (index.folder / "rejected.jsonl").read_text().splitlines())
    return index, {entry["id"]: entry["reason"] for entry in rejected}


@pytest.mark.parametrize("name", TEXTS, ids=lambda name: f"{name}-index")
def test_an_index_holds_the_text(name: str, indexed: tuple[Index, dict], vectors: Any) -> None:
    row = rows(indexed[0])[name]
    assert row["text"] == TEXTS[name]
    np.testing.assert_allclose(row["vector"], vectors[name], atol=1e-5)


@pytest.mark.parametrize("name", [*BLANK, *INVALID], ids=lambda name: f"{name}-index")
def test_an_index_lists_the_text_as_rejected(name: str, indexed: tuple[Index, dict[str, str]]) -> None:
    empty = "it has neither a text nor an image: add one of them or remove it"
    reason = empty if name in BLANK else f"its text is not valid Unicode at character {INVALID[name][1]}: fix it"
    assert indexed[1][name] == f"entry '{name}': {reason}"
    assert name not in rows(indexed[0])


@pytest.mark.parametrize("name", [*SHORT, LONG[2]], ids=lambda name: f"{name}-page")
def test_the_page_searches_for_the_text(name: str, indexed: tuple[Index, dict], tiny: Loaded, encode: Encode) -> None:
    page = Collection("unime-tiny", indexed[0], *tiny)
    actual = page.search(TEXTS[name], None, k=3)
    expected = indexed[0].search(encode({"text": TEXTS[name], "instruction": PROMPTS["query"]}), 3)
    assert [hit.id for hit in actual.hits] == [hit.id for hit in expected] and len(actual.hits) == 3


@pytest.mark.parametrize("name", BLANK, ids=lambda name: f"{name}-search")
def test_an_empty_query_is_refused(name: str, error_message: ErrorMessage) -> None:
    message = error_message(lambda: query_item(BLANK[name]))
    assert message == "there is nothing to search for: give a text, an image (--image), or both"


@pytest.mark.parametrize("name", INVALID, ids=lambda name: f"{name}-page")
def test_the_page_refuses_invalid_unicode(
    name: str, indexed: tuple[Index, dict], tiny: Loaded, error_message: ErrorMessage
) -> None:
    message = error_message(lambda: Collection("unime-tiny", indexed[0], *tiny).search(INVALID[name][0], None))
    assert message == f"item 0: 'text' is not valid Unicode at character {INVALID[name][1]}: remove that character"


# The server


@pytest.mark.parametrize("name", SHORT, ids=lambda name: f"{name}-server")
def test_the_server_embeds_the_text(name: str, ask: Callable, vectors: Any) -> None:
    np.testing.assert_allclose(ask(VALID[name]), vectors[name], atol=1e-5)


@pytest.mark.parametrize("name", BLANK, ids=lambda name: f"{name}-server")
def test_the_server_refuses_an_empty_text(name: str, ask: Callable) -> None:
    assert ask(BLANK[name]) == "item 0 is an empty text: leave it out, or send a text or an image"


@pytest.mark.parametrize("name", OVER_REQUEST_LIMIT, ids=lambda name: f"{name}-server")
def test_the_server_refuses_a_million_characters(name: str, ask: Callable) -> None:
    limit = f"item 0 has {len(TEXTS[name])} characters, the limit is 100000: shorten or split it"
    assert ask(TEXTS[name]) == limit
