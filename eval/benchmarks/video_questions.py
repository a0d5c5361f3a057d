"""What the rows of MMEB-V2's video sets ask: for each layout a function from a row and its frames to a question.

Texts and instructions are those of VLM2Vec's evaluation (arXiv 2507.04590), its oddities too: candidates of MVBench
keep their letters and others do not, and EgoSchema's options follow the question without a blank.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np


IMAGES = (".jpg", ".jpeg", ".png")
_ANSWER = (
    "Given a video and a question, select the most accurate answer from the provided candidates. "
    "Return only the exact text of your chosen answer. Question:"
)
_WATCH = "Understand the content of the provided video."
_WATCH_CLIP = "Understand the content of the provided video clip."

Row = Mapping[str, Any]
Item = dict[str, Any]  # as `StoredItems` holds it: the frames as paths


@dataclass(frozen=True)
class Frames:
    """The frames of a set's videos: below `root` a folder of images for each, of which `count` are taken."""

    root: Path
    count: int

    def of(self, video: object) -> list[str]:
        """Paths of evenly spaced frames, first and last among them; all where a video has fewer."""
        folder = self.root / str(video)
        frames = sorted(
            (path for path in self._inside(folder) if path.suffix.lower() in IMAGES),
            key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)],
        )
        if not frames:
            raise ValueError(f"the folder {folder} holds no images: unpack the frames again")
        if len(frames) > self.count:
            frames = [frames[frame] for frame in np.linspace(0, len(frames) - 1, self.count, dtype=int)]
        return [str(path) for path in frames]

    def clips(self, video: str) -> list[str]:
        """The videos that lie in the folder of a video, in the order of their names."""
        return sorted(f"{video}/{path.name}" for path in self._inside(self.root / video) if path.is_dir())

    def _inside(self, folder: Path) -> list[Path]:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: unpack the frames of MMEB-V2 again")
        return list(folder.iterdir())


@dataclass(frozen=True)
class Question:
    """What a row asks: its query, the right candidates, and the wrong ones it brings along."""

    query: Item
    right: list[Item]
    wrong: list[Item] = field(default_factory=list)


def classified(instruction: str, classes: tuple[str, ...]) -> Callable[[Row, Frames], Question]:
    """A video and its class, `pos_text`."""

    def read(row: Row, frames: Frames) -> Question:
        if row["pos_text"] not in classes:
            raise ValueError(f"its class {row['pos_text']!r} is none of the {len(classes)} of the set")
        query = {"image": frames.of(row["video_id"]), "instruction": instruction}
        return Question(query, [{"text": row["pos_text"]}])

    return read


def something_something(row: Row, frames: Frames) -> Question:
    """A video, what happens in it, and what else may: `neg_text` holds the right candidate too."""
    instruction = "What actions or object interactions are being performed by the person in the video?"
    query = {"image": frames.of(row["video_id"]), "instruction": instruction}
    return _chosen(query, row["neg_text"], row["pos_text"])


def _chosen(query: Item, options: Sequence[str], right: str) -> Question:
    if right not in options:
        raise ValueError(f"its answer {right!r} is none of its candidates {list(options)}")
    return Question(query, [{"text": right}], [{"text": option} for option in options if option != right])


def _asked(text: str, frames: list[str], options: Mapping[str, str], answer: object) -> Question:
    """A question with its answers by letter or number, of which one is right."""
    if str(answer) not in options:
        raise ValueError(f"its answer {answer!r} is none of {', '.join(options)}")
    return _chosen({"text": text, "image": frames, "instruction": _ANSWER}, [*options.values()], options[str(answer)])


def _numbered(options: Sequence[str]) -> dict[str, str]:
    return {str(number): option for number, option in enumerate(options)}


def _lettered(options: Sequence[str]) -> list[str]:
    return [f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]


def _bare(options: Sequence[str]) -> list[str]:
    """Options without their letters: 'A. Three dogs.' -> 'Three dogs'."""
    return [(option.partition(". ")[2] or option).strip(". ") for option in options]


def mvbench(row: Row, frames: Frames) -> Question:
    """A question, its `candidates`, and the right one of them in full."""
    options = _lettered(row["candidates"])
    text = "\n".join([row["question"], "Options:", *options])
    return _asked(
        text,
        frames.of(f"{row['subset']}/{row['video']}"),
        dict(zip(row["candidates"], options, strict=True)),
        row["answer"],
    )


def video_mme(row: Row, frames: Frames) -> Question:
    """A question, its `options`, 'A. Three dogs.', and the letter of the right one."""
    text = "\n".join([row["question"], *row["options"]])
    options = dict(zip(ascii_uppercase, _bare(row["options"]), strict=False))
    return _asked(text, frames.of(row["videoID"]), options, row["answer"])


def next_qa(row: Row, frames: Frames) -> Question:
    """A question, its options `a0` to `a4`, and the number of the right one."""
    options = [row[f"a{option}"] for option in range(5)]
    text = "\n".join([row["question"], "Options:", *_lettered(options)])
    return _asked(text, frames.of(row["video"]), _numbered(options), row["answer"])


def egoschema(row: Row, frames: Frames) -> Question:
    """A question, its options in `option`, 'A. Three dogs.', and the number of the right one."""
    text = row["question"] + " ".join(row["option"])
    return _asked(text, frames.of(row["video_idx"]), _numbered(_bare(row["option"])), row["answer"])


def activitynet_qa(row: Row, frames: Frames) -> Question:
    """A question to which the answer is 'yes' or 'no'."""
    text = f"{row['question']}? (A) yes; (B) no."
    return _asked(text, frames.of(f"v_{row['video_name']}"), {"yes": "yes", "no": "no"}, row["answer"])


def described(instruction: str, video: str, caption: str) -> Callable[[Row, Frames], Question]:
    """A caption, or several of which the first is taken, and its video: the columns of both."""

    def read(row: Row, frames: Frames) -> Question:
        text = row[caption] if isinstance(row[caption], str) else row[caption][0]
        candidate = {"image": frames.of(row[video]), "instruction": _WATCH}
        return Question({"text": text, "instruction": instruction}, [candidate])

    return read


def didemo(row: Row, frames: Frames) -> Question:
    """A caption and the path of its video, whose folder of frames has the name of the file."""
    describe = described("Find a video that includes the following described scenes:", "video", "caption")
    return describe(row | {"video": Path(row["video"]).stem}, frames)


def moment(row: Row, frames: Frames) -> Question:
    """The folder of a video holds its frames in `query`, and clips: those named `positive...` and others."""
    video = Path(row["video_path"]).stem
    clips = [clip for clip in frames.clips(video) if clip != f"{video}/query"]
    right = [clip for clip in clips if clip.startswith(f"{video}/positive")]
    if not 0 < len(right) < len(clips):
        raise ValueError(f"{len(right)} of the {len(clips)} clips in {frames.root / video} are right: unpack it again")
    instruction = "Find the clip that corresponds to the described scene in the given video:"
    query = {"text": row["query"], "image": frames.of(f"{video}/query"), "instruction": instruction}
    items = {clip: {"image": frames.of(clip), "instruction": _WATCH} for clip in clips}
    return Question(query, [items[clip] for clip in right], [items[clip] for clip in clips if clip not in right])


def moment_seeker(row: Row, frames: Frames) -> Question:
    """A text alone, or with an image `query_...`, or with a video; videos and clips lie in `video_frames`."""

    def of(path: str) -> list[str]:
        return frames.of(f"video_frames/{path.split('.mp4')[0].replace('/', '_')}")

    def clips(entries: Sequence[Row]) -> list[Item]:
        return [{"image": of(entry["output_path"]), "instruction": _WATCH_CLIP} for entry in entries]

    query, given = {"text": row["query"]}, row["input_frames"] or ""
    if given.endswith(".mp4"):
        instruction = "Find the clip that corresponds to the given sentence and video segment:"
        query |= {"image": of(given), "instruction": instruction}
    elif given.endswith(".jpg"):
        image = frames.root / f"query_{given}"
        if not image.exists():
            raise ValueError(f"there is no image {image}: unpack the frames of MMEB-V2 again")
        instruction = "Select the video clip that aligns with the given text and image:"
        query |= {"image": [str(image)], "instruction": instruction}
    else:
        query |= {"instruction": "Find the clip that corresponds to the given text:"}
    return Question(query, clips(row["positive_frames"]), clips(row["negative_frames"]))
