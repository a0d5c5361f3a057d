"""The web page in a real browser: what a visitor can do in each tab, and the messages for wrong input."""

import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import LOCAL_URL, TIMEOUT_MS
from fastapi.testclient import TestClient
from PIL import Image
from small_index import TINY, corpus

from unime import load_model
from unime.checkpoint import PROMPTS
from unime.corpus.corpus import open_corpus
from unime.index.index import Index
from unime.openmoji.catalogue import catalogue, drawings
from unime.page.collection import Collection
from unime.reranker import UniMEReranker


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def app() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "app.py"))


def test_the_instruction_field_accepts_prompt_names_and_free_text(app: dict[str, Any]) -> None:
    selected = app["selected_instruction"]
    assert selected(app["AUTOMATIC"]) is selected("  ") is selected(None) is None
    assert selected("classification") == PROMPTS["classification"]
    assert selected("query") == ""  # the one-word prompt, not the automatic instruction
    assert selected("Find a sad one:") == "Find a sad one:"


def test_blank_lines_are_ignored(app: dict[str, Any]) -> None:
    assert app["non_empty_lines"](" pizza \n\n   \nrocket") == ["pizza", "rocket"]


def test_a_text_longer_than_its_field_is_rejected_when_sent_by_a_program(app: dict[str, Any]) -> None:
    assert app["_is_valid_query"]("a" * app["MAX_CHARACTERS"], None, app["AUTOMATIC"])
    for text, choice in (("a" * 4001, app["AUTOMATIC"]), ("a cat", "b" * 4001)):
        with pytest.warns(UserWarning, match="Give at most 4,000 characters"):
            assert not app["_is_valid_query"](text, None, choice)


@pytest.fixture
def small(app: dict[str, Any], tmp_path: Path) -> Any:
    """Return a page on an index of six words that is not launched yet."""
    loaded = load_model(TINY, dtype="float32")
    index = Index.create(tmp_path / "index", TINY)
    index.sync(corpus(), *loaded)
    return app["build"](Collection("six words", index, *loaded), None, openmoji=False)


def test_the_page_of_an_index_has_its_name_and_no_examples(small: Any) -> None:
    assert small.title == "index · UniME"
    values = [str(getattr(block, "value", "")) for block in small.blocks.values()]
    (masthead,) = (value for value in values if "masthead" in value)
    assert "<h1>index</h1>" in masthead and "six words" in masthead and "6 entries" in masthead
    (footer,) = (value for value in values if "colophon" in value)
    assert "OpenMoji" not in footer
    buttons = [block.value for block in small.blocks.values() if block.get_block_name() == "button"]
    assert buttons == ["Search", "Draw the heat map"]
    (image,) = (block for block in small.blocks.values() if block.get_block_name() == "image")
    assert image.placeholder.startswith("Drop an image here")


def test_a_page_with_a_reranker_has_a_box_to_tick(app: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_model(TINY, dtype="float32")
    index = Index.create(tmp_path / "index", TINY)
    index.sync(corpus(), *loaded)
    reranker = UniMEReranker.from_pretrained(str(Path(TINY).with_name("tiny-backbone")), dtype="float32")
    page = app["build"](Collection("six words", index, *loaded), None, openmoji=False, reranker=reranker)
    assert [block.label for block in page.blocks.values() if block.get_block_name() == "checkbox"] == ["Rerank"]
    search = next(function for function in page.fns.values() if len(function.inputs) == 5)
    plain, reranked = (search.fn("pizza", None, app["AUTOMATIC"], 3, ticked) for ticked in (False, True))
    assert plain != reranked and "pizza" in reranked


def test_a_full_queue_rejects_further_requests(app: dict[str, Any], small: Any) -> None:
    search = next(index for index, function in small.fns.items() if len(function.inputs) == 4)
    body = {"data": ["pizza", None, app["AUTOMATIC"], 3], "fn_index": search, "session_hash": "visitor"}
    client = TestClient(small.app)  # not entered, so that nothing processes the queue
    responses = [client.post("/gradio_api/queue/join", json=body) for _ in range(257)]
    assert [response.status_code for response in responses] == [200] * 256 + [503]
    assert responses[-1].json() == {"detail": "Queue is full. Max size is 256 and size is 256."}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--index", "nowhere"], "nowhere is not an index"),
        (["--index", "nowhere", "--model", "checkpoints/unime-tiny"], "remove --model"),
    ],
)
def test_wrong_arguments_are_explained_in_one_sentence(
    app: dict[str, Any], arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        app["main"](arguments)
    assert sentence in capsys.readouterr().err


def start(cache: Path, log: Path, *arguments: str) -> tuple[subprocess.Popen, str]:
    """Start the page as a Space does, and wait until it runs."""
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
    """Start the page for the first time, with an empty cache."""
    process, address = start(folder / "cache", folder / "log")
    yield address
    process.terminate()
    process.wait()
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    """Open the page, and check at the end that it had no errors and sent no request to another host."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(TIMEOUT_MS)
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if LOCAL_URL.match(request.url) else problems.append(request.url))
    page.goto(server)
    page.wait_for_selector("#results .card")
    yield page
    page.close()
    assert problems == []


def image_file(folder: Path, name: str) -> str:
    """Write an OpenMoji drawing to a file, in another size than the indexed one."""
    index = next(emoji.index for emoji in catalogue() if emoji.name == name)
    drawing = Image.fromarray(drawings()[index]).resize((192, 192))
    white = Image.new("RGBA", drawing.size, "white")
    Image.alpha_composite(white, drawing).convert("RGB").save(folder / f"{name}.png")
    return str(folder / f"{name}.png")


def wait_for_first_result(page: Any, name: str) -> None:
    """Wait until the first result has this name."""
    page.wait_for_function("name => document.querySelector('#results .card .name')?.textContent === name", arg=name)


def upload(page: Any, file: str) -> None:
    page.locator("input[type=file]:visible, input[type=file]").first.set_input_files(file)


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


@pytest.mark.slow
def test_a_typed_query_finds_its_image(page: Any) -> None:
    page.get_by_label("Text", exact=True).first.fill("soccer ball")
    page.keyboard.press("Enter")
    wait_for_first_result(page, "soccer ball")
    assert page.locator("#results .card").count() == 12
    assert PROMPTS["text_to_image"] in page.locator("#results .instruction").inner_text()
    scores = [float(text) for text in page.locator("#results .meta span:last-child").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    widths = page.eval_on_selector_all("#results img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) == 12 and min(widths) > 0  # every image is loaded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "button", "results"), [("Search", "Search", "#results"), ("Compare", "Compare", "#first")]
)
def test_the_masthead_is_smaller_after_the_first_search(page: Any, name: str, button: str, results: str) -> None:
    height = page.locator(".masthead").bounding_box()["height"]
    assert (
        page.locator(".standfirst").is_visible()
        and "3,773 OpenMoji drawings" in page.locator(".standfirst").inner_text()
    )
    tab(page, name)
    page.get_by_role("tabpanel").get_by_label("Text", exact=True).fill("rocket")
    page.get_by_role("button", name=button, exact=True).click()
    page.locator(":not(.welcome) > .results", has=page.locator(".card")).first.wait_for(timeout=3 * TIMEOUT_MS)
    assert page.locator(results).is_visible() and not page.locator(".standfirst").is_visible()
    assert page.locator(".masthead").bounding_box()["height"] < height / 2


@pytest.mark.slow
def test_an_uploaded_image_is_found_and_can_be_changed_by_a_text(page: Any, folder: Path) -> None:
    page.get_by_label("Text", exact=True).first.fill("")
    upload(page, image_file(folder, "health worker"))
    wait_for_first_result(page, "health worker")
    page.get_by_label("Text", exact=True).first.fill("with dark skin tone")
    page.get_by_role("button", name="Search", exact=True).click()
    wait_for_first_result(page, "health worker dark skin tone")


@pytest.mark.slow
def test_a_custom_instruction_is_used(page: Any) -> None:
    page.get_by_text("Instruction and number of results").first.click()
    field = page.get_by_label("Instruction", exact=True).first
    field.fill("Find the <b>food</b>:")
    field.press("Enter")
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("“Find the <b>food</b>:”").wait_for()


@pytest.mark.slow
def test_a_visitor_is_asked_to_try_again_if_the_queue_is_full(browser: Any, small: Any) -> None:
    small.queue(max_size=0).launch(prevent_thread_lock=True, quiet=True)
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(small.local_url)
    page.get_by_label("Text", exact=True).first.fill("pizza")
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("This application is currently busy. Please try again.").wait_for()
    page.close()
    small.close()


@pytest.mark.slow
def test_an_empty_query_is_answered_with_a_hint(page: Any) -> None:
    page.get_by_label("Text", exact=True).first.fill("  ")
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("Enter a text or upload an image first.").wait_for()
    assert page.locator("#results .card").count() == 12  # the previous results stay


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"), [("notes.png", "cannot be read as an image"), ("huge.png", "at most 50")]
)
def test_an_unusable_image_is_explained_in_the_page(page: Any, folder: Path, name: str, message: str) -> None:
    (folder / "notes.png").write_text("not an image")
    Image.new("1", (14_000, 14_000)).save(folder / "huge.png")
    upload(page, str(folder / name))
    page.get_by_text(message).wait_for()


@pytest.mark.slow
def test_the_heat_map_escapes_texts(page: Any) -> None:
    tab(page, "Similarity")
    cells = page.locator("#heat-map tbody td")
    assert cells.count() == 36
    assert all(-1 <= float(text.replace("−", "-")) <= 1 for text in cells.all_inner_texts())
    assert page.locator("#heat-map td.best").count() == 6
    hostile = "<img src=x onerror='window.broken=1'> ${1+1} {{ value }}"
    page.get_by_label("Texts, one per line").fill(f"pizza\n\n{hostile}")
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
    page.wait_for_selector("#second .card", timeout=3 * TIMEOUT_MS)  # the second model embeds the images first
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
def test_a_narrow_window_needs_no_horizontal_scrolling(page: Any, name: str) -> None:
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
    index = Index.create(folder / "index", checkpoint)
    index.sync(open_corpus(folder / "photos"), *load_model(checkpoint, dtype="float32"))
    process, address = start(folder / "cache", folder / "index-log", "--index", str(folder / "index"))
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(address)
    page.get_by_label("Text", exact=True).first.fill("volcano")
    page.keyboard.press("Enter")
    wait_for_first_result(page, "volcano")
    assert page.locator("#results .card").count() == 2
    assert page.get_by_role("tab").all_inner_texts() == ["Search", "Similarity"]  # nothing to compare with
    tab(page, "Similarity")
    assert page.get_by_label("Texts, one per line").input_value() == "" and page.locator("#heat-map td").count() == 0
    page.close()
    process.terminate()
    process.wait()
