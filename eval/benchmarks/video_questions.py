"""The queries and candidates in the rows of MMEB-V2's video subsets: one reader per layout.

A reader takes a row and the frames of the subset and returns a [`Question`]. Texts and instructions are copied from
VLM2Vec's evaluation code (arXiv 2507.04590), oddities included: MVBench candidates keep their letters and others do
not, and EgoSchema's options follow the question without a space.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np


FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
_ANSWER = (
    "Given a video and a question, select the most accurate answer from the provided candidates. "
    "Return only the exact text of your chosen answer. Question:"
)
_WATCH = "Understand the content of the provided video."
_WATCH_CLIP = "Understand the content of the provided video clip."

Row = Mapping[str, Any]
Item = dict[str, Any]  # as in `LazyItems`: frames are paths


@dataclass(frozen=True)
class Frames:
    """The frames of a subset's videos.

    Args:
        root (`Path`): Folder of the frames of all subsets.
        folder (`str`): Folder in it with one folder of images per video.
        count (`int`, *optional*): Maximum number of frames per video.
    """

    root: Path
    folder: str
    count: int | None = None

    def of(self, video: object) -> list[str]:
        """Return paths, from `root`, of `count` evenly spaced frames, first and last included, or of all if fewer."""
        frames = sorted(
            (path.name for path in self._list(video) if path.suffix.lower() in FRAME_SUFFIXES),
            key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
        )
        if not frames:
            raise ValueError(f"the folder {self.path(video)} has no images; unpack the frames again")
        if self.count is not None and len(frames) > self.count:
            frames = [frames[index] for index in np.linspace(0, len(frames) - 1, self.count, dtype=int)]
        return [f"{self.folder}/{video}/{name}" for name in frames]

    def clips(self, video: str) -> list[str]:
        """Return the clips in the folder of a video, sorted by name."""
        return sorted(f"{video}/{path.name}" for path in self._list(video) if path.is_dir())

    def path(self, video: object) -> Path:
        """Return the folder of a video, or another path in the subset's folder."""
        return self.root / self.folder / str(video)

    def _list(self, video: object) -> list[Path]:
        if not self.path(video).is_dir():
            raise ValueError(f"the folder {self.path(video)} does not exist; unpack the frames of MMEB-V2 again")
        return list(self.path(video).iterdir())


@dataclass(frozen=True)
class Question:
    """The content of a row: its query, its positives, and the negatives listed in the row."""

    query: Item
    positives: list[Item]
    negatives: list[Item] = field(default_factory=list)


def class_query(instruction: str, classes: tuple[str, ...]) -> Callable[[Row, Frames], Question]:
    """Return a reader of rows with a video and its class, `pos_text`."""

    def read(row: Row, frames: Frames) -> Question:
        if row["pos_text"] not in classes:
            raise ValueError(f"the class {row['pos_text']!r} is not among the {len(classes)} classes of the dataset")
        query = {"video": frames.of(row["video_id"]), "instruction": instruction}
        return Question(query, [{"text": row["pos_text"]}])

    return read


def something_something(row: Row, frames: Frames) -> Question:
    """Read a video, its action `pos_text`, and the candidate actions `neg_text`, which include the positive."""
    instruction = "What actions or object interactions are being performed by the person in the video?"
    query = {"video": frames.of(row["video_id"]), "instruction": instruction}
    return _multiple_choice(query, row["neg_text"], row["pos_text"])


def _multiple_choice(query: Item, options: Sequence[str], answer: str) -> Question:
    if answer not in options:
        raise ValueError(f"the answer {answer!r} is not among the candidates {list(options)}")
    return Question(query, [{"text": answer}], [{"text": option} for option in options if option != answer])


def _keyed_choice(text: str, frames: list[str], options: Mapping[str, str], answer: object) -> Question:
    """Return a question about a video; `options` maps letters or numbers to candidates, `answer` is a key of it."""
    if str(answer) not in options:
        raise ValueError(f"the answer {answer!r} is not one of {', '.join(options)}")
    query = {"text": text, "video": frames, "instruction": _ANSWER}
    return _multiple_choice(query, [*options.values()], options[str(answer)])


def _numbered(options: Sequence[str]) -> dict[str, str]:
    return {str(number): option for number, option in enumerate(options)}


def _lettered(options: Sequence[str]) -> list[str]:
    return [f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]


def _without_letters(options: Sequence[str]) -> list[str]:
    """Remove the letters of options: 'A. Three dogs.' -> 'Three dogs'."""
    return [(option.partition(". ")[2] or option).strip(". ") for option in options]


def mvbench(row: Row, frames: Frames) -> Question:
    """Read a question, its `candidates`, and the text of the correct one."""
    options = _lettered(row["candidates"])
    text = "\n".join([row["question"], "Options:", *options])
    return _keyed_choice(
        text,
        frames.of(f"{row['subset']}/{row['video']}"),
        dict(zip(row["candidates"], options, strict=True)),
        row["answer"],
    )


def video_mme(row: Row, frames: Frames) -> Question:
    """Read a question, its `options` ('A. Three dogs.'), and the letter of the correct one."""
    text = "\n".join([row["question"], *row["options"]])
    options = dict(zip(ascii_uppercase, _without_letters(row["options"]), strict=False))
    return _keyed_choice(text, frames.of(row["videoID"]), options, row["answer"])


def next_qa(row: Row, frames: Frames) -> Question:
    """Read a question, its options `a0` to `a4`, and the number of the correct one."""
    options = [row[f"a{option}"] for option in range(5)]
    text = "\n".join([row["question"], "Options:", *_lettered(options)])
    return _keyed_choice(text, frames.of(row["video"]), _numbered(options), row["answer"])


def egoschema(row: Row, frames: Frames) -> Question:
    """Read a question, its options in `option` ('A. Three dogs.'), and the number of the correct one."""
    text = row["question"] + " ".join(row["option"])
    return _keyed_choice(text, frames.of(row["video_idx"]), _numbered(_without_letters(row["option"])), row["answer"])


def activitynet_qa(row: Row, frames: Frames) -> Question:
    """Read a yes-or-no question."""
    text = f"{row['question']}? (A) yes; (B) no."
    return _keyed_choice(text, frames.of(f"v_{row['video_name']}"), {"yes": "yes", "no": "no"}, row["answer"])


def caption_query(instruction: str, video: str, caption: str) -> Callable[[Row, Frames], Question]:
    """Return a reader of rows with a caption and its video, given the names of both columns.

    A list of captions counts as its first one.
    """

    def read(row: Row, frames: Frames) -> Question:
        text = row[caption] if isinstance(row[caption], str) else row[caption][0]
        candidate = {"video": frames.of(row[video]), "instruction": _WATCH}
        return Question({"text": text, "instruction": instruction}, [candidate])

    return read


def didemo(row: Row, frames: Frames) -> Question:
    """Read a caption and the path of its video; the folder of its frames has the stem of the path as its name."""
    read = caption_query("Find a video that includes the following described scenes:", "video", "caption")
    return read({**row, "video": Path(row["video"]).stem}, frames)


def moment(row: Row, frames: Frames) -> Question:
    """Read a description of a moment; the video's folder has its frames in `query` and clips as further folders.

    Clips named `positive...` are positives, all others are negatives.
    """
    video = Path(row["video_path"]).stem
    clips = [clip for clip in frames.clips(video) if clip != f"{video}/query"]
    positives = [clip for clip in clips if clip.startswith(f"{video}/positive")]
    if not 0 < len(positives) < len(clips):
        raise ValueError(
            f"expected positive and negative clips in {frames.path(video)}, got {len(positives)} positives among "
            f"{len(clips)} clips; unpack the frames again"
        )
    instruction = "Find the clip that corresponds to the described scene in the given video:"
    query = {"text": row["query"], "video": frames.of(f"{video}/query"), "instruction": instruction}
    items = {clip: {"video": frames.of(clip), "instruction": _WATCH} for clip in clips}
    return Question(
        query, [items[clip] for clip in positives], [items[clip] for clip in clips if clip not in positives]
    )


def moment_seeker(row: Row, frames: Frames) -> Question:
    """Read a text, alone or with an image `query_...` or a video; videos and clips are folders of `video_frames`."""

    def frames_of(path: str) -> list[str]:
        return frames.of(f"video_frames/{path.split('.mp4')[0].replace('/', '_')}")

    def clips(entries: Sequence[Row]) -> list[Item]:
        return [{"video": frames_of(entry["output_path"]), "instruction": _WATCH_CLIP} for entry in entries]

    query, media = {"text": row["query"]}, row["input_frames"] or ""
    if media.endswith(".mp4"):
        instruction = "Find the clip that corresponds to the given sentence and video segment:"
        query |= {"video": frames_of(media), "instruction": instruction}
    elif media.endswith(".jpg"):
        instruction = "Select the video clip that aligns with the given text and image:"
        query |= {"image": [f"{frames.folder}/query_{media}"], "instruction": instruction}
    else:
        query |= {"instruction": "Find the clip that corresponds to the given text:"}
    return Question(query, clips(row["positive_frames"]), clips(row["negative_frames"]))
