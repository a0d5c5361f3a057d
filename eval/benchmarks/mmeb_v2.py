"""MMEB-V2 (Meng et al., arXiv 2507.04590): how its sets, each a dataset of its own on the Hub, are opened.

Its 78 sets are MMEB's 36 of images (`mmeb.py`), 18 of videos (`mmeb_v2_video.py`) and 24 of visual documents
(`mmeb_v2_documents.py`). The score of a modality is the mean of its sets, "All" the mean of the 78, which is the
`overall` of all three parts evaluated together.
"""

from collections.abc import Sequence
from pathlib import Path

import datasets

from ...data.hub_tables import open_hub_table


def open_set(
    name: str,
    repository: str,
    columns: Sequence[str],
    config: str | None = None,
    split: str = "test",
    source: str | Path | None = None,
) -> datasets.Dataset:
    """Open a table of a set and see that it has the columns that are read.

    Args:
        name (`str`): What errors call it.
        repository (`str`): Hub id.
        columns (`Sequence[str]`): What it must have.
        config, split (`str`, *optional*): As `datasets.load_dataset` takes them.
        source (`str` or `Path`, *optional*): Folder with a copy of the repository under its Hub id, such as
            `source/vidore/tatdqa_test_beir`; without it, the Hub.

    Raises:
        ValueError: There is no such folder, or a column is missing; the message names those found.
    """
    place = repository if source is None else Path(source) / repository
    if source is not None and not place.is_dir():
        raise ValueError(f"MMEB-V2 {name}: there is no folder {place}: copy the dataset {repository} there")
    return open_hub_table(f"MMEB-V2 {name}", str(place), columns, config, split)
