"""Miniature videos of MMEB-V2: 18 subsets of four videos with two frames each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..benchmarks.mmeb_v2_video import SETS
from .hub_files import save_gray_tile, write_hub_dataset


VIDEOS = 4  # per subset
OPTIONS = [f"number {number}" for number in range(5)]


def published_rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of a subset, one about each video."""
    return [_row(name, number) for number in range(VIDEOS)]


def _row(name: str, number: int) -> dict[str, Any]:
    letter, text = "ABCDE"[number], f"number {number}"
    lettered = [f"{'ABCDE'[option]}. {text}." for option, text in enumerate(OPTIONS)]
    captioned = {"caption": text, "video": f"somewhere/v{number}.mp4", "video_id": f"v{number}"}
    match name:
        case "SmthSmthV2":
            return {"video_id": number, "pos_text": text, "neg_text": OPTIONS}
        case "MVBench":
            return {"video": f"v{number}", "question": "Which?", "candidates": OPTIONS, "answer": text}
        case "Video-MME":
            return {"videoID": f"v{number}", "question": "Which?", "options": lettered, "answer": letter}
        case "NExTQA":
            options = {f"a{option}": text for option, text in enumerate(OPTIONS)}
            return {"video": number, "question": "Which?", "answer": number, **options}
        case "EgoSchema":
            return {"video_idx": f"v{number}", "question": "Which?", "option": lettered, "answer": str(number)}
        case "ActivityNetQA":
            return {"video_name": f"{number}", "question": "is it even", "answer": ["yes", "no"][number % 2]}
        case "DiDeMo" | "MSR-VTT":
            return captioned
        case "MSVD":
            return captioned | {"caption": [text, "number 0"]}
        case "VATEX":
            return {"videoID": f"v{number}", "enCap": [text, "number 0"]}
        case "YouCook2":
            return {"id": f"v{number}", "sentence": text, "video_path": "elsewhere"}
        case "QVHighlight" | "Charades-STA":
            return {"query": text, "video_path": f"somewhere/v{number}.mp4"}
        case "MomentSeeker":
            clips = [f"clips/{(number + step) % VIDEOS}.mp4" for step in range(3)]
            return {
                "query": text,
                "input_frames": ["", f"asked_{number}.jpg", f"movie/{number}.mp4", ""][number],
                # One of two positives is enough.
                "positive_frames": [{"output_path": clips[0]}, {"output_path": "clips/far.mp4"}],
                "negative_frames": [{"output_path": clip} for clip in clips[1:]],
            }
        case _:
            return {"video_id": f"v{number}", "pos_text": SETS[name].classes[number]}


def _frame_folders(name: str) -> dict[str, int]:
    """Return the frame folders of a subset -> the number that they show."""
    each = range(VIDEOS)
    match name:
        case "SmthSmthV2" | "NExTQA":
            return {f"{number}": number for number in each}
        case "MVBench":
            return {f"{config}/v{number}": number for config in SETS[name].configs for number in each}
        case "ActivityNetQA":
            return {f"v_{number}": 5 + number % 2 for number in each}
        case "QVHighlight" | "Charades-STA":
            clips = {"query": 0, "positive_10_20": 0, "negative_0": 1, "negative_1": 2}
            return {f"v{number}/{clip}": (number + step) % VIDEOS for number in each for clip, step in clips.items()}
        case "MomentSeeker":
            clips = {f"video_frames/clips_{number}": number for number in each}
            return clips | {"video_frames/clips_far": 4, "video_frames/movie_2": 2}
    return {f"v{number}": number for number in each}


def write_subset(
    source: Path,
    frame_root: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]] | None = None,
    layout: int = 0,
) -> None:
    """Write a subset.

    Args:
        source (`Path`): Folder of the datasets.
        frame_root (`Path`): Folder of the unpacked frames.
        name (`str`): Key of `SETS`.
        rows (`Sequence[Mapping]`, *optional*, defaults to `published_rows`): Rows of each configuration.
        layout (`int`, *optional*, defaults to 0): Index of the folder in `VideoSet.folders`.
    """
    video_set = SETS[name]
    rows = published_rows(name) if rows is None else rows
    write_hub_dataset(
        source / video_set.repository, {config or "default": rows for config in video_set.configs}, video_set.split
    )
    root = frame_root / video_set.folders[layout]
    for folder, number in _frame_folders(name).items():
        for frame in range(2):
            save_gray_tile(root / folder / f"frame_{frame}.png", number)
    if name == "MomentSeeker":
        save_gray_tile(root / "query_asked_1.jpg", 1)


def write_miniature(folder: Path) -> dict[str, str]:
    """Write every subset, and return the arguments that open them."""
    frames = "MMEB-V2/video-tasks/frames"
    for name in SETS:
        write_subset(folder / "MMEB-V2", folder / frames, name)
    return {"mmeb_v2_source": "MMEB-V2", "mmeb_v2_frames": frames}
