"""Text and tool tasks of MMEB-V3 on small files in the published layout."""

import re
from pathlib import Path

import numpy as np
import pytest

from unime.eval.benchmarks import mmeb_v3
from unime.eval.benchmarks.mmeb_v3 import TEXT_SETS, TOOL_SETS, text_files, tool_files
from unime.eval.miniatures.mmeb_v3_miniature import DOCUMENTS, write_mmeb_v3, write_rows, write_text_set
from unime.eval.tasks import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mmeb_v3(tmp_path_factory.mktemp("mmeb-v3"))


def encode(items):
    """Embed a text as its number; the others follow in the order 0, 1, ..., so that there is no tie."""
    rows = np.tile(np.linspace(0.3, 0.1, DOCUMENTS), (len(items), 1)).astype(np.float32)
    for row, item in zip(rows, items, strict=True):
        number = int(re.findall(r"number (\d)", item["text"])[0])
        if "which" not in item["text"]:
            row[:] = 0
        row[number] = 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_53_text_sets_of_seven_collections(folder: Path):
    tasks = mmeb_v3.texts(folder)
    assert [task.name for task in tasks] == list(TEXT_SETS) and len(TEXT_SETS) == 53
    results, _ = evaluate(encode, tasks, model="numbers", progress=False)
    assert list(results["distributions"]) == [
        "BRIGHT", "FollowIR", "InfoSearch", "LongEmbed", "MultiConIR", "NanoBEIR", "R2MED",
    ]  # fmt: skip
    # Query 0 ranks 1 0 2 3 4 5; its positives are 1 (relevance 2) and 2 (relevance 1), at places 1 and 3.
    graded = (2 + 1 / 2) / (2 + 1 / np.log2(3))
    assert results["tasks"]["R2MED/Biology"]["ndcg@5"] == pytest.approx((graded + 1) / 2)
    # BRIGHT lists documents without relevances.
    binary = (1 + 1 / 2) / (1 + 1 / np.log2(3))
    assert results["tasks"]["BRIGHT/pony"]["ndcg@5"] == pytest.approx((binary + 1) / 2)
    assert results["tasks"]["BRIGHT/pony"]["metric"] == "ndcg@5"


def test_35_tool_sets_share_the_tools_of_their_kind(folder: Path):
    tasks = mmeb_v3.tools(folder)
    assert [task.name for task in tasks] == list(TOOL_SETS) and len(TOOL_SETS) == 35
    assert tasks[0].queries[0] == {"text": "Given a request, which is number 1?"}
    assert tasks[0].candidates[3] == {"text": '{"name": "number 3 "}'} and tasks[0].positives == [[1, 2], [4]]
    results, _ = evaluate(encode, tasks, model="numbers", progress=False)
    assert results["distributions"] == {"web": 1.0, "code": 1.0, "customized": 1.0}
    assert results["tasks"]["web/mnms"]["metric"] == "hit@1"
    assert results["tasks"]["web/mnms"]["chance"] == pytest.approx((2 / 6 + 1 / 6) / 2)


def test_instructions_and_titles_are_joined_as_by_vlm2vec(folder: Path):
    names = ["FollowIR/core17-instructions", "InfoSearch/Length-v1", "MultiConIR/Legal Document"]
    followed, searched, legal = mmeb_v3.texts(folder, names)
    assert followed.queries[0]["text"] == "As at first. which is number 1?"
    assert searched.queries[0]["text"] == "As it is now. which is number 1?"
    assert legal.queries[1]["text"] == "which is number 4?"
    assert followed.candidates[2]["text"] == "A page\nthis is number 2"
    assert legal.candidates[2]["text"] == "this is number 2"


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        ([{"id": "a"}, {"id": "b"}], ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ('{"id": "a"}', ["a"]),
        ("not JSON", []),
        (None, []),
    ],
)
def test_labels_of_tools_have_several_forms(labels: object, ids: list[str]):
    assert mmeb_v3._labels({"labels": labels}) == mmeb_v3._labels({"label": labels}) == ids


def test_incomplete_files_are_refused(tmp_path: Path):
    name = "R2MED/Biology"
    write_text_set(tmp_path, name)
    queries, corpus, qrels = (tmp_path / str(file) for file in text_files(name))
    write_rows(qrels, [{"q_id": "q0", "p_id": "elsewhere"}])
    with pytest.raises(ValueError, match="MMEB-V3 R2MED/Biology: no query has a positive among the 6 candidates"):
        mmeb_v3.texts(tmp_path, [name])
    write_rows(qrels, [{"q_id": "q1", "p_id": "d3"}])
    (task,) = mmeb_v3.texts(tmp_path, [name])
    assert task.positives == [[3]] and task.queries == [{"text": "which is number 4?"}]
    queries.write_text("[]\n")
    with pytest.raises(ValueError, match="line 1 of .*query.jsonl is not a JSON object; use the file as published"):
        mmeb_v3.texts(tmp_path, [name])
    corpus.unlink()
    queries.write_text("")
    with pytest.raises(ValueError, match="there is no file .*corpus.jsonl; give the clone of VLM2Vec/MMEB-V3 as --mm"):
        mmeb_v3.texts(tmp_path, [name])
    with pytest.raises(ValueError, match="unknown subset 'apibank' of MMEB-V3's tool tasks: choose from web/apibank"):
        mmeb_v3.tools(tmp_path, ["apibank"])
    assert tool_files("code/toolink")[1] == "tool-tasks/ToolDe-Candidates/code/tools-00000-of-00001.parquet"
