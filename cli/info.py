"""Description of a checkpoint, read from its files without loading the weights."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import get_local_safetensors_metadata, get_safetensors_metadata
from transformers import AutoProcessor
from transformers.utils import cached_file

from ..batching_unime import default_max_length
from ..checkpoint import fingerprint
from ..checkpoint_safety import forbid_remote_code, read_config, refuse_adapter
from ..configuration_unime import UniMEConfig


def describe(checkpoint: str) -> dict[str, Any]:
    """Return the description of a UniME checkpoint, ready for JSON; `prompts` maps names to instructions.

    Args:
        checkpoint (`str`): Folder or Hub id.

    Raises:
        ValueError: The checkpoint is not a UniME checkpoint.
    """
    config = read_config(checkpoint)
    refuse_adapter(checkpoint)
    if not isinstance(config, UniMEConfig):
        raise ValueError(
            f"{checkpoint} has the type '{config.model_type}' and is not a UniME checkpoint: load the backbone with "
            "`UniMEModel.from_backbone` and save it with `save_checkpoint`"
        )
    with forbid_remote_code(checkpoint):
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    is_local = Path(checkpoint).is_dir()
    weights = (get_local_safetensors_metadata if is_local else get_safetensors_metadata)(checkpoint)
    backbone: Any = config.backbone_config
    text = backbone.get_text_config()
    sentence_transformer = json.loads(Path(cached_file(checkpoint, "config_sentence_transformers.json")).read_text())
    return {
        "checkpoint": checkpoint,
        "revision": fingerprint(checkpoint),
        "backbone": backbone.model_type,
        "language model": f"{text.model_type}, {text.num_hidden_layers} layers of {text.hidden_size}",
        "parameters": sum(weights.parameter_count.values()),
        "types": ", ".join(sorted(weights.parameter_count)),
        "dimensions": config.hidden_size,
        "max length": default_max_length(processor, config),
        "images": json.dumps(dict(processor.image_processor.size)),
        "written by transformers": config.transformers_version or backbone.transformers_version,
        "prompts": sentence_transformer["prompts"],
    }
