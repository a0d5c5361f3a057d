"""Opening the datasets of MMEB-V2 (Meng et al., arXiv 2507.04590), each a repository of its own on the Hub.

MMEB-V2 has 78 subsets: the 36 image subsets of MMEB (`mmeb.py`), 18 of videos (`mmeb_v2_video.py`) and 24 of visual
documents (`mmeb_v2_documents.py`). The score of a modality is the mean over its subsets. "All" is the mean over the
78, which equals `overall` when the three parts are evaluated together.
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
) -> datasets.Dataset:
    """Open a table of a subset and check its columns.

    Args:
        name (`str`): Name of the subset in error messages.
        repository (`str`): Hub id.
        columns (`Sequence[str]`): Required columns.
        config (`str`, *optional*): Configuration, as in `datasets.load_dataset`.
        split (`str`, *optional*, defaults to `"test"`): Split, as in `datasets.load_dataset`.
        source (`str` or `Path`, *optional*): Folder with a copy of the repository under its Hub id, such as
            `source/vidore/tatdqa_test_beir`. Reads the Hub by default.

    Raises:
        ValueError: The folder does not exist, or a column is missing.
    """
    path = repository if source is None else Path(source) / repository
    if source is not None and not Path(path).is_dir():
        raise ValueError(f"MMEB-V2 {name}: the folder {path} does not exist; copy the dataset {repository} there")
    return open_hub_table(f"MMEB-V2 {name}", str(path), columns, config, split)
