"""Loading of tables with `datasets`, without stale copies of local folders."""

from pathlib import Path
from typing import Any

import datasets
from datasets.fingerprint import Hasher


def load_table(source: str, config: str | None = None, **settings: Any) -> datasets.Dataset | datasets.IterableDataset:
    """Call `datasets.load_dataset`, reading the files of a local folder as they are now.

    `datasets` caches a folder under its last name only, so another folder of that name, or a changed one, would
    silently give the old rows. Here the cache of a folder is keyed by the paths and modification times of its files.

    Args:
        source (`str`): Hub id, folder or builder name.
        config (`str`, *optional*): Configuration of the dataset.
        settings: Passed to `datasets.load_dataset`, such as `split` and `streaming`.

    Raises:
        ValueError: The files are not a table, or the dataset lacks the configuration or split, or has no rows.
    """
    cache = None
    try:
        if Path(source).is_dir():
            files = datasets.load_dataset_builder(source, config).config.data_files
            cache = Path(datasets.config.HF_DATASETS_CACHE) / Hasher.hash(files)
        return datasets.load_dataset(source, config, cache_dir=cache, **settings)
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{source} cannot be read as a table ({reason}): fix its files or choose others") from None
