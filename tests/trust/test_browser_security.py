"""In a real browser: what strangers wrote is shown on our pages as they wrote it, and none of it runs."""

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
from browser import OWN, PATIENCE
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
OWN_OR_FILE = re.compile(OWN.pattern + "|file:")  # a report is opened as one
TINY = str(ROOT / "checkpoints" / "unime-tiny")

NAME = "<img src=x onerror=window.ran=1>"  # may be the name of a file
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
    """A page in which nothing that strangers wrote may have run at the end, nor asked another host."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: None if OWN_OR_FILE.match(request.url) else wrong.append(request.url))
    yield page
    for element in page.locator("[title], img, b, h1, h3, .card, li").all()[:60]:  # what waits for a mouse
        element.dispatch_event("mouseover")
    assert page.evaluate("window.ran") is None
    assert page.locator("script:text-matches('window\\\\.ran')").count() == 0
    assert page.locator("[onerror], [onload], [onmouseover], iframe[srcdoc], a[href^='javascript']").count() == 0
    page.close()
    assert wrong == []


def shown(page: Any, least: int, text: str = HOSTILE) -> None:
    """Check how often a text stands on the page, letter by letter; spaces aside, which HTML joins."""
    said = " ".join(page.evaluate("document.documentElement.textContent").split())
    assert said.count(" ".join(text.split())) >= least


def embed(items: list) -> np.ndarray:
    rows = np.random.default_rng(len(items)).normal(size=(len(items), 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_report_of_an_evaluation(page: Any, tmp_path: Path):
    image = {"image": Image.new("RGB", (8, 8), "red")}
    said = {"text": HOSTILE, "instruction": HOSTILE}
    tasks = [RetrievalTask("scene_t2i", "retrieval", [said], [{"text": HOSTILE}, image], [[0]])]
    probes = [CompositionalTask("swap_obj", [image], [{"text": HOSTILE}], [{"text": f"{HOSTILE} twice"}])]
    found, ranked = evaluate(embed, tasks, probes, model=HOSTILE, benchmark=HOSTILE, progress=False)
    curves = {HOSTILE: {HOSTILE: [(1, 2.0), (2, 1.0)]}}
    path = tmp_path / f"{NAME}.html"
    write_report(
        {HOSTILE: found}, build_galleries(ranked, tasks, probes), curves, path, subject=HOSTILE, credits=HOSTILE
    )
    page.goto(path.as_uri())
    # Browser's tab, standfirst, columns, legends, charts, query, instruction, candidate, caption, negative, credits.
    shown(page, least=15)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an index whose name, model, ids, texts, file names and metadata are hostile."""
    folder = tmp_path_factory.mktemp("index")
    model = str(shutil.copytree(TINY, folder / "models" / NAME))
    Image.new("RGB", (32, 32), "red").save(folder / f"{NAME}.png")
    entries = [
        Entry(HOSTILE, HOSTILE, metadata={HOSTILE.replace(".", "·"): HOSTILE}),
        Entry(f"{HOSTILE} 2", None, str(folder / f"{NAME}.png"), metadata={}),
        Entry(f"{HOSTILE} 3", HOSTILE, metadata={}),
    ]
    store = Index.create(folder / NAME, model)
    store.sync(entries, *load_model(model, dtype="float32"))
    return folder / NAME


def test_the_gallery_of_a_search(page: Any, index: Path, tmp_path: Path):
    store = Index.open(index)
    image = index.parent / f"{NAME}.png"
    vector = np.eye(1, store.record.dimensions, dtype=np.float32)[0]
    gone = Hit(HOSTILE, 0.5, HOSTILE, f"/gone/{NAME}.png", {HOSTILE: [HOSTILE, HOSTILE], "b": {HOSTILE: HOSTILE}})
    path = tmp_path / "gallery.html"
    asked = QueryDescription(HOSTILE, str(image), HOSTILE, HOSTILE)
    path.write_text(render_results_page(store, asked, [*store.search(vector, 3), gone]), encoding="utf-8")
    page.goto(path.as_uri())
    # Browser's tab, heading, instruction, condition; of each entry its id, its text and its metadata.
    shown(page, least=14)
    shown(page, least=1, text=f"This image cannot be read any more: /gone/{NAME}.png")
    assert page.locator(".kicker").inner_text().startswith(NAME)


@pytest.fixture
def site(index: Path, tmp_path: Path) -> Iterator[str]:
    """Start the page on the hostile index, compared with itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "app.py", "--index", index, "--compare", index, "--port", str(port)]
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


def test_the_web_page(page: Any, site: str, tmp_path: Path):
    page.goto(site)
    assert NAME in page.locator(".masthead").text_content()  # the model's name
    field = page.get_by_label("Text", exact=True).first
    page.get_by_text("Instruction and number of results").first.click()
    instruction = page.get_by_label("Instruction", exact=True).first
    instruction.fill(HOSTILE)
    instruction.press("Enter")
    field.fill(HOSTILE)
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_selector("#found .card")
    shown(page, least=6)  # the instruction, three ids, two texts

    (tmp_path / f"{NAME}.png").write_text("no image")
    page.locator("input[type=file]").first.set_input_files(str(tmp_path / f"{NAME}.png"))
    page.get_by_text("cannot be read as an image").wait_for()  # Gradio takes signs out of the name

    page.get_by_role("tab", name="Similarity").click()
    page.get_by_label("Texts, one a line").fill(HOSTILE)
    page.get_by_role("button", name="Draw the heat map").click()
    page.get_by_role("rowheader", name="window.ran=3").wait_for()

    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Text", exact=True).last.fill(HOSTILE)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_selector("#second .card")
    assert page.locator("#second h3").text_content() == NAME
    assert page.locator(".hint").text_content().count(NAME) == 2  # the model's and the other index's


def test_a_visitor_s_program_reads_no_file_of_the_machine_and_reaches_no_address_inside(site: str):
    for path in ("/etc/passwd", f"{ROOT}/README.md", "http://169.254.169.254/", "../../README.md"):
        for route in ("file=", "proxy=", "stream/"):
            answer = httpx2.get(f"{site}/gradio_api/{route}{path}")
            assert answer.status_code in (400, 403, 404), (route, path, answer.status_code)
