"""Searches of several kinds of entries: worked numbers, and an index where texts and images compete."""

import random
from collections import Counter
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from unime.corpus.entry import Entry
from unime.index.index import Index
from unime.index.kinds import KINDS, PRIOR_ENTRIES, Scale, scales
from unime.index.queries import query_items
from unime.openmoji.catalogue import Emoji, catalogue
from unime.openmoji.views import View


def test_a_scale_is_the_median_and_the_spread_of_a_kind():
    many = 10**4  # so that the other kind hardly counts
    samples = {
        "text": np.repeat([0.5, 0.6, 0.7, 0.8, 0.9], many),
        "image": np.repeat([0.0, 0.1, 0.2, 0.3, 0.4], many),
    }
    scale = scales(samples)
    spread = 0.2 / 1.349  # the quartiles are 0.6 and 0.8, 0.1 and 0.3
    assert scale["text"].median == pytest.approx(0.7, abs=1e-3)
    assert scale["image"].median == pytest.approx(0.2, abs=1e-3)
    assert scale["text"].spread == pytest.approx(spread, abs=1e-3)
    # A cosine of 0.5 is a common one for a text and a high one for an image.
    assert scale["text"].score(0.5) == pytest.approx(-0.2 / spread, abs=1e-2)
    assert scale["image"].score(0.5) == pytest.approx(0.3 / spread, abs=1e-2)


def test_few_entries_of_a_kind_take_the_scale_of_all():
    scale = scales({"text": np.linspace(0, 0.4, 90), "image": np.full(10, 0.9)})
    everything = (90 * 0.2 + 10 * 0.9) / 100
    assert scale["image"].median == pytest.approx((10 * 0.9 + PRIOR_ENTRIES * everything) / (10 + PRIOR_ENTRIES))
    assert scale["image"].spread > 0  # although its own entries have none
    assert scales({"image": np.full(1, 0.9)})["image"] == Scale(pytest.approx(0.9), 0)


def write(index: Index, kind: str, cosines: list[float]) -> None:
    """Write entries of a kind whose embeddings have these cosines with the first axis."""
    text, image = ("a text" if "text" in kind else None), ("/nowhere.png" if "image" in kind else None)
    entries = [Entry(f"{kind} {cosine}", text, image) for cosine in cosines]
    vectors = np.zeros((len(cosines), 192), np.float32)
    vectors[:, 0] = cosines
    vectors[:, 1] = np.sqrt(1 - np.square(cosines))
    index.table.write(entries, vectors, {entry.id: entry.id for entry in entries}, set())


def test_results_of_several_kinds_are_merged_by_their_standard_scores(index: Index):
    texts = [*np.linspace(0.5, 0.58, 101).round(4).tolist(), 0.66]
    images = [*np.linspace(0.1, 0.26, 101).round(4).tolist(), 0.5]
    for kind, cosines in (("text", texts), ("image", images), ("image-text", [0.3])):
        write(index, kind, cosines)
    assert index.kinds == list(KINDS)
    axis = np.eye(192, dtype=np.float32)[0]
    raw = index.search(axis, k=3)
    assert [hit.id for hit in raw] == ["text 0.66", "text 0.58", "text 0.5792"]
    assert all(hit.standard_score is None for hit in raw)

    merged = index.search({"text": axis, "image": 2 * axis}, k=3)  # a query needs no unit length
    assert [hit.id for hit in merged] == ["image 0.5", "text 0.66", "text 0.58"]
    scale = scales({"text": np.array(texts), "image": np.array(images)})
    expected = [scale["image"].score(0.5), scale["text"].score(0.66), scale["text"].score(0.58)]
    np.testing.assert_allclose([hit.standard_score for hit in merged], expected, rtol=1e-4)
    np.testing.assert_allclose([hit.score for hit in merged], [0.5, 0.66, 0.58], atol=1e-6)

    only = index.search({"image": axis}, k=2)
    assert [(hit.id, hit.standard_score) for hit in only] == [("image 0.5", None), ("image 0.26", None)]
    chosen = index.search({"text": axis, "image": axis}, where="id != 'image 0.5' OR id = ''")
    assert chosen[0].id == "text 0.66"
    write(index, "image", [0.9])  # a sample is not kept when the table changes
    assert index.search({"text": axis, "image": axis})[0].id == "image 0.9"


@pytest.mark.slow
def test_texts_and_images_are_found_by_text_in_a_mixed_index(index: Index, loaded: Any):
    """Names and drawings of different emoji, searched by another name of each."""
    model, processor = loaded
    chosen = [entry for entry in catalogue() if entry.index == entry.base and entry.aliases][:600]
    texts, images = chosen[::2], chosen[1::2]

    def drawing(number: int) -> bytes:
        file = BytesIO()
        View.sample(number, random.Random(number)).render().save(file, "PNG")
        return file.getvalue()

    entries = [Entry(entry.code, entry.name) for entry in texts]
    entries += [Entry(entry.code, image=drawing(entry.index)) for entry in images]
    index.sync(entries, model, processor)

    def found(entries: list[Emoji]) -> dict[str, int]:
        """Return how many entries are among the best ten, by the query for texts, by that for images, and by both."""
        items = [query_items(index.kinds, entry.aliases[0]) for entry in entries]
        queries = {kind: model.encode([item[kind] for item in items], processor) for kind in index.kinds}
        counts = Counter()
        for number, entry in enumerate(entries):
            query = {kind: vectors[number] for kind, vectors in queries.items()}
            for name, searched in (*query.items(), ("both", query)):
                counts[name] += entry.code in {hit.id for hit in index.search(searched, k=10)}
        return counts

    of_texts, of_images = found(texts[::3]), found(images[::3])
    print(f"among the best ten of {len(texts[::3])} each, by query: {dict(of_texts)} texts, {dict(of_images)} images")
    assert of_texts["both"] > of_texts["image"] + 10 and of_images["both"] > of_images["text"] + 20
    assert of_texts["both"] > 0.9 * of_texts["text"] and of_images["both"] > 0.8 * of_images["image"]
