"""What a checkpoint is, read from its files without loading its weights."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import get_local_safetensors_metadata, get_safetensors_metadata
from transformers import AutoProcessor
from transformers.utils import cached_file

from ..checkpoint import fingerprint
from ..checkpoint_safety import forbid_remote_code, read_config
from ..configuration_unime import UniMEConfig


def describe(checkpoint: str) -> dict[str, Any]:
    """Describe a UniME checkpoint, ready for JSON; `prompts` maps their names to instructions.

    Args:
        checkpoint (`str`): Folder or Hub id.

    Raises:
        ValueError: It is no UniME checkpoint.
    """
    config = read_config(checkpoint)
    if not isinstance(config, UniMEConfig):
        raise ValueError(
            f"{checkpoint} is of type '{config.model_type}', no UniME checkpoint: wrap a backbone by "
            "`UniMEModel.from_backbone`, and write it with `save_checkpoint`"
        )
    with forbid_remote_code(checkpoint):
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    local = Path(checkpoint).is_dir()
    weights = (get_local_safetensors_metadata if local else get_safetensors_metadata)(checkpoint)
    text = config.backbone_config.get_text_config()
    sentence_transformer = json.loads(Path(cached_file(checkpoint, "config_sentence_transformers.json")).read_text())
    return {
        "checkpoint": checkpoint,
        "revision": fingerprint(checkpoint),
        "backbone": config.backbone_config.model_type,
        "language model": f"{text.model_type}, {text.num_hidden_layers} layers of {text.hidden_size}",
        "parameters": sum(weights.parameter_count.values()),
        "types": ", ".join(sorted(weights.parameter_count)),
        "dimensions": config.hidden_size,
        "most tokens": min(processor.tokenizer.model_max_length, text.max_position_embeddings),
        "images": json.dumps(dict(processor.image_processor.size)),
        "written by transformers": config.transformers_version,
        "prompts": sentence_transformer["prompts"],
    }
