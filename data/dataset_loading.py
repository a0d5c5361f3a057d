"""Opening tables of others without meeting an old copy of them."""

from pathlib import Path
from typing import Any

import datasets
from datasets.fingerprint import Hasher


def load_table(place: str, config: str | None = None, **settings: Any) -> datasets.Dataset | datasets.IterableDataset:
    """Call `datasets.load_dataset`; of a folder, read its files as they are now.

    `datasets` keeps what it read of a folder under the folder's last name, wherever that is and whatever becomes of
    its files: a second copy, or a changed one, would be read as the first was. Here a folder's files, known by path
    and time of change, have a cache of their own.

    Args:
        place (`str`): Hub id, folder or builder.
        config (`str`, *optional*): Its configuration.
        settings: `split`, `streaming`, ...

    Raises:
        ValueError: Its files are no table, or it has no such configuration, split or row.
    """
    cache = None
    try:
        if Path(place).is_dir():
            files = datasets.load_dataset_builder(place, config).config.data_files
            cache = Path(datasets.config.HF_DATASETS_CACHE) / Hasher.hash(files)
        return datasets.load_dataset(place, config, cache_dir=cache, **settings)
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{place} cannot be read as a table ({reason}): mend its files, or name others") from None
