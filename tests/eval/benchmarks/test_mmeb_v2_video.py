"""Miniature videos of MMEB-V2: all 18 subsets in the published layout, each video in one shade of gray."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest

from unime.eval.benchmarks.mmeb_v2_video import SETS, tasks
from unime.eval.benchmarks.video_classes import BREAKFAST, HMDB51, KINETICS_700, UCF101
from unime.eval.benchmarks.video_questions import Frames
from unime.eval.embedding_cache import EmbeddingCache
from unime.eval.miniatures.hub_files import gray_tile
from unime.eval.miniatures.video_miniature import OPTIONS, VIDEOS, published_rows, write_subset
from unime.eval.tasks import evaluate
from unime.processing_unime import to_item_dict


CLASSES = {"K700": KINETICS_700, "HMDB51": HMDB51, "UCF101": UCF101, "Breakfast": BREAKFAST}

Publish = Callable[..., tuple[Path, Path]]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(names: list[str], change: Callable[[dict], dict] = dict, layout: int = 0) -> tuple[Path, Path]:
        source, frame_root = tmp_path / "hub", tmp_path / "frames"
        for name in names:
            write_subset(source, frame_root, name, [change(row) for row in published_rows(name)], layout)
        return source, frame_root

    return write


def encode(items):
    """Embed the number of the frames, or else of the text, one dimension each; classes without a video share one."""
    numbers = []
    for item in items:
        images, text = to_item_dict(item)["images"], item.get("text", "")
        digits = re.findall(r"\d", text)
        if images:
            shown = {round(np.asarray(image)[0, 0, 0] / 20) for image in images}
            assert len(shown) == 1
            numbers.append(shown.pop())
        elif text in ("yes", "no"):
            numbers.append(5 + (text == "no"))
        elif digits:
            numbers.append(int(digits[0]))
        else:
            numbers.append(min(min(names.index(text) for names in CLASSES.values() if text in names), 7))
    return np.eye(8, dtype=np.float32)[numbers]


def test_all_18_subsets_run_and_every_video_is_found(publish: Publish):
    opened = tasks(*publish(list(SETS)))
    results, _ = evaluate(EmbeddingCache(encode), opened, model="grays", benchmark="video", progress=False)
    assert {name: task["hit@1"] for name, task in results["tasks"].items()} == dict.fromkeys(SETS, 1.0)
    assert results["overall"] == 1.0 and results["distributions"] == {}
    assert set(results["meta_tasks"]) == {"classification", "vqa", "retrieval", "moments"}
    counts = {name: task["candidates"] for name, task in results["tasks"].items()}
    assert counts["K700"] == 700 and counts["HMDB51"] == 51 and counts["UCF101"] == 101 and counts["Breakfast"] == 10
    assert {counts[name] for name in ("MSR-VTT", "MSVD", "DiDeMo", "VATEX", "YouCook2")} == {VIDEOS}
    local = {name: counts[name] for name in SETS if not SETS[name].shares_candidates}
    assert local == {
        **dict.fromkeys(("SmthSmthV2", "MVBench", "Video-MME", "NExTQA", "EgoSchema"), 5),
        "ActivityNetQA": 2,
        "QVHighlight": 3,
        "Charades-STA": 3,
        "MomentSeeker": 4,
    }
    assert results["tasks"]["MVBench"]["queries"] == 20 * VIDEOS
    assert sum(len(task.queries) for task in opened) == (17 + 20) * VIDEOS


def test_a_query_is_compared_with_its_own_pool(publish: Publish):
    def with_errors(items):
        rows = encode(items)
        wrong = [item.get("instruction", "").startswith("What actions or object interactions") for item in items]
        return np.where(np.array(wrong)[:, None], np.roll(rows, 1, axis=1), rows)

    names = ["SmthSmthV2", "HMDB51"]
    opened = tasks(*publish(names), names)
    results, _ = evaluate(EmbeddingCache(with_errors), opened, model="grays", benchmark="video", progress=False)
    assert [task["hit@1"] for task in results["tasks"].values()] == [0.0, 1.0]
    assert results["tasks"]["SmthSmthV2"]["R@5"] == 1.0  # of five candidates


def test_questions_have_the_published_wording(publish: Publish):
    names = ["MVBench", "Video-MME", "NExTQA", "EgoSchema", "ActivityNetQA"]
    by_name = {task.name: task for task in tasks(*publish(names), names)}
    lettered = "(A) number 0\n(B) number 1\n(C) number 2\n(D) number 3\n(E) number 4"
    sentences = "A. number 0. B. number 1. C. number 2. D. number 3. E. number 4."
    assert by_name["MVBench"].queries[1]["text"] == f"Which?\nOptions:\n{lettered}"
    assert by_name["NExTQA"].queries[1]["text"] == f"Which?\nOptions:\n{lettered}"
    assert by_name["Video-MME"].queries[1]["text"] == "Which?\n" + sentences.replace(". ", ".\n").replace(
        ".\nn", ". n"
    )
    assert by_name["EgoSchema"].queries[1]["text"] == "Which?" + sentences
    assert by_name["ActivityNetQA"].queries[1]["text"] == "is it even? (A) yes; (B) no."
    assert {item["text"] for item in by_name["MVBench"].candidates} == set(lettered.split("\n"))
    for name in ("Video-MME", "NExTQA", "EgoSchema"):
        assert {item["text"] for item in by_name[name].candidates} == set(OPTIONS)


def test_moments_are_queried_by_text_image_or_video(publish: Publish):
    (task,) = tasks(*publish(["MomentSeeker"]), ["MomentSeeker"])
    asked = [
        (to_item_dict(query)["instruction"].split()[-2], len(to_item_dict(query)["images"])) for query in task.queries
    ]
    assert asked == [("given", 0), ("and", 1), ("video", 2), ("given", 0)]
    assert task.positives[1] == task.pools[1][:2] and len(task.pools[1]) == 4


def test_frames_are_evenly_spaced_and_sorted_by_number(tmp_path: Path):
    (tmp_path / "v").mkdir()
    for frame in range(20):
        gray_tile(0).save(tmp_path / "v" / f"frame_{frame}.png")
    (tmp_path / "v" / "notes.txt").write_text("no image")

    def names(count: int) -> list[int]:
        return [int(Path(path).stem.removeprefix("frame_")) for path in Frames(tmp_path, ".", count).of("v")]

    assert names(8) == [0, 2, 5, 8, 10, 13, 16, 19]  # 19 i / 7, truncated
    assert names(3) == [0, 9, 19] and names(1) == [0]
    assert names(20) == names(64) == list(range(20))


def test_the_number_of_frames_and_the_second_folder_are_respected(publish: Publish):
    source, frame_root = publish(["MSR-VTT"], layout=1)
    (task,) = tasks(source, frame_root, ["MSR-VTT"], frames=1)
    assert len(task.candidates[0]["video"]) == 1
    with pytest.raises(ValueError, match="expected at least 1 frame per video, got frames=0"):
        tasks(source, frame_root, ["MSR-VTT"], frames=0)


def test_frames_of_a_relative_folder_are_read(publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, frame_root = publish(["UCF101", "MomentSeeker", "QVHighlight"])
    disk = tmp_path / "another disk"
    (frame_root / "video_cls").rename(disk)
    (frame_root / "video_cls").symlink_to(disk)
    monkeypatch.chdir(tmp_path)
    opened = tasks(source, frame_root.relative_to(tmp_path), ["UCF101", "MomentSeeker", "QVHighlight"])
    results, _ = evaluate(EmbeddingCache(encode), opened, model="grays", benchmark="video", progress=False)
    assert results["overall"] == 1.0
    (disk / "UCF101/v2/frame_1.png").unlink()
    (disk / "UCF101/v2/frame_1.png").symlink_to("nowhere.png")
    with pytest.raises(
        ValueError, match=r"^MMEB-V2 UCF101, row 2: the image \S+/v2/frame_1.png does not exist; unpack"
    ):
        tasks(source, frame_root.relative_to(tmp_path), ["UCF101"])


def test_a_clone_of_mmeb_v2_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    clone, names = tmp_path / "MMEB-V2", ["SmthSmthV2", "UCF101", "MSVD", "Charades-STA"]
    frame_root = clone / "video-tasks/frames"
    (clone / "video-tasks/data").mkdir(parents=True)
    for name, file in zip(names, ("ssv2", "ucf101", "msvd", "charades_sta"), strict=True):
        write_subset(tmp_path / "copies", frame_root, name, published_rows(name))
        lines = [json.dumps(row) for row in published_rows(name)]
        (clone / f"video-tasks/data/{file}.jsonl").write_text("\n".join(lines))
    (frame_root / "video_cls/UCF101").rename(frame_root / "UCF101")  # unpacked without video_cls
    opened = tasks(clone, frame_root, names)
    results, _ = evaluate(EmbeddingCache(encode), opened, model="grays", benchmark="video", progress=False)
    assert {name: task["queries"] for name, task in results["tasks"].items()} == dict.fromkeys(names, VIDEOS)
    assert results["overall"] == 1.0
    (frame_root / "VATEX").mkdir()
    with pytest.raises(ValueError, match="^MMEB-V2 VATEX: the folder .* does not exist; copy the dataset VLM2Vec/VA"):
        tasks(clone, frame_root, ["VATEX"])


def test_rows_and_frames_are_limited_as_in_vlm2vec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source, frame_root = tmp_path / "hub", tmp_path / "frames"
    write_subset(source, frame_root, "SmthSmthV2", published_rows("SmthSmthV2") * 300)
    write_subset(source, frame_root, "MomentSeeker", published_rows("MomentSeeker"))
    for frame in range(2, 12):
        gray_tile(0).save(frame_root / "video_mret/MomentSeeker/video_frames/clips_0" / f"frame_{frame}.png")
    first_rows, moments = tasks(source, frame_root, ["SmthSmthV2", "MomentSeeker"])
    assert len(first_rows.queries) == 1000
    candidate = moments.positives[0][0]
    assert len(moments.candidates[candidate]["video"]) == 12  # a moment of MomentSeeker has no limit of frames


def test_videos_are_distinct_even_if_all_frames_have_one_modification_time(publish: Publish):
    source, frame_root = publish(["MSR-VTT"])
    for frame in frame_root.rglob("*.png"):
        gray_tile(0).save(frame)
        os.utime(frame, (1, 1))
    (task,) = tasks(source, frame_root, ["MSR-VTT"])
    assert len(set(task.candidates.keys())) == VIDEOS


def test_missing_frames_are_named_before_anything_is_embedded(publish: Publish, tmp_path: Path):
    source, frame_root = publish(["UCF101", "MomentSeeker", "QVHighlight"])
    with pytest.raises(
        ValueError, match=r"^MMEB-V2 UCF101: the folder \S+nowhere/video_cls/UCF101 does not exist; unpack the"
    ):
        tasks(source, tmp_path / "nowhere", ["UCF101"])
    (frame_root / "video_cls/UCF101/v2/frame_1.png").write_bytes(b"no image")
    (task,) = tasks(source, frame_root, ["UCF101"])
    with pytest.raises(ValueError, match=r"^MMEB-V2 UCF101: cannot read the image \S+/v2/frame_1.png: it is not a"):
        task.queries[2]
    for frame in (frame_root / "video_cls/UCF101/v2").iterdir():
        frame.unlink()
    with pytest.raises(ValueError, match="^MMEB-V2 UCF101, row 2: the folder .*v2 has no images; unpack the fram"):
        tasks(source, frame_root, ["UCF101"])
    (frame_root / "video_cls/UCF101/v2").rmdir()
    with pytest.raises(ValueError, match="^MMEB-V2 UCF101, row 2: the folder .*v2 does not exist; unpack the frames"):
        tasks(source, frame_root, ["UCF101"])
    (frame_root / "video_mret/MomentSeeker/query_asked_1.jpg").unlink()
    with pytest.raises(ValueError, match="^MMEB-V2 MomentSeeker, row 1: the image .*query_asked_1.jpg does not exist"):
        tasks(source, frame_root, ["MomentSeeker"])
    (frame_root / "video_mret/QVHighlight/v3/positive_10_20").rename(frame_root / "video_mret/QVHighlight/v3/other")
    with pytest.raises(
        ValueError,
        match="^MMEB-V2 QVHighlight, row 3: expected .*v3, got 0 positives among 3 clips",
    ):
        tasks(source, frame_root, ["QVHighlight"])


@pytest.mark.parametrize(
    ("name", "changed", "sentence"),
    [
        (
            "UCF101",
            {"pos_text": "Sleeping"},
            "^MMEB-V2 UCF101, row 0: the class 'Sleeping' is not among the 101 classes",
        ),
        (
            "SmthSmthV2",
            {"pos_text": "nothing"},
            "^MMEB-V2 SmthSmthV2, row 0: the answer 'nothing' is not among the cand",
        ),
        ("SmthSmthV2", {"neg_text": ["number 0"]}, "^MMEB-V2 SmthSmthV2, row 0: the row has no negative$"),
        (
            "MVBench",
            {"answer": "none"},
            "^MMEB-V2 MVBench, action_antonym row 0: the answer 'none' is not one of number",
        ),
        ("Video-MME", {"answer": ""}, "^MMEB-V2 Video-MME, row 0: the answer '' is not one of A, B, C, D, E$"),
        ("EgoSchema", {"answer": None}, "^MMEB-V2 EgoSchema, row 0: the answer None is not one of 0, 1, 2, 3, 4$"),
    ],
)
def test_rows_without_a_valid_answer_are_refused(publish: Publish, name: str, changed: dict, sentence: str):
    source, frame_root = publish([name], lambda row: row | changed)
    with pytest.raises(ValueError, match=sentence):
        tasks(source, frame_root, [name])


def test_other_columns_are_refused(publish: Publish):
    def rename(row: dict) -> dict:
        return {"class" if column == "pos_text" else column: value for column, value in row.items()}

    source, frame_root = publish(["K700"], rename)
    with pytest.raises(
        ValueError, match="^MMEB-V2 K700: .* lacks the column.s. pos_text; found: video_id, class. Use"
    ):
        tasks(source, frame_root, ["K700"])
    reason = "unknown subset 'Kinetics' of MMEB-V2's videos: choose from K700, SmthSmthV2"
    with pytest.raises(ValueError, match=reason):
        tasks(subsets=["Kinetics"])


def test_the_number_of_classes_is_as_published():
    assert [len(set(names)) for names in CLASSES.values()] == [700, 51, 101, 10]
