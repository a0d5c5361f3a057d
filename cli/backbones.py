"""The configuration of a backbone without its weights: from a folder, from this package, or from the Hub."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..checkpoint_safety import read_config
from ..configuration_unime import UniMEConfig


# Sizes of the backbones of the recipes, from the config.json of their Hub ids: enough for the shape of each weight.
BUILT_IN: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text())


def configuration(backbone: str) -> Any:
    """Return the configuration of a backbone or of the backbone of a UniME checkpoint.

    Args:
        backbone (`str`): A folder, or a Hub id. Those of the recipes need no network.

    Raises:
        OSError: There is no such folder, and the Hub has no such id or cannot be reached.
    """
    if not Path(backbone).is_dir() and backbone in BUILT_IN:
        return AutoConfig.for_model(**BUILT_IN[backbone])
    config = read_config(backbone)
    return config.backbone_config if isinstance(config, UniMEConfig) else config
