"""Pages in a real browser show untrusted content literally, and none of it runs."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from browser import LOCAL_URL, TIMEOUT_MS
from PIL import Image

from unime import load_model
from unime.corpus.entry import Entry
from unime.eval.report.gallery import build_galleries
from unime.eval.report.html_report import write_report
from unime.eval.tasks import CompositionalTask, RetrievalTask, evaluate
from unime.index.index import Hit, Index
from unime.index.results_page import QueryDescription, render_results_page


pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LOCAL_OR_FILE = re.compile(LOCAL_URL.pattern + "|file:")  # reports are opened as files
TINY = str(ROOT / "checkpoints" / "unime-tiny")

NAME = "<img src=x onerror=window.ran=1>"  # valid as a file name
HOSTILE = " ".join(
    [
        NAME,
        "<script>window.ran=2</script>",
        "</title></style></textarea></select></svg><script>window.ran=3</script>",
        "\"><svg onload=window.ran=4>' onmouseover='window.ran=5'",
        "<iframe srcdoc='<script>parent.ran=6</script>'></iframe>",
        "<a href=javascript:window.ran=7>here</a> [here](javascript:window.ran=8)",
        "{{ 7*7 }} {% raw %} ${7*7} &lt;b&gt; &amp;",
    ]
)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """Open a page, and check at the end that no untrusted content ran or sent a request to another host."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(TIMEOUT_MS)
    problems: list[str] = []
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: None if LOCAL_OR_FILE.match(request.url) else problems.append(request.url))
    yield page
    for element in page.locator("[title], img, b, h1, h3, .card, li").all()[:60]:  # trigger mouse handlers
        element.dispatch_event("mouseover")
    assert page.evaluate("window.ran") is None
    assert page.locator("script:text-matches('window\\\\.ran')").count() == 0
    assert page.locator("[onerror], [onload], [onmouseover], iframe[srcdoc], a[href^='javascript']").count() == 0
    page.close()
    assert problems == []


def assert_shown(page: Any, min_count: int, text: str = HOSTILE) -> None:
    """Check how often the page shows a text literally, apart from spaces, which HTML collapses."""
    content = " ".join(page.evaluate("document.documentElement.textContent").split())
    assert content.count(" ".join(text.split())) >= min_count


def random_embeddings(items: list) -> np.ndarray:
    rows = np.random.default_rng(len(items)).normal(size=(len(items), 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_evaluation_report_escapes_everything(page: Any, tmp_path: Path):
    image = {"image": Image.new("RGB", (8, 8), "red")}
    query = {"text": HOSTILE, "instruction": HOSTILE}
    tasks = [RetrievalTask("scene_t2i", "retrieval", [query], [{"text": HOSTILE}, image], [[0]])]
    probes = [CompositionalTask("swap_obj", [image], [{"text": HOSTILE}], [{"text": f"{HOSTILE} twice"}])]
    results, rankings = evaluate(random_embeddings, tasks, probes, model=HOSTILE, benchmark=HOSTILE, progress=False)
    curves = {HOSTILE: {HOSTILE: [(1, 2.0), (2, 1.0)]}}
    path = tmp_path / f"{NAME}.html"
    write_report(
        {HOSTILE: results}, build_galleries(rankings, tasks, probes), curves, path, highlight=HOSTILE, credits=HOSTILE
    )
    page.goto(path.as_uri())
    # Page title, summary, columns, legends, charts, query, instruction, candidate, caption, negative, credits.
    assert_shown(page, min_count=15)


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index with a hostile name, model, ids, texts, file names and metadata."""
    folder = tmp_path_factory.mktemp("index")
    model = str(shutil.copytree(TINY, folder / "models" / NAME))
    Image.new("RGB", (32, 32), "red").save(folder / f"{NAME}.png")
    entries = [
        Entry(HOSTILE, HOSTILE, metadata={HOSTILE.replace(".", "·"): HOSTILE}),
        Entry(f"{HOSTILE} 2", None, str(folder / f"{NAME}.png"), metadata={}),
        Entry(f"{HOSTILE} 3", HOSTILE, metadata={}),
    ]
    index = Index.create(folder / NAME, model)
    index.sync(entries, *load_model(model, dtype="float32"))
    return folder / NAME


def test_the_results_page_of_a_search_escapes_everything(page: Any, index_folder: Path, tmp_path: Path):
    index = Index.open(index_folder)
    image = index_folder.parent / f"{NAME}.png"
    vector = np.eye(1, index.record.dimensions, dtype=np.float32)[0]
    missing = Hit(HOSTILE, 0.5, HOSTILE, f"/gone/{NAME}.png", {HOSTILE: [HOSTILE, HOSTILE], "b": {HOSTILE: HOSTILE}})
    path = tmp_path / "results.html"
    query = QueryDescription(HOSTILE, str(image), HOSTILE, HOSTILE)
    path.write_text(render_results_page(index, query, [*index.search(vector, 3), missing]), encoding="utf-8")
    page.goto(path.as_uri())
    # Page title, heading, instruction, condition; id, text and metadata of each entry.
    assert_shown(page, min_count=14)
    assert_shown(page, min_count=1, text=f"This image can no longer be read: /gone/{NAME}.png")
    assert page.locator(".kicker").inner_text().startswith(NAME)


@pytest.fixture
def site(index_folder: Path, tmp_path: Path) -> Iterator[str]:
    """Start the web page on the hostile index, compared with itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        ROOT / "app.py",
        "--index",
        index_folder,
        "--compare",
        index_folder,
        "--port",
        str(port),
    ]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=output, stderr=output)
    try:
        for _ in range(240):
            if "Running on" in log.read_text():
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
    assert "Traceback" not in log.read_text()


def test_the_web_page_escapes_everything(page: Any, site: str, index_folder: Path, tmp_path: Path):
    page.goto(site)
    assert NAME in page.locator(".masthead").text_content()  # the model's name
    field = page.get_by_label("Text", exact=True).first
    page.get_by_text("Instruction and number of results").first.click()
    instruction = page.get_by_label("Instruction", exact=True).first
    instruction.fill(HOSTILE)
    instruction.press("Enter")
    field.fill(HOSTILE)
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_selector("#results .card")
    assert_shown(page, min_count=6)  # the instruction, three ids, two texts

    (tmp_path / f"{NAME}.png").write_text("no image")
    page.locator("input[type=file]").first.set_input_files(str(tmp_path / f"{NAME}.png"))
    page.get_by_text("cannot be read as an image").wait_for()  # Gradio removes special characters from the name

    page.get_by_role("tab", name="Similarity").click()
    page.get_by_label("Texts, one per line").fill(HOSTILE)
    panel = page.get_by_role("tabpanel")  # of the selected tab
    panel.locator("input[type=file]").set_input_files(str(index_folder.parent / f"{NAME}.png"))
    panel.locator("img").first.wait_for()
    page.get_by_role("button", name="Draw the heat map").click()
    page.get_by_role("rowheader", name="window.ran=3").wait_for()

    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Text", exact=True).last.fill(HOSTILE)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_selector("#second .card")
    assert page.locator("#second h3").text_content() == NAME
    assert page.locator(".hint").text_content().count(NAME) == 2  # the model's name and the other index's name


def test_a_program_cannot_read_files_or_reach_internal_addresses_through_the_page(site: str):
    for path in ("/etc/passwd", f"{ROOT}/README.md", "http://169.254.169.254/", "../../README.md"):
        for route in ("file=", "proxy=", "stream/"):
            response = httpx2.get(f"{site}/gradio_api/{route}{path}")
            assert response.status_code in (400, 403, 404), (route, path, response.status_code)
