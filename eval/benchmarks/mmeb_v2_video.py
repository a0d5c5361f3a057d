"""The 18 video subsets of MMEB-V2; a video is represented by a few evenly spaced frames.

Files: the questions of a subset are a Hub dataset with the columns listed in `SETS`. The frames are the archives of
`video-tasks/frames` in `TIGER-Lab/MMEB-V2`, unpacked as by VLM2Vec's `download_data.sh`: one folder of images per
video. Classification and caption queries are compared with all candidates of their subset; Something-Something,
questions and moments with the candidates of their row. Metric: hit@1. Repositories, columns, folders and the number of
frames (8; all of a folder in MomentSeeker) and of rows (the first 1,000 of Something-Something) follow VLM2Vec's
evaluation code; they have not been checked against the datasets themselves, so other columns are an error. VLM2Vec
skips videos of MSVD and YouCook2 without frames; here they are an error.

The frames of an item are a video, as in VLM2Vec's code, which gives them to Qwen2-VL as one: its processor merges two
frames into one, with half the tokens. Models without a video processor get the frames as separate images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ...data.hub_tables import select_subsets
from ..image_folder import ImageFolder
from ..tasks import RetrievalTask
from .mmeb_v2 import open_subset
from .video_classes import BREAKFAST, HMDB51, KINETICS_700, UCF101
from .video_questions import (
    Frames,
    Item,
    Question,
    Row,
    activitynet_qa,
    caption_query,
    class_query,
    didemo,
    egoschema,
    moment,
    moment_seeker,
    mvbench,
    next_qa,
    something_something,
    video_mme,
)


MAX_FRAMES = 8  # per video, as in VLM2Vec
_MVBENCH = tuple(
    """
    action_antonym action_count action_localization action_prediction action_sequence character_order
    counterfactual_inference egocentric_navigation episodic_reasoning fine_grained_action fine_grained_pose
    moving_attribute moving_count moving_direction object_existence object_interaction object_shuffle
    scene_transition state_change unexpected_action
    """.split()
)


@dataclass(frozen=True)
class VideoSet:
    """Location of a subset, and how its rows become queries.

    Args:
        meta_task (`str`): One of `tasks.META_TASKS`.
        repository (`str`): Hub id of the questions.
        folders (`tuple[str, ...]`): Possible folders of the frames: as in the archives, and as VLM2Vec expects them.
            The archives may also have been unpacked without their first folder, such as `video_cls`.
        columns (`tuple[str, ...]`): Columns that `read` uses.
        read (`Callable`): Takes a row and the frames of the subset, returns a [`Question`]. Raises `ValueError` if the
            row is invalid.
        split (`str`, *optional*, defaults to `"test"`): Split, as in `datasets.load_dataset`.
        configs (`tuple`, *optional*): Configurations, as in `datasets.load_dataset`. Rows get the name of theirs as
            `subset`.
        classes (`tuple[str, ...]`, *optional*): Candidates in addition to those of the rows.
        max_rows (`int`, *optional*, defaults to all): Number of leading rows that are evaluated.
        all_frames (`bool`, *optional*, defaults to `False`): Whether a video is represented by all frames in its
            folder.
        file (`str`, *optional*): Name of the file of the questions in `video-tasks/data` of a clone of
            `TIGER-Lab/MMEB-V2`, if it is not that of the subset in lower case.
    """

    meta_task: str
    repository: str
    folders: tuple[str, ...]
    columns: tuple[str, ...]
    read: Callable[[Row, Frames], Question]
    split: str = "test"
    configs: tuple[str | None, ...] = (None,)
    classes: tuple[str, ...] = ()
    max_rows: int | None = None
    all_frames: bool = False
    file: str | None = None

    @property
    def shares_candidates(self) -> bool:
        """Return whether queries are compared with all candidates, instead of only those of their row."""
        return self.meta_task == "retrieval" or bool(self.classes)


def _retrieval(name: str) -> tuple[str, str]:
    return f"video_ret/data/ziyan/video_retrieval/{name}/frames", f"video_ret/{name}"


SETS = {
    "K700": VideoSet(
        "classification",
        "VLM2Vec/Kinetics-700",
        ("video_cls/K700",),
        ("video_id", "pos_text"),
        class_query("Recognize the category of the video content.", KINETICS_700),
        classes=KINETICS_700,
    ),
    "SmthSmthV2": VideoSet(
        "classification",
        "VLM2Vec/SmthSmthV2",
        ("video_cls/SSv2",),
        ("video_id", "pos_text", "neg_text"),
        something_something,
        max_rows=1000,
        file="ssv2.jsonl",
    ),
    "HMDB51": VideoSet(
        "classification",
        "VLM2Vec/HMDB51",
        ("video_cls/HMDB51",),
        ("video_id", "pos_text"),
        class_query("What actions or objects interactions are the person in the video doing?", HMDB51),
        classes=HMDB51,
    ),
    "UCF101": VideoSet(
        "classification",
        "VLM2Vec/UCF101",
        ("video_cls/UCF101",),
        ("video_id", "pos_text"),
        class_query("What activities or sports are being performed by the person in the video?", UCF101),
        classes=UCF101,
    ),
    "Breakfast": VideoSet(
        "classification",
        "VLM2Vec/Breakfast",
        ("video_cls/Breakfast",),
        ("video_id", "pos_text"),
        class_query("Recognize the breakfast type that the person is cooking in the video.", BREAKFAST),
        classes=BREAKFAST,
    ),
    "MVBench": VideoSet(
        "vqa",
        "VLM2Vec/MVBench",
        ("video_qa/MVBench",),
        ("video", "question", "candidates", "answer"),
        mvbench,
        "train",
        _MVBENCH,
    ),
    "Video-MME": VideoSet(
        "vqa",
        "VLM2Vec/Video-MME",
        ("video_qa/Video-MME",),
        ("videoID", "question", "options", "answer"),
        video_mme,
    ),
    "NExTQA": VideoSet(
        "vqa",
        "VLM2Vec/NExTQA",
        ("video_qa/NExTQA",),
        ("video", "question", "answer", "a0", "a1", "a2", "a3", "a4"),
        next_qa,
        configs=("MC",),
    ),
    "EgoSchema": VideoSet(
        "vqa",
        "VLM2Vec/EgoSchema",
        ("video_qa/egoschema", "video_qa/EgoSchema"),
        ("video_idx", "question", "option", "answer"),
        egoschema,
        configs=("Subset",),
    ),
    "ActivityNetQA": VideoSet(
        "vqa",
        "VLM2Vec/ActivityNetQA",
        ("video_qa/ActivityNetQA",),
        ("video_name", "question", "answer"),
        activitynet_qa,
    ),
    "DiDeMo": VideoSet("retrieval", "VLM2Vec/DiDeMo", _retrieval("DiDeMo"), ("video", "caption"), didemo),
    "MSR-VTT": VideoSet(
        "retrieval",
        "VLM2Vec/MSR-VTT",
        _retrieval("MSR-VTT"),
        ("video_id", "caption"),
        caption_query("Find a video that contains the following visual content:", "video_id", "caption"),
        configs=("test_1k",),
    ),
    "MSVD": VideoSet(
        "retrieval",
        "VLM2Vec/MSVD",
        _retrieval("MSVD"),
        ("video_id", "caption"),
        caption_query("Find the video snippet that corresponds to the given summary:", "video_id", "caption"),
    ),
    "VATEX": VideoSet(
        "retrieval",
        "VLM2Vec/VATEX",
        _retrieval("VATEX"),
        ("videoID", "enCap"),
        caption_query("Select a video that fits the description provided:", "videoID", "enCap"),
    ),
    "YouCook2": VideoSet(
        "retrieval",
        "lmms-lab/YouCook2",
        _retrieval("YouCook2"),
        ("id", "sentence"),
        caption_query("Find a video that demonstrates the following action while making a recipe:", "id", "sentence"),
        "val",
    ),
    "QVHighlight": VideoSet(
        "moments", "VLM2Vec/QVHighlight", ("video_mret/QVHighlight",), ("query", "video_path"), moment
    ),
    "Charades-STA": VideoSet(
        "moments",
        "VLM2Vec/Charades-STA",
        ("video_mret/Charades-STA", "video_mret/Charades_STA"),
        ("query", "video_path"),
        moment,
        file="charades_sta.jsonl",
    ),
    "MomentSeeker": VideoSet(
        "moments",
        "VLM2Vec/MomentSeeker",
        ("video_mret/MomentSeeker",),
        ("query", "input_frames", "positive_frames", "negative_frames"),
        moment_seeker,
        all_frames=True,
        file="momentseeker_1k6.jsonl",
    ),
}


def tasks(
    source: str | Path | None = None,
    frame_root: str | Path = "MMEB-V2/video-tasks/frames",
    subsets: Sequence[str] | None = None,
    frames: int = MAX_FRAMES,
) -> list[RetrievalTask]:
    """Open the subsets; frames are read when they are embedded.

    Args:
        source (`str` or `Path`, *optional*, defaults to the Hub): Folder with copies of the datasets, each under its
            Hub id: `source/VLM2Vec/UCF101`, or a clone of `TIGER-Lab/MMEB-V2`: `source/video-tasks/data/ucf101.jsonl`.
        frame_root (`str` or `Path`, *optional*): `video-tasks/frames` of MMEB-V2, unpacked.
        subsets (`Sequence[str]`, *optional*, defaults to all): Keys of `SETS`.
        frames (`int`, *optional*, defaults to 8): Maximum number of frames per video, at least 1. MomentSeeker takes
            all frames in the folder of a video.

    Raises:
        ValueError: A subset is unknown or lacks a column, frames are missing, or a row has no positive.
    """
    if frames < 1:
        raise ValueError(f"expected at least 1 frame per video, got frames={frames}")
    return [
        _task(name, source, Path(frame_root), frames) for name in select_subsets(subsets, SETS, "MMEB-V2's videos")
    ]


def _task(name: str, source: str | Path | None, frame_root: Path, max_frames: int) -> RetrievalTask:
    video_set = SETS[name]
    folders = [*video_set.folders, *(folder.partition("/")[2] for folder in video_set.folders)]
    folder = next((folder for folder in folders if (frame_root / folder).is_dir()), None)
    advice = "unpack the archives of video-tasks/frames of TIGER-Lab/MMEB-V2 and give their folder as --mmeb-v2-frames"
    if folder is None:
        expected = " or ".join(str(frame_root / folder) for folder in video_set.folders)
        raise ValueError(f"MMEB-V2 {name}: the folder {expected} does not exist; {advice}")
    frames = Frames(frame_root, folder, None if video_set.all_frames else max_frames)
    candidates: dict[str, tuple[int, Item]] = {}  # content of a candidate -> (its index, item); each is embedded once

    def index(item: Item) -> int:
        return candidates.setdefault(repr(sorted(item.items())), (len(candidates), item))[0]

    for label in video_set.classes:
        index({"text": label})
    queries, positives, pools, places = [], [], [], []
    for place, row in _rows(name, source):
        try:
            question = video_set.read(row, frames)
            if not (video_set.shares_candidates or question.negatives):
                raise ValueError("the row has no negative")
        except ValueError as error:
            raise ValueError(f"MMEB-V2 {name}, {place}: {error}") from None
        except (TypeError, AttributeError, LookupError) as error:  # a column has another type
            raise ValueError(
                f"MMEB-V2 {name}, {place}: the row differs from the published layout ({error}); copy the dataset again"
            ) from None
        places.append(place)
        queries.append(question.query)
        positives.append(list(dict.fromkeys(map(index, question.positives))))
        pools.append(list(dict.fromkeys([*positives[-1], *map(index, question.negatives)])))

    images = ImageFolder(f"MMEB-V2 {name}", frame_root, advice)
    return RetrievalTask(
        name,
        video_set.meta_task,
        images.lazy_items(queries, places.__getitem__),
        images.lazy_items((item for _, item in candidates.values()), "candidate {}".format),
        positives,
        None if video_set.shares_candidates else pools,
    )


def _rows(name: str, source: str | Path | None) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a subset, each with its place for error messages."""
    video_set = SETS[name]
    # The rows of MVBench's configurations are read from its repository: a clone of MMEB-V2 has no such file.
    file = None if len(video_set.configs) > 1 else video_set.file or f"{name.lower()}.jsonl"
    for config in video_set.configs:
        rows = open_subset(name, video_set.repository, video_set.columns, config, video_set.split, source, file)
        prefix = f"{config} " if len(video_set.configs) > 1 else ""
        for row_index, row in enumerate(islice(rows, video_set.max_rows)):
            yield f"{prefix}row {row_index}", row | {"subset": config}
