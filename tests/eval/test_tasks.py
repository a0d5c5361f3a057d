"""Evaluation of encoders that can be computed by hand, with one dimension per word."""

import json

import numpy as np
import pytest
from PIL import Image

from unime.eval.tasks import CompositionalTask, RetrievalTask, evaluate


WORDS = ["cat", "dog", "pig", "cow"]
DOG = Image.new("RGB", (4, 4), "brown")


def encode(items):
    """Embed an item as the words of its text; the image shows a dog."""
    texts = ["dog" if "image" in item else item["text"] for item in items]
    rows = np.array([[float(word in text.split()) for word in WORDS] for text in texts], dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def collapsed(items):
    return np.tile(np.float32([0.6, 0.8]), (len(items), 1))


def items(*texts):
    return [{"text": text} for text in texts]


NAMES = RetrievalTask(
    name="name",
    meta_task="retrieval",
    queries=[*items("a cat", "a pig"), {"image": DOG}],
    candidates=items("cat", "dog", "pig cow", "pig dog"),
    positives=[[0], [2], [1]],  # "a pig" ties between candidates 2 and 3: wrong
)
KINDS = RetrievalTask("kind", "classification", items("cat"), items("cow", "cat"), [[1]])
SWAPS = CompositionalTask("swap_obj", items("cat", "dog"), items("cat", "cat"), items("dog", "dog"))
REPLACES = CompositionalTask("replace_obj", items("cat"), items("cat dog"), items("dog"))
OTHER_REPLACES = CompositionalTask("replace_att", items("cat"), items("pig"), items("cow"))


def test_results_worked_out_by_hand():
    results, _ = evaluate(
        encode, [NAMES, KINDS], [SWAPS, REPLACES, OTHER_REPLACES], model="words", benchmark="toy", progress=False
    )
    assert results.pop("seconds") >= 0
    assert results.pop("embedded")["items"] == 3 + 4 + 1 + 2  # "cat" and "cow" of the second task and "cat dog"
    third = pytest.approx(2 / 3)
    # The places of the positives are 1, 2 and 1.
    ranks = {"MRR": pytest.approx(2.5 / 3), "ndcg@10": pytest.approx((2 + 1 / np.log2(3)) / 3)}
    recalls = {"hit@1": third, "R@1": third, "R@5": 1.0, "R@10": 1.0, **ranks}
    assert results == {
        "model": "words",
        "benchmark": "toy",
        "tasks": {
            "name": {
                "meta_task": "retrieval",
                "metric": "hit@1",
                **recalls,
                "queries": 3,
                "candidates": 4,
                "chance": 0.25,
            },
            "kind": {
                "meta_task": "classification",
                "metric": "hit@1",
                **dict.fromkeys(recalls, 1.0),
                "queries": 1,
                "candidates": 2,
                "chance": 0.5,
            },
        },
        "meta_tasks": {"retrieval": third, "classification": 1.0},
        "distributions": {},
        "overall": pytest.approx(5 / 6),
        "mean_of_meta_tasks": pytest.approx(5 / 6),
        "supplementary_tasks": {},
        "supplementary_means": {},
        "compositional": {"swap_obj": 0.5, "replace_obj": 1.0, "replace_att": 0.0},
        "compositional_groups": {"swap": 0.5, "replace": 0.5},
        "compositional_rows": {"swap_obj": 2, "replace_obj": 1, "replace_att": 1},
        "compositional_chance": {"swap_obj": 0.5, "replace_obj": 0.5, "replace_att": 0.5},
    }


def test_supplementary_tasks_are_in_no_other_mean():
    texts = items("cat", "dog", "pig", "cow")
    dark = RetrievalTask("dark_name", "dark", texts[:2], texts, [[2], [1]], baseline=0.25)
    plain = evaluate(encode, [NAMES, KINDS], model="words", progress=False)[0]
    both, rankings = evaluate(encode, [NAMES, dark, KINDS], model="words", progress=False)
    for part in ("tasks", "meta_tasks", "overall", "mean_of_meta_tasks", "distributions"):
        assert both[part] == plain[part]
    assert both["supplementary_means"] == {"dark": 0.5}
    scores = both["supplementary_tasks"]["dark_name"]
    assert (scores["hit@1"], scores["baseline"], scores["chance"]) == (0.5, 0.25, 0.25)
    assert "dark_name" in rankings["retrieval"]


def test_the_chance_of_a_task_is_the_mean_share_of_positives():
    texts = items("cat", "dog", "pig", "cow")
    pools = [[0, 1], [0, 1, 2, 3]]
    assert RetrievalTask("pools", "vqa", texts[:2], texts, [[0], [1, 2]], pools).chance == 0.5  # (1/2 + 2/4) / 2
    assert RetrievalTask("all", "vqa", texts[:2], texts, [[0], [1, 2]]).chance == 0.375  # (1/4 + 2/4) / 2


def test_the_score_of_a_task_is_its_metric():
    def scores(metric: str | None, **parts) -> dict:
        task = RetrievalTask("name", "vqa", items("cat"), items("cow", "cat", "pig"), [[1]], metric=metric, **parts)
        return evaluate(encode, [task], model="words", progress=False)[0]["tasks"]["name"]

    assert [scores(metric)["metric"] for metric in (None, "R@2", "mAP@3")] == ["hit@1", "R@2", "mAP@3"]
    assert scores("R@2")["R@2"] == 1.0 and scores("R@2")["chance"] == pytest.approx(2 / 3)
    assert scores("mAP@3")["mAP@3"] == scores("mAP@3")["mAP@50"] == 1.0
    assert scores(None, relevance=[[2.0]])["metric"] == "ndcg@5"
    assert scores("ndcg@10", relevance=[[2.0]])["chance"] == pytest.approx((1 + 1 / np.log2(3) + 1 / 2) / 3)
    for metric in ("accuracy", "hit@2", "R@0"):
        with pytest.raises(ValueError, match=f"task 'name' has the metric '{metric}'; use hit@1, R@5, ndcg@10, mAP@5"):
            scores(metric)


def test_a_collapsed_embedding_scores_zero_everywhere():
    results, rankings = evaluate(collapsed, [NAMES, KINDS], [SWAPS], model="constant", progress=False)
    assert results["overall"] == 0
    assert results["compositional"] == {"swap_obj": 0}
    assert not any(example["right"][0] for example in rankings["retrieval"]["name"]["examples"])


def test_rankings_survive_json_and_hold_the_best_first():
    _, rankings = evaluate(encode, [NAMES], [SWAPS], model="words", shown=2, progress=False)
    assert json.loads(json.dumps(rankings)) == rankings
    first, second = rankings["retrieval"]["name"]["examples"]
    assert first == {
        "query": 0,
        "top": [0, 1, 2, 3],
        "scores": [1.0, 0.0, 0.0, 0.0],
        "right": [True, False, False, False],
        "answer": 0,
        "answer_score": 1.0,
        "rank": 0,
    }
    assert second["query"] == 1
    (mistake,) = rankings["retrieval"]["name"]["mistakes"]
    assert (mistake["query"], mistake["answer"], mistake["top"][0], mistake["rank"]) == (1, 2, 3, 1)
    assert rankings["compositional"]["swap_obj"]["mistakes"] == [{"row": 1, "true": 0.0, "false": 1.0}]


def test_mistakes_are_sorted_by_margin():
    task = RetrievalTask("name", "retrieval", items("cat dog", "cat"), items("cat", "dog pig"), [[1], [1]])
    _, rankings = evaluate(encode, [task], model="words", progress=False)
    assert [mistake["query"] for mistake in rankings["retrieval"]["name"]["mistakes"]] == [1, 0]


def test_only_the_pool_is_ranked():
    task = RetrievalTask("name", "vqa", items("cat"), items("cat", "cat dog", "pig"), [[1]], pools=[[1, 2]])
    results, rankings = evaluate(encode, [task], model="words", progress=False)
    assert results["overall"] == 1
    assert results["tasks"]["name"]["candidates"] == 2
    assert rankings["retrieval"]["name"]["examples"][0]["top"] == [1, 2]


def test_mmeb_tasks_have_their_distribution_and_vlm2vecs_score_beside_ours():
    def task(name: str, query: str, distribution: str) -> RetrievalTask:
        pools = [[1, 0, 2], [2, 0]]  # "pig dog" ties with "pig cow": wrong by our rule, correct for an argmax
        candidates = items("cat", "pig dog", "pig cow")
        return RetrievalTask(name, "vqa", items("pig", query), candidates, [[1], [2]], pools, distribution)

    results, _ = evaluate(
        encode, [task("a", "cow", "IND"), task("b", "cat", "OOD"), task("c", "cow", "OOD")], model="w", progress=False
    )
    assert [(each["hit@1"], each["hit@1, ties right"]) for each in results["tasks"].values()] == [
        (0.5, 1.0),
        (0.0, 0.5),
        (0.5, 1.0),
    ]
    assert results["distributions"] == {"IND": 0.5, "OOD": 0.25}
    assert results["overall"] == pytest.approx(1 / 3)


def test_every_distinct_item_is_embedded_once_across_tasks():
    seen = []

    def counting(items):
        seen.extend(items)
        return encode(items)

    again = RetrievalTask("again", "vqa", [{"image": DOG}], items("dog", "cat"), [[0]])
    instructed = RetrievalTask("instructed", "vqa", [{"text": "cat", "instruction": "Find"}], items("cat"), [[0]])
    evaluate(counting, [NAMES, again, instructed], model="words", progress=False)
    assert len(seen) == 3 + 4 + 0 + 1
    assert sum("image" in item for item in seen) == 1


def test_the_error_for_a_nonfinite_embedding_names_the_item():
    def with_nan(items):
        rows = encode(items)
        rows[1] = np.nan
        return rows

    with pytest.raises(ValueError, match="embedding of query 1 of task 'name' is not finite"):
        evaluate(with_nan, [NAMES], model="words", progress=False)


def test_embeddings_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected embeddings of shape \(3, D\) from encode, got \(2, 4\)"):
        evaluate(lambda items: encode(items)[:2], [NAMES], model="words", progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta_task": "video"}, "has meta_task 'video'; use one of classification"),
        ({"positives": [[0]]}, "has 3 queries and 1 lists of positives"),
        ({"positives": [[0], [], [1]]}, r"query 1 of task 'name' has the positives \[\]"),
        ({"positives": [[0], [4], [1]]}, r"query 1 of task 'name' has the positives \[4\].*its 4 candidates"),
        ({"pools": [[0]]}, "has 3 queries and 1 pools"),
        ({"pools": [[0], [2], [0, 2]]}, r"query 2 of task 'name' has the positives \[1\].*its 2 candidates"),
    ],
)
def test_an_inconsistent_retrieval_task_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RetrievalTask(**{**vars(NAMES), **change})


def test_a_compositional_task_needs_equally_long_columns():
    with pytest.raises(ValueError, match="has 1 images, 2 captions and 1 negatives"):
        CompositionalTask("swap_obj", items("cat"), items("cat", "dog"), items("dog"))
