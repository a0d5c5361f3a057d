"""Opening the datasets of MMEB-V2 (Meng et al., arXiv 2507.04590), each a repository of its own on the Hub.

MMEB-V2 has 78 subsets: the 36 image subsets of MMEB (`mmeb.py`), 18 of videos (`mmeb_v2_video.py`) and 24 of visual
documents (`mmeb_v2_documents.py`). The suite `mmeb-v2` (`../suites.py`) has the means.
"""

from collections.abc import Sequence
from pathlib import Path

import datasets

from ...data.hub_tables import open_hub_table


def open_subset(
    name: str,
    repository: str,
    columns: Sequence[str],
    config: str | None = None,
    split: str = "test",
    source: str | Path | None = None,
    file: str | None = None,
) -> datasets.Dataset:
    """Open a table of a subset and check its columns.

    Args:
        name (`str`): Name of the subset in error messages.
        repository (`str`): Hub id.
        columns (`Sequence[str]`): Required columns.
        config (`str`, *optional*): Configuration, as in `datasets.load_dataset`.
        split (`str`, *optional*, defaults to `"test"`): Split, as in `datasets.load_dataset`.
        source (`str` or `Path`, *optional*): Folder with copies of the repositories, see [`subset_source`].
        file (`str`, *optional*): File of the same rows in a clone of `TIGER-Lab/MMEB-V2`.

    Raises:
        ValueError: The folder does not exist, or a column is missing.
    """
    path = subset_source(name, repository, source, file)
    return open_hub_table(f"MMEB-V2 {name}", str(path), columns, config, split)


def subset_source(name: str, repository: str, source: str | Path | None, file: str | None = None) -> str | Path:
    """Return the folder of a subset's repository, its file in a clone of MMEB-V2, or its Hub id.

    Args:
        name (`str`): Name of the subset in error messages.
        repository (`str`): Hub id.
        source (`str` or `Path`, *optional*): Folder with a copy of the repository under its Hub id, such as
            `source/vidore/tatdqa_test_beir`, or a clone of `TIGER-Lab/MMEB-V2` with its archives unpacked in place:
            `source/visdoc-tasks/data/tatdqa_test_beir`, `source/video-tasks/data/ucf101.jsonl`. Reads the Hub by
            default.
        file (`str`, *optional*): Name of the file in `video-tasks/data`.

    Raises:
        ValueError: The folder does not exist.
    """
    if source is None:
        return repository
    copy = Path(source) / repository
    for folder in (copy, Path(source, "visdoc-tasks", "data", copy.name)):
        if folder.is_dir():
            return folder
    if file is not None and Path(source, "video-tasks", "data", file).is_file():
        return Path(source, "video-tasks", "data", file)
    raise ValueError(
        f"MMEB-V2 {name}: the folder {copy} does not exist; copy the dataset {repository} there, as with "
        f"`hf download {repository} --repo-type dataset --local-dir {copy}`"
    )
