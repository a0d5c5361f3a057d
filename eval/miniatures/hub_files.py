"""Writing of a dataset in the layout of the Hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image


def write_hub_dataset(
    folder: str | Path, configs: Mapping[str, Sequence[Mapping[str, Any]] | Dataset], split: str = "test"
) -> Path:
    """Write the configurations of a dataset as Parquet files, and the README that lists them.

    Args:
        folder (`str` or `Path`): Folder of the dataset; it is created. Its README is replaced.
        configs (`Mapping`): Name of each configuration -> its rows, or a table whose columns have the types to write.
            A dataset with one table has the configuration `default`.
        split (`str`, *optional*, defaults to `"test"`): Split of all tables.

    Returns:
        `Path`: The folder.
    """
    folder = Path(folder)
    head = "---\nconfigs:\n"
    for config, table in configs.items():
        table = table if isinstance(table, Dataset) else Dataset.from_list([dict(row) for row in table])
        (folder / config).mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
        head += f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}/{split}-*\n"
    (folder / "README.md").write_text(head + "---\n")
    return folder


def gray_tile(number: int) -> Image.Image:
    """Return an image of 4 x 4 pixels about a number from 0 to 12."""
    return Image.new("RGB", (4, 4), (20 * number,) * 3)


def save_gray_tile(path: Path, number: int) -> None:
    """Write the image about a number; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gray_tile(number).save(path)
