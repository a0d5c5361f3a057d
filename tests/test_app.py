"""The page in a real browser: what a visitor does in each tab, and what he is told when something is wrong."""

import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import OWN, PATIENCE
from fastapi.testclient import TestClient
from PIL import Image
from small_index import TINY, corpus

from unime import load_model
from unime.checkpoint import PROMPTS
from unime.corpus.corpus import open_corpus
from unime.index.index import Index
from unime.openmoji.catalogue import catalogue, drawings
from unime.page.collection import Collection


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def app() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "app.py"))


def test_the_field_of_the_instruction_takes_names_and_free_text(app: dict[str, Any]) -> None:
    chosen = app["chosen_instruction"]
    assert chosen(app["AUTOMATIC"]) is chosen("  ") is chosen(None) is None
    assert chosen("classification") == PROMPTS["classification"]
    assert chosen("query") == ""  # the one-word prompt, which is not the automatic instruction
    assert chosen("Find a sad one:") == "Find a sad one:"


def test_blank_lines_are_no_texts(app: dict[str, Any]) -> None:
    assert app["lines_of"](" pizza \n\n   \nrocket") == ["pizza", "rocket"]


def test_a_text_longer_than_its_field_is_refused_whoever_sends_it(app: dict[str, Any]) -> None:
    assert app["_given"]("a" * app["LONGEST"], None, app["AUTOMATIC"])
    for text, choice in (("a" * 4001, app["AUTOMATIC"]), ("a cat", "b" * 4001)):
        with pytest.warns(UserWarning, match="Give at most 4,000 characters"):
            assert not app["_given"](text, None, choice)


@pytest.fixture
def small(app: dict[str, Any], tmp_path: Path) -> Any:
    """Give a page of six words that is not open yet."""
    loaded = load_model(TINY, dtype="float32")
    store = Index.create(tmp_path / "index", TINY)
    store.sync(corpus(), *loaded)
    return app["build"](Collection("six words", store, *loaded), None, world=False)


def test_a_full_queue_sends_further_visitors_away(app: dict[str, Any], small: Any) -> None:
    search = next(number for number, one in small.fns.items() if len(one.inputs) == 4)
    body = {"data": ["pizza", None, app["AUTOMATIC"], 3], "fn_index": search, "session_hash": "visitor"}
    client = TestClient(small.app)  # not entered, so that what answers the queue is not started
    answers = [client.post("/gradio_api/queue/join", json=body) for _ in range(257)]
    assert [answer.status_code for answer in answers] == [200] * 256 + [503]
    assert answers[-1].json() == {"detail": "Queue is full. Max size is 256 and size is 256."}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--index", "nowhere"], "nowhere is no index"),
        (["--index", "nowhere", "--model", "checkpoints/unime-tiny"], "leave --model out"),
    ],
)
def test_wrong_use_is_one_sentence(
    app: dict[str, Any], arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        app["main"](arguments)
    assert sentence in capsys.readouterr().err


def start(cache: Path, log: Path, *arguments: str) -> tuple[subprocess.Popen, str]:
    """Start the page as a Space does, and wait until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"UNIME_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "GRADIO_SERVER_PORT": str(port)}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py"), *arguments], env=environment, stdout=output, stderr=output
        )
    for _ in range(600):
        try:
            process.wait(0.5)
            break
        except subprocess.TimeoutExpired:
            if "Running on" in log.read_text():
                return process, f"http://127.0.0.1:{port}"
    process.kill()
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The page at its first start, with an empty cache."""
    process, address = start(folder / "cache", folder / "log")
    yield address
    process.terminate()
    process.wait()
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    """The opened page; at the end nothing may have gone wrong in it, nor may it have asked another host."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if OWN.match(request.url) else wrong.append(request.url))
    page.goto(server)
    page.wait_for_selector("#found .card")
    yield page
    page.close()
    assert wrong == []


def image_file(folder: Path, name: str) -> str:
    """An image of the world as a file, of another size than the page knows it."""
    index = next(emoji.index for emoji in catalogue() if emoji.name == name)
    drawn = Image.fromarray(drawings()[index]).resize((192, 192))
    paper = Image.new("RGBA", drawn.size, "white")
    Image.alpha_composite(paper, drawn).convert("RGB").save(folder / f"{name}.png")
    return str(folder / f"{name}.png")


def first_found(page: Any, name: str) -> None:
    """Wait until this is the first card, or fail."""
    page.wait_for_function("name => document.querySelector('#found .card .name')?.textContent === name", arg=name)


def upload(page: Any, file: str) -> None:
    page.locator("input[type=file]:visible, input[type=file]").first.set_input_files(file)


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


@pytest.mark.slow
def test_a_typed_query_finds_its_image(page: Any) -> None:
    page.get_by_label("Text", exact=True).first.fill("soccer ball")
    page.keyboard.press("Enter")
    first_found(page, "soccer ball")
    assert page.locator("#found .card").count() == 12
    assert PROMPTS["text_to_image"] in page.locator("#found .asked").inner_text()
    scores = [float(text) for text in page.locator("#found .meta span:last-child").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    widths = page.eval_on_selector_all("#found img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) == 12 and min(widths) > 0  # every image is shown


@pytest.mark.slow
def test_an_uploaded_image_is_found_and_then_changed(page: Any, folder: Path) -> None:
    page.get_by_label("Text", exact=True).first.fill("")
    upload(page, image_file(folder, "health worker"))
    first_found(page, "health worker")
    page.get_by_label("Text", exact=True).first.fill("with dark skin tone")
    page.get_by_role("button", name="Search", exact=True).click()
    first_found(page, "health worker dark skin tone")


@pytest.mark.slow
def test_an_instruction_of_ones_own_is_used(page: Any) -> None:
    page.get_by_text("Instruction and number of results").first.click()
    field = page.get_by_label("Instruction", exact=True).first
    field.fill("Find the <b>food</b>:")
    field.press("Enter")
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("“Find the <b>food</b>:”").wait_for()


@pytest.mark.slow
def test_a_visitor_before_a_full_queue_is_told_to_come_back(browser: Any, small: Any) -> None:
    small.queue(max_size=0).launch(prevent_thread_lock=True, quiet=True)
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(small.local_url)
    page.get_by_label("Text", exact=True).first.fill("pizza")
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("This application is currently busy. Please try again.").wait_for()
    page.close()
    small.close()


@pytest.mark.slow
def test_an_empty_query_is_told_what_to_do(page: Any) -> None:
    page.get_by_label("Text", exact=True).first.fill("  ")
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("Type a text or give an image first.").wait_for()
    assert page.locator("#found .card").count() == 12  # what was there stays


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sentence"), [("notes.png", "cannot be read as an image"), ("huge.png", "at most 50")]
)
def test_a_image_that_cannot_be_used_is_told_in_the_page(page: Any, folder: Path, name: str, sentence: str) -> None:
    (folder / "notes.png").write_text("not an image")
    Image.new("1", (14_000, 14_000)).save(folder / "huge.png")
    upload(page, str(folder / name))
    page.get_by_text(sentence).wait_for()


@pytest.mark.slow
def test_the_heat_map_shows_and_takes_texts_as_they_are(page: Any) -> None:
    tab(page, "Similarity")
    cells = page.locator("#heat-map tbody td")
    assert cells.count() == 36
    assert all(-1 <= float(text.replace("−", "-")) <= 1 for text in cells.all_inner_texts())
    assert page.locator("#heat-map td.best").count() == 6
    hostile = "<img src=x onerror='window.broken=1'> ${1+1} {{ value }}"
    page.get_by_label("Texts, one a line").fill(f"pizza\n\n{hostile}")
    page.get_by_role("button", name="Draw the heat map").click()
    page.get_by_role("rowheader", name=hostile).wait_for()
    assert cells.count() == 12
    assert page.evaluate("window.broken") is None
    page.get_by_role("button", name="One pair, four arrangements").click()
    page.get_by_role("rowheader", name="a pizza above a rocket").wait_for()
    page.wait_for_function("document.querySelectorAll('#heat-map tbody td').length === 16")


@pytest.mark.slow
def test_two_checkpoints_are_shown_side_by_side(page: Any) -> None:
    tab(page, "Compare")
    page.get_by_role("button", name="guitarra", exact=True).last.click()
    page.wait_for_selector("#second .card", timeout=3 * PATIENCE)  # the second model embeds the world first
    assert page.locator("#first h3").inner_text() == "unime-tiny"
    assert page.locator("#second h3").inner_text() == "tiny-backbone"
    names = [page.locator(f"#{side} .name").all_inner_texts() for side in ("first", "second")]
    only = [page.locator(f"#{side} .card.only .name").all_inner_texts() for side in ("first", "second")]
    assert only[0] == [name for name in names[0] if name not in names[1]]
    assert only[1] == [name for name in names[1] if name not in names[0]]
    left, right = (page.locator(selector).bounding_box() for selector in ("#first", "#second"))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Search", "Similarity", "Compare"])
def test_a_narrow_window_has_nothing_beside_it(page: Any, name: str) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    tab(page, name)
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") == 400


@pytest.mark.slow
def test_the_second_start_embeds_nothing(server: str, folder: Path) -> None:
    assert "Embedding 3,7" in (folder / "log").read_text()
    process, _ = start(folder / "cache", folder / "second-log")
    process.terminate()
    process.wait()
    assert "Embedding" not in (folder / "second-log").read_text()


@pytest.mark.slow
def test_an_index_is_searched_with_its_own_model(browser: Any, folder: Path) -> None:
    (folder / "photos").mkdir()
    for name in ("volcano", "pizza"):
        image_file(folder / "photos", name)
    checkpoint = str(ROOT / "checkpoints" / "unime-tiny")
    store = Index.create(folder / "index", checkpoint)
    store.sync(open_corpus(folder / "photos"), *load_model(checkpoint, dtype="float32"))
    process, address = start(folder / "cache", folder / "index-log", "--index", str(folder / "index"))
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.get_by_label("Text", exact=True).first.fill("volcano")
    page.keyboard.press("Enter")
    first_found(page, "volcano.png")
    assert page.locator("#found .card").count() == 2
    assert page.get_by_role("tab").all_inner_texts() == ["Search", "Similarity"]  # there is nothing to compare with
    page.close()
    process.terminate()
    process.wait()
