"""Retrieval on rows of your own: each query retrieves its positives among the candidates of the whole set.

Rows are those of training, see [`unime.data.sources.DataArguments`], with the instructions that they carry. The
candidates are the positives and the explicit negatives of all rows, and the items of a file of more candidates. Right
answers are the positives of all rows with the query's content and task, and candidates with the content, or the task
and label, of one of them. The query's own content is no candidate of it.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from ...data.jsonl import load_lines
from ...data.row_forms import to_item
from ...data.rows import content_hashes, read_item
from ...data.sources import DataArguments, open_rows
from ...processing_unime import to_item_dict
from ..lazy_items import LazyItems
from ..tasks import RetrievalTask


Place = tuple[int | str, ...]  # where an item is: a row, a column and a position, or a line of the candidates


class StoredItems:
    """The distinct items of some rows, whose images are read again when they are needed.

    Args:
        rows (`Dataset`): The rows.
        candidates (`Path`, *optional*): JSONL file of more candidates.
        image_root (`Path`, *optional*): Folder that their paths start from.
    """

    def __init__(self, rows: Dataset, candidates: Path | None, image_root: Path | None):
        self.rows = rows
        self.lines = [] if candidates is None else load_lines(candidates)
        self.name = "" if candidates is None else candidates.name
        self.root = image_root or (candidates or Path()).parent

    def candidates_of_file(self) -> Iterator[tuple[Any, Place]]:
        """Yield each item of the file of candidates and its place."""
        for number in range(len(self.lines)):
            yield self._line(number), (number,)

    def _line(self, number: int) -> Any:
        stored = self.lines[number]
        where = f"{self.name}, line {stored['number']}"
        try:
            value = json.loads(stored["line"])
        except ValueError:
            raise ValueError(f"{where} is not JSON: give a text in quotes, or an item") from None
        return read_item(to_item(value), where, self.root)

    def _item(self, place: Place) -> Any:
        if len(place) == 1:
            return self._line(cast(int, place[0]))
        row, column, position = place
        value = self.rows[row][column]
        return value[cast(int, position)] if isinstance(value, list) else value

    def store(self, item: Any, place: Place, content: int) -> dict[str, Any]:
        """Return an item for [`LazyItems`] with the place of each image and the hash of the item's content."""
        parts = to_item_dict(item)
        texts_and_images = [
            part if isinstance(part, str) else {"type": "image", "image": (place, part, content)}
            for part in parts["content"]
        ]
        return {"content": texts_and_images, "instruction": parts["instruction"]}

    def read(self, image: tuple[Place, int, int]) -> Image.Image:
        """Read an image again."""
        place, number, _ = image
        return to_item_dict(self._item(place))["images"][number]

    def lazy(self, stored: list[dict[str, Any]]) -> LazyItems:
        """Return stored items, whose images are equal where the contents of their items are."""
        return LazyItems(stored, self.read, lambda image: f"{image[2]}/{image[1]}")


def tasks(
    rows: str, split: str = "train", candidates: str | None = None, image_root: str | None = None
) -> list[RetrievalTask]:
    """Open rows as one task per value of their column `task`.

    Every image is read once for its hash, and again when it is embedded or shown.

    Args:
        rows (`str`): JSONL file of rows, folder of images with captions or classes, or Hub id.
        split (`str`, *optional*, defaults to `"train"`): Split of a folder or of a Hub dataset.
        candidates (`str`, *optional*): JSONL file of more candidates: a text or an item on each line.
        image_root (`str`, *optional*): Folder that the paths of images start from; by default that of each file.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A row is malformed, or one of its images is missing or unreadable.
    """
    if candidates is not None and not Path(candidates).is_file():
        raise FileNotFoundError(f"there is no file of candidates {candidates}: give a JSONL file of items")
    dataset = cast(Dataset, open_rows(DataArguments(dataset=rows, split=split, image_root=image_root)))
    root = None if image_root is None else Path(image_root)
    items = StoredItems(dataset, None if candidates is None else Path(candidates), root)
    stored: dict[int, dict[str, Any]] = {}  # hash of a candidate -> the candidate
    contents: list[int] = []  # hash of each candidate's content
    queries: dict[tuple[int, str], tuple[dict[str, Any], int]] = {}  # hash, task -> query, hash of its content
    right: dict[tuple[int, str], set[int]] = defaultdict(set)  # content of a query, task -> contents of its positives
    labels: dict[tuple[int, str], set[str]] = defaultdict(set)  # content of a query, task -> labels of its rows
    of_label: dict[tuple[str, str], set[int]] = defaultdict(set)  # task, label -> contents of the positives

    def add_candidate(item: Any, place: Place) -> int:
        identity, content = content_hashes(item)
        if identity not in stored:
            stored[identity] = items.store(item, place, content)
            contents.append(content)
        return content

    for number in tqdm(range(len(dataset)), desc=Path(rows).name, unit="row"):
        row = dataset[number]
        identity, own = content_hashes(row["query"])
        task, label = row["task"], row["label"]
        queries.setdefault((identity, task), (items.store(row["query"], (number, "query", 0), own), own))
        for position, item in enumerate(row["positives"]):
            content = add_candidate(item, (number, "positives", position))
            right[own, task].add(content)
            if label is not None:
                labels[own, task].add(label)
                of_label[task, label].add(content)
        for position, item in enumerate(row["negatives"]):
            add_candidate(item, (number, "negatives", position))
    for item, place in items.candidates_of_file():
        add_candidate(item, place)

    indices_of: dict[int, list[int]] = defaultdict(list)  # hash of a content -> candidates
    for index, content in enumerate(contents):
        indices_of[content].append(index)
    candidate_items = items.lazy(list(stored.values()))
    opened = []
    for task in dict.fromkeys(task for _, task in queries):
        of_task = [query for (_, name), query in queries.items() if name == task]
        positives = []
        for _, own in of_task:
            answers = right[own, task].union(*(of_label[task, label] for label in labels[own, task])) - {own}
            positives.append(sorted(index for content in answers for index in indices_of[content]))
        pools = None
        if any(own in indices_of for _, own in of_task):
            pools = [[index for index, content in enumerate(contents) if content != own] for _, own in of_task]
        asked = items.lazy([query for query, _ in of_task])
        opened.append(RetrievalTask(task, "retrieval", asked, candidate_items, positives, pools))
    return opened
