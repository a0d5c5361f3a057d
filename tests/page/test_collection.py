"""Collections: an index with its model."""

from pathlib import Path

import numpy as np
import pytest

from unime import load_model
from unime.corpus.corpus import open_corpus
from unime.index.index import Index
from unime.page.collection import Collection, LazyCollection, open_index
from unime.page.drawing import render_hits
from unime.page.examples import drawings_named
from unime.reranker import UniMEReranker


CHECKPOINT = str(Path(__file__).parents[2] / "checkpoints" / "unime-tiny")
NAMES = ("pizza", "volcano", "penguin", "firefighter", "firefighter dark skin tone")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "images").mkdir()
    for name, image in zip(NAMES, drawings_named(*NAMES), strict=True):
        image.save(folder / "images" / f"{name}.png")
    index = Index.create(folder / "index", CHECKPOINT)
    index.sync(open_corpus(folder / "images"), *load_model(CHECKPOINT, dtype="float32"))
    return folder / "index"


@pytest.fixture(scope="module")
def collection(index: Path) -> Collection:
    return open_index(index)


def test_a_text_an_image_and_a_changed_image_each_find_their_image(collection: Collection) -> None:
    volcano, firefighter = drawings_named("volcano", "firefighter")
    assert collection.title == "unime-tiny"
    assert collection.search("pizza", None).hits[0].id == "pizza.png"
    assert collection.search(None, volcano).hits[0].id == "volcano.png"
    changed = collection.search("with dark skin tone", firefighter)
    assert changed.hits[0].id == "firefighter dark skin tone.png"
    assert changed.instruction.startswith("Given an image")


def test_the_instruction_and_the_number_of_results_can_be_chosen(collection: Collection) -> None:
    result = collection.search("pizza", None, "Find it:", 2)
    assert (result.instruction, len(result.hits)) == ("Find it:", 2)
    assert collection.search("pizza", None, "").instruction == ""  # the one-word prompt


def test_an_empty_query_is_rejected(collection: Collection) -> None:
    with pytest.raises(ValueError, match="nothing to search for"):
        collection.search("  ", None)


def test_a_reranker_orders_the_results(collection: Collection) -> None:
    reranker = UniMEReranker.from_pretrained(str(Path(CHECKPOINT).with_name("tiny-backbone")), dtype="float32")
    nearest = [hit.id for hit in collection.search("volcano", None, k=3).hits]
    result = collection.search("volcano", None, k=3, reranker=reranker)
    images = drawings_named(*(name.removesuffix(".png") for name in nearest))
    expected = reranker.rank("volcano", images)
    assert [hit.id for hit in result.hits] == [nearest[candidate.index] for candidate in expected]
    assert f"{expected[0].score:.3f}</span>" in render_hits(result)


def test_similarities_are_the_cosines_of_queries_and_images(collection: Collection) -> None:
    images = drawings_named("pizza", "volcano", "penguin")
    similarities = collection.similarities(["volcano", "pizza"], images)
    assert similarities.shape == (2, 3)
    scores = {hit.id: hit.score for hit in collection.search("volcano", None).hits}
    expected = [scores[f"{name}.png"] for name in ("pizza", "volcano", "penguin")]
    np.testing.assert_allclose(similarities[0], expected, atol=1e-5)


def test_a_lazy_collection_is_opened_once() -> None:
    opened = []

    def open(source: str, report: object) -> str:
        opened.append(source)
        return source

    second = LazyCollection(open, "elsewhere")
    assert opened == []
    assert [second(), second()] == ["elsewhere", "elsewhere"] and opened == ["elsewhere"]
