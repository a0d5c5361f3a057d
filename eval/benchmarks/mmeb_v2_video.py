"""MMEB-V2's videos: 18 sets, in which a video is a few of its frames, evenly spaced.

Files: the questions of a set are a dataset on the Hub, with the columns that `SETS` names. The frames are the archives
of `video-tasks/frames` in `TIGER-Lab/MMEB-V2`, unpacked as VLM2Vec's `download_data.sh` does: a folder of images per
video. Videos to classify and captions are compared with all candidates of their set, as is published; those of
Something-Something, questions and moments with the candidates of their row. The score is hit@1. Repositories, columns,
folders and the eight frames are what VLM2Vec's evaluation reads; the datasets themselves could not be opened when this
was written, so a file with other columns is refused by name. VLM2Vec passes over videos of MSVD and YouCook2 that lack
frames; here they are an error.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.hub_tables import select_subsets
from ...data.image_files import read_image
from ..lazy_items import LazyItems, file_identity
from ..tasks import RetrievalTask
from .mmeb_v2 import open_set
from .video_classes import BREAKFAST, HMDB51, KINETICS_700, UCF101
from .video_questions import (
    Frames,
    Item,
    Question,
    Row,
    activitynet_qa,
    classified,
    described,
    didemo,
    egoschema,
    moment,
    moment_seeker,
    mvbench,
    next_qa,
    something_something,
    video_mme,
)


FRAMES = 8  # of a video, as VLM2Vec takes them
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
    """Where a set is published, and what its rows ask.

    Args:
        meta_task (`str`): One of `tasks.META_TASKS`.
        repository (`str`): Hub id of the questions.
        folders (`tuple[str, ...]`): Where its frames may be: as the archives hold them, as VLM2Vec expects them.
        columns (`tuple[str, ...]`): What is read of a row.
        read (`Callable`): A row and the set's frames -> its question; a `ValueError` says what is wrong with the row.
        split, configs: As `datasets.load_dataset` takes them; a row has the name of its configuration as `subset`.
        classes (`tuple[str, ...]`): Candidates besides those of the rows.
    """

    meta_task: str
    repository: str
    folders: tuple[str, ...]
    columns: tuple[str, ...]
    read: Callable[[Row, Frames], Question]
    split: str = "test"
    configs: tuple[str | None, ...] = (None,)
    classes: tuple[str, ...] = ()

    @property
    def shared(self) -> bool:
        """Whether all queries are compared with all candidates, and not with those of their row."""
        return self.meta_task == "retrieval" or bool(self.classes)


def _retrieval(name: str) -> tuple[str, str]:
    return f"video_ret/data/ziyan/video_retrieval/{name}/frames", f"video_ret/{name}"


SETS = {
    "K700": VideoSet(
        "classification",
        "VLM2Vec/Kinetics-700",
        ("video_cls/K700",),
        ("video_id", "pos_text"),
        classified("Recognize the category of the video content.", KINETICS_700),
        classes=KINETICS_700,
    ),
    "SmthSmthV2": VideoSet(
        "classification",
        "VLM2Vec/SmthSmthV2",
        ("video_cls/SSv2",),
        ("video_id", "pos_text", "neg_text"),
        something_something,
    ),
    "HMDB51": VideoSet(
        "classification",
        "VLM2Vec/HMDB51",
        ("video_cls/HMDB51",),
        ("video_id", "pos_text"),
        classified("What actions or objects interactions are the person in the video doing?", HMDB51),
        classes=HMDB51,
    ),
    "UCF101": VideoSet(
        "classification",
        "VLM2Vec/UCF101",
        ("video_cls/UCF101",),
        ("video_id", "pos_text"),
        classified("What activities or sports are being performed by the person in the video?", UCF101),
        classes=UCF101,
    ),
    "Breakfast": VideoSet(
        "classification",
        "VLM2Vec/Breakfast",
        ("video_cls/Breakfast",),
        ("video_id", "pos_text"),
        classified("Recognize the breakfast type that the person is cooking in the video.", BREAKFAST),
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
        described("Find a video that contains the following visual content:", "video_id", "caption"),
        configs=("test_1k",),
    ),
    "MSVD": VideoSet(
        "retrieval",
        "VLM2Vec/MSVD",
        _retrieval("MSVD"),
        ("video_id", "caption"),
        described("Find the video snippet that corresponds to the given summary:", "video_id", "caption"),
    ),
    "VATEX": VideoSet(
        "retrieval",
        "VLM2Vec/VATEX",
        _retrieval("VATEX"),
        ("videoID", "enCap"),
        described("Select a video that fits the description provided:", "videoID", "enCap"),
    ),
    "YouCook2": VideoSet(
        "retrieval",
        "lmms-lab/YouCook2",
        _retrieval("YouCook2"),
        ("id", "sentence"),
        described("Find a video that demonstrates the following action while making a recipe:", "id", "sentence"),
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
    ),
    "MomentSeeker": VideoSet(
        "moments",
        "VLM2Vec/MomentSeeker",
        ("video_mret/MomentSeeker",),
        ("query", "input_frames", "positive_frames", "negative_frames"),
        moment_seeker,
    ),
}


def tasks(
    source: str | Path | None = None,
    frame_root: str | Path = "MMEB-V2/video-tasks/frames",
    subsets: Sequence[str] | None = None,
    frames: int = FRAMES,
) -> list[RetrievalTask]:
    """Open the sets; frames are read when they are embedded.

    Args:
        source (`str` or `Path`, *optional*, defaults to the Hub):
            Folder with copies of the datasets, each under its Hub id: `source/VLM2Vec/UCF101`.
        frame_root (`str` or `Path`, *optional*): `video-tasks/frames` of MMEB-V2, unpacked.
        subsets (`Sequence[str]`, *optional*, defaults to all of `SETS`): The sets.
        frames (`int`, *optional*, defaults to 8): Most frames of a video.

    Raises:
        ValueError: There is no such set, it lacks a column, frames are missing, or a row has no right candidate.
    """
    if frames < 1:
        raise ValueError(f"a video of {frames} frames cannot be embedded: take at least 1")
    return [
        _task(name, source, Path(frame_root), frames) for name in select_subsets(subsets, SETS, "MMEB-V2's videos")
    ]


def _task(name: str, source: str | Path | None, frame_root: Path, count: int) -> RetrievalTask:
    published = SETS[name]
    places = [frame_root / folder for folder in published.folders]
    root = next((place for place in places if place.is_dir()), None)
    if root is None:
        raise ValueError(
            f"MMEB-V2 {name}: there is no folder {' or '.join(map(str, places))}: unpack the archives of "
            "video-tasks/frames of TIGER-Lab/MMEB-V2, and give its place as frame_root"
        )
    candidates: dict[str, tuple[int, Item]] = {}  # what a candidate is -> its number: each is embedded once

    def number(item: Item) -> int:
        return candidates.setdefault(repr(sorted(item.items())), (len(candidates), item))[0]

    for label in published.classes:
        number({"text": label})
    queries, positives, pools = [], [], []
    for where, row in _rows(name, source):
        try:
            question = published.read(row, Frames(root, count))
            if not (published.shared or question.wrong):
                raise ValueError("it has no wrong candidate")
        except ValueError as error:
            raise ValueError(f"MMEB-V2 {name}, {where}: {error}") from None
        except (TypeError, AttributeError, LookupError) as error:  # a column of another type
            raise ValueError(f"MMEB-V2 {name}, {where} is not as published ({error}): copy the set again") from None
        queries.append(question.query)
        positives.append(list(dict.fromkeys(map(number, question.right))))
        pools.append(list(dict.fromkeys([*positives[-1], *map(number, question.wrong)])))

    def identity(path: str) -> str:  # frames of all videos have the same names, and one archive gives them one time
        return f"{name}/{Path(path).parent.relative_to(root)}/{file_identity(path)}"

    def stored(items: list[Item]) -> LazyItems:
        return LazyItems(items, lambda path: read_image(path, f"MMEB-V2 {name}", root), identity)

    return RetrievalTask(
        name,
        published.meta_task,
        stored(queries),
        stored([item for _, item in candidates.values()]),
        positives,
        None if published.shared else pools,
    )


def _rows(name: str, source: str | Path | None) -> Iterator[tuple[str, Row]]:
    """Rows of a set, each with where it stands, for errors."""
    published = SETS[name]
    for config in published.configs:
        rows = open_set(name, published.repository, published.columns, config, published.split, source)
        part = f"{config} " if len(published.configs) > 1 else ""
        for number, row in enumerate(rows):
            yield f"{part}row {number}", row | {"subset": config}
