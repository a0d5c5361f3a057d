"""`unime index` and `unime search` on the command line."""

import json
import random
import shutil
import subprocess
import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from file_modes import private_files
from PIL import Image
from typer.testing import CliRunner, Result

from unime import load_model
from unime.checkpoint import PROMPTS
from unime.cli.embed import index
from unime.cli.search import search
from unime.index.index import Index
from unime.openmoji.catalogue import catalogue
from unime.openmoji.views import View
from unime.reranker import UniMEReranker


ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "checkpoints" / "unime-tiny")
BACKBONE = str(ROOT / "checkpoints" / "tiny-backbone")
CHROMIUM = "chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars".split()
CHROMIUM += "--disable-background-networking --disable-component-update --disable-sync".split()
CATEGORIES = {"Food & Drink": 25, "Animals & Nature": 25}

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(index)
app.command()(search)


def unime(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refusal(*words: object) -> str:
    """Return the message with which the command refuses its input."""
    error = unime(*words).exception
    assert isinstance(error, (ValueError, OSError)) and "\n" not in str(error)
    return str(error)


def hits(*words: object) -> list[dict]:
    """Search, and return the hits."""
    return json.loads(unime("search", *words, "--json").stdout)["hits"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images of food and animals, including a pizza and a dog, with their categories as metadata."""
    folder, rng = tmp_path_factory.mktemp("images"), random.Random(0)
    with (folder / "metadata.jsonl").open("w") as metadata:
        for category, count in CATEGORIES.items():
            entries = [entry for entry in catalogue() if entry.category == category]
            fixed = [entry for entry in entries if entry.name in ("pizza", "dog")]
            for entry in fixed + rng.sample([entry for entry in entries if entry not in fixed], count - len(fixed)):
                name = f"{entry.name.replace(' ', '-')}.png"
                View.sample(entry.index, rng).render().save(folder / name)
                metadata.write(json.dumps({"file_name": name, "category": category}) + "\n")
    return folder


@pytest.fixture(scope="module")
def indexed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed") / "index"
    assert unime("index", images, folder, "--model", TINY).exit_code == 0
    return folder


def test_the_best_hit_for_a_slice_of_pizza_is_the_pizza(indexed: Path, images: Path):
    first = hits(indexed, "a slice of pizza", "--k", 3)[0]
    assert (first["rank"], first["id"], first["image"]) == (1, "pizza.png", str(images / "pizza.png"))
    assert first["metadata"] == {"category": "Food & Drink"}
    printed = unime("search", indexed, "a slice of pizza", "--k", 3).stdout
    assert f"{first['score']:.3f}" in printed and "pizza.png" in printed and "these are all" not in printed


def test_filters_images_and_modified_images_can_be_searched(indexed: Path, images: Path):
    animals = hits(indexed, "a slice of pizza", "--where", "category = 'Animals & Nature'", "-k", 100)
    assert len(animals) == 25 and {hit["metadata"]["category"] for hit in animals} == {"Animals & Nature"}
    similar = hits(indexed, "--image", images / "dog.png", "-k", 2)
    assert similar[0]["id"] == "dog.png" and similar[0]["score"] == pytest.approx(1, abs=1e-5)
    composed = json.loads(unime("search", indexed, "with a hat", "--image", images / "dog.png", "--json").stdout)
    assert composed["query"]["instruction"].startswith("Given an image, find a similar everyday image")
    assert composed["query"]["text"] == "with a hat" and composed["entries"] == 50
    query = json.loads(unime("search", indexed, "dog", "--instruction", "Find:", "--json").stdout)["query"]
    assert query["instruction"] == "Find:"


def test_the_index_follows_its_source(images: Path, tmp_path: Path):
    source, folder = tmp_path / "source", tmp_path / "index"
    source.mkdir()
    for name in ("dog.png", "pizza.png"):
        shutil.copy(images / name, source / name)
    (source / "note.txt").write_text("a note about cheese")
    (source / "broken.png").write_bytes(b"no image")

    def counts(*options: str) -> tuple[int, dict]:
        result = unime("index", source, folder, "--json", *options)
        done = json.loads(result.stdout)
        return result.exit_code, {name: done[name] for name in ("embedded", "unchanged", "removed", "rejected")}

    assert counts() == (0, {"embedded": 3, "unchanged": 0, "removed": 0, "rejected": 1})
    assert counts("--strict") == (1, {"embedded": 0, "unchanged": 3, "removed": 0, "rejected": 1})
    listed = json.loads((folder / "rejected.jsonl").read_text())
    assert private_files(folder) == []
    assert listed["id"] == "broken.png" and "not a readable image" in listed["reason"]
    (source / "broken.png").unlink()
    (source / "dog.png").unlink()
    shutil.copy(images / "dog.png", source / "pizza.png")
    assert counts("--strict") == (0, {"embedded": 1, "unchanged": 2 - 1, "removed": 1, "rejected": 0})
    printed = unime("index", source, folder).stdout
    assert printed == (
        f"{folder} holds 2 entries: 0 embedded, 0 with new metadata, 2 unchanged, 0 removed, 0 rejected\n"
    )
    everything = unime("search", folder, "cheese", "-k", 7).stdout
    assert "a note about cheese" in everything and "these are all 2 entries" in everything
    merged = json.loads(unime("search", folder, "cheese", "--json").stdout)
    assert [hit["id"] for hit in merged["hits"]] == ["note.txt", "pizza.png"]
    assert merged["hits"][0]["standard_score"] > merged["hits"][1]["standard_score"]
    shown = f"text: (one-word prompt); image: {PROMPTS['text_to_image']}"
    assert merged["query"]["instruction"] == shown
    for kind, found in [("text", ["note.txt"]), ("image", ["pizza.png"]), ("image-text", [])]:
        one_kind = json.loads(unime("search", folder, "cheese", "--kind", kind, "--json").stdout)["hits"]
        assert [(hit["id"], hit["standard_score"]) for hit in one_kind] == [(name, None) for name in found]


def test_wrong_usage_is_refused_in_one_sentence(indexed: Path, images: Path, tmp_path: Path):
    (tmp_path / "x.txt").write_text("no image")
    other = tmp_path / "other"
    shutil.copytree(TINY, other)
    (other / "tokenizer_config.json").write_text("{}")
    for words, reason in [
        (("search", tmp_path, "dog"), f"{tmp_path} is not an index: create one with"),
        (("search", indexed), "there is nothing to search for"),
        (("search", indexed, "dog", "--where", "colour = 1"), "the condition 'colour = 1' cannot be understood"),
        (("search", indexed, "--image", tmp_path / "y.png"), "y.png: it does not exist"),
        (("search", indexed, "--image", tmp_path / "x.txt"), "x.txt: it is not a readable image"),
        (("search", indexed, "dog", "--model", other), f"{other} is another model"),
        (("index", images, indexed, "--model", other), f"{other} is another model"),
        (("index", images, indexed, "--instruction", "Find:"), "was created with the instruction None"),
        (("index", images, indexed, "--image-size", 336), "with the image size saved with its model, not 336"),
        (("index", images, images), f"{images} exists and is not an empty folder"),
        (("search", indexed, "dog", "--device", "cuda:77"), "this machine cannot compute on cuda:77: "),
    ]:
        assert reason in refusal(*words)
    assert unime("search", indexed, "dog", "-k", 0).exit_code == 2


def test_an_index_is_searched_and_updated_at_the_image_size_that_it_was_created_with(
    images: Path, tiny_model: Callable[[str], Path], tmp_path: Path
):
    photos, folder = tmp_path / "photos", tmp_path / "index"
    photos.mkdir()
    for name in ("pizza.png", "dog.png"):
        shutil.copy(images / name, photos)
    model = ("--model", tiny_model("qwen2-vl"))
    assert unime("index", photos, folder, *model, "--image-size", 24, "--instruction", "Look:").exit_code == 0
    shutil.copy(images / "dog.png", photos / "dog2.png")
    assert unime("index", photos, folder, "--image-size", "24").exit_code == 0  # the same size in another form
    found = hits(folder, "--image", photos / "dog.png", "--instruction", "Look:")
    assert [hit["id"] for hit in found] == ["dog.png", "dog2.png", "pizza.png"]
    assert found[0]["score"] == pytest.approx(1, abs=1e-5) == found[1]["score"]
    created = f"{folder} was created with the image size 24, not"
    assert f"{created} 32: leave --image-size out, or create" in refusal("index", photos, folder, "--image-size", 32)
    unlike = refusal("index", photos, folder, "--image-size", "large")
    assert unlike.startswith("image_size must be a positive number of pixels")


def test_an_index_is_updated_with_the_drafts_that_it_was_created_with(images: Path, indexed: Path, tmp_path: Path):
    photos, folder = tmp_path / "photos", tmp_path / "index"
    photos.mkdir()
    photo = Image.open(images / "dog.png").convert("RGB").resize((800, 800))
    photo.save(photos / "a.jpg")
    assert unime("index", photos, folder, "--model", TINY, "--draft-jpegs").exit_code == 0
    assert Index.open(folder).record.draft_jpegs
    (photos / "b.jpg").write_bytes((photos / "a.jpg").read_bytes() + b"another file")
    assert unime("index", photos, folder).exit_code == 0
    first, second = Index.open(folder).table.table.to_arrow()["vector"].to_pylist()
    model, processor = load_model(TINY, dtype="float32")
    full = model.encode({"image": Image.open(photos / "a.jpg"), "instruction": PROMPTS["image"]}, processor)
    assert first == pytest.approx(second, abs=1e-6) and first != pytest.approx(full, abs=1e-5)
    message = "was created without --draft-jpegs: leave the option out, or create a new index"
    assert message in refusal("index", images, indexed, "--draft-jpegs")


def test_an_empty_index_and_an_empty_result_are_reported(indexed: Path, tmp_path: Path):
    source = tmp_path / "texts.jsonl"
    source.write_text(json.dumps({"id": "a", "text": " "}) + "\n")
    assert unime("index", source, tmp_path / "index", "--model", TINY).exit_code == 0
    result = unime("search", tmp_path / "index", "dog")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'index'} holds no entries\n")
    nothing = unime("search", indexed, "dog", "--where", "category = 'x'")
    assert (nothing.exit_code, nothing.stdout) == (0, f"{indexed} holds no entries that meet the condition\n")


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    """Register a browser that records the address that it should open, and return the file with the address."""
    record = tmp_path / "opened"
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > {record}\n')
    script.chmod(0o755)
    webbrowser.register("recording", None, webbrowser.GenericBrowser([str(script), "%s"]), preferred=True)
    yield record
    webbrowser._tryorder.remove("recording")


EVIL = '<script>document.title = "taken"</script> & "quoted"'


def test_the_results_page_shows_query_images_and_scores_and_escapes_them(tmp_path: Path, images: Path, opened: Path):
    source, folder = tmp_path / "rows.jsonl", tmp_path / "index"
    rows = [
        {"id": EVIL, "text": EVIL, "<script>": EVIL},
        {"id": "dog", "image": str(images / "dog.png"), "<script>": None},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert unime("index", source, folder, "--model", TINY, "--image-root", images).exit_code == 0
    result = unime("search", folder, EVIL, "--image", images / "pizza.png", "--instruction", EVIL, "--open")
    page = folder / "results.html"
    assert result.stdout.splitlines()[-1] == str(page) and opened.read_text() == page.as_uri()
    html = page.read_text()
    assert EVIL not in html and html.count("&lt;script&gt;") >= 5  # query, instruction, id, text and metadata
    assert html.count('src="data:image/webp;base64,') == 2  # the query's and the dog's
    assert "http" not in html and "<script" not in html
    scores = [f"{hit['score']:.3f}" for hit in hits(folder, EVIL, "--image", images / "pizza.png")]
    assert len(scores) == 2


def test_the_results_page_folds_identical_images_and_shows_stems(tmp_path: Path, images: Path, opened: Path):
    source, folder = tmp_path / "source", tmp_path / "index"
    (source / "copies").mkdir(parents=True)
    for name in ("a_photo_with_a_long_name.png", "copies/dog.png"):
        shutil.copy(images / "dog.png", source / name)
    shutil.copy(images / "pizza.png", source / "pizza.png")
    unime("index", source, folder, "--model", TINY)
    assert unime("search", folder, "pizza", "--open").exit_code == 0
    html = (folder / "results.html").read_text()
    assert html.count('<li class="hit">') == html.count("<img") == 2 and html.count("1 more of the same") == 1
    assert ">pizza</p>" in html and ">a_photo_with_a_long_name</p>" in html and 'class="id">copies/dog.png<' in html
    assert "first-child" not in html and "lazy" not in html  # no card has the color of a right answer


def test_the_results_page_names_an_image_that_is_gone(tmp_path: Path, images: Path, opened: Path):
    source, folder = tmp_path / "source", tmp_path / "index"
    source.mkdir()
    shutil.copy(images / "dog.png", source / "dog.png")
    unime("index", source, folder, "--model", TINY)
    (source / "dog.png").unlink()
    assert unime("search", folder, "dog", "--open").exit_code == 0
    html = (folder / "results.html").read_text()
    assert f"This image can no longer be read: {source / 'dog.png'}" in html and "<img" not in html


@pytest.mark.slow
def test_the_results_page_fits_a_narrow_screen_and_runs_no_script(tmp_path: Path, indexed: Path, opened: Path):
    unime("search", indexed, f"a slice of pizza {EVIL}", "--open")
    page = (indexed / "results.html").as_uri()
    shot = tmp_path / "page.png"
    for width in (1280, 420):
        command = [*CHROMIUM, f"--screenshot={shot}", f"--window-size={width},900", page]
        subprocess.run(command, capture_output=True, check=True, timeout=120)
        with Image.open(shot) as image:
            assert image.size == (width, 900)
            right = image.convert("RGB").crop((width - 12, 0, width, 900))
            # The margin shows only the faint shadows of the cards: nothing overflows.
            assert all(highest - lowest < 10 for lowest, highest in right.getextrema())
    shown = subprocess.run([*CHROMIUM, "--dump-dom", page], capture_output=True, text=True, check=True, timeout=120)
    assert "<title>a slice of pizza &lt;script&gt;" in shown.stdout  # the script in the query did not run


@pytest.mark.slow
def test_named_images_are_found_among_all_openmoji_images(tmp_path: Path):
    folder = tmp_path / "index"
    assert unime("index", "openmoji", folder, "--model", TINY).exit_code == 0
    for query, name in {"a slice of pizza": "pizza", "rocket": "rocket", "a dog": "dog"}.items():
        assert name in hits(folder, query, "-k", 1)[0]["id"]
    # All images are in the index, so the results page needs no other file.
    assert all(hit["image"] is None for hit in hits(folder, "pizza"))


def test_a_reranker_orders_the_best_entries(indexed: Path, images: Path):
    reranker = UniMEReranker.from_pretrained(BACKBONE, dtype="float32")
    nearest = hits(indexed, "a slice of pizza", "-k", 4)
    expected = reranker.rank("a slice of pizza", [Image.open(hit["image"]) for hit in nearest])
    reranked = hits(indexed, "a slice of pizza", "-k", 2, "--rerank", BACKBONE, "--depth", 4)
    assert [hit["id"] for hit in reranked] == [nearest[candidate.index]["id"] for candidate in expected[:2]]
    scores = [hit["rerank_score"] for hit in reranked]
    assert scores == pytest.approx([candidate.score for candidate in expected[:2]], abs=1e-6)
    assert "rerank_score" not in nearest[0]
    printed = unime("search", indexed, "a slice of pizza", "-k", 2, "--rerank", BACKBONE, "--depth", 4).stdout
    assert f"{scores[0]:.3f}" in printed and "in the order of the reranker" in printed
