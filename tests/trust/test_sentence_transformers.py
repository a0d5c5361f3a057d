"""What sentence-transformers does with texts that look like URLs or paths, as SECURITY.md and the model cards say."""

import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from unime.checkpoint import model_card


TINY = Path(__file__).resolve().parents[2] / "checkpoints" / "unime-tiny"


@pytest.fixture
def requests(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder with an image; yield the address and the paths that were requested."""
    requested = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            requested.append(self.path)

    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requested
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def sentences() -> SentenceTransformer:
    return SentenceTransformer(str(TINY), device="cpu", model_kwargs={"dtype": "float32"})


def test_a_text_is_fetched_or_opened_unless_it_is_passed_as_a_text(
    tiny: Any, sentences: SentenceTransformer, requests: tuple[str, list[str]], tmp_path: Path
) -> None:
    model, processor = tiny
    address, requested = requests
    image = model.encode(Image.open(tmp_path / "red.png"), processor)
    for text, paths in [(f"{address}/red.png", ["/red.png"]), (str(tmp_path / "red.png"), [])]:
        as_text = model.encode(text, processor)
        np.testing.assert_allclose(sentences.encode([{"text": text}])[0], as_text, atol=1e-5)
        assert requested == []
        np.testing.assert_allclose(sentences.encode(text), image, atol=1e-5)
        assert requested == paths
        requested.clear()


def test_a_text_that_is_no_image_is_only_read(
    tiny: Any, sentences: SentenceTransformer, requests: tuple[str, list[str]], tmp_path: Path
) -> None:
    model, processor = tiny
    address, requested = requests
    shutil.copy(tmp_path / "red.png", tmp_path / "red.txt")
    texts = [f"{address}/red.txt", str(tmp_path / "red.txt"), f"see {address}/red.png", str(tmp_path / "none.png")]
    np.testing.assert_allclose(sentences.encode(texts), model.encode(texts, processor), atol=1e-5)
    assert requested == []


def test_cards_say_so(tiny: Any) -> None:
    assert '\npass texts of others as `{"text": text}`' in model_card(tiny[0])
