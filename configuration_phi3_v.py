"""Configuration of Phi-3-Vision and Phi-3.5-Vision: CLIP ViT-L/14-336 and Phi-3-mini."""

from dataclasses import fields
from typing import Any

from transformers import AutoConfig, CLIPVisionConfig, Phi3Config, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


# The only values that published checkpoints have; others would be another model.
IMAGE_EMBEDDING = {
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}
# Where transformers finds the code in a checkpoint; the published files name the same classes, in other code.
AUTO_MAP = {
    "AutoConfig": "configuration_phi3_v.Phi3VConfig",
    "AutoModel": "modeling_phi3_v.Phi3VModel",
    "AutoModelForImageTextToText": "modeling_phi3_v.Phi3VForCausalLM",
}


class Phi3VConfig(PreTrainedConfig):
    """Configuration of a [`Phi3VModel`].

    Published checkpoints list the values of the language model at the top level of their config.json, and none of the
    vision tower. They are read as `text_config` and as the default of `vision_config`.

    Args:
        text_config (`Phi3Config` or `dict`, *optional*): Configuration of the language model. Defaults to Phi-3-mini
            with the values given at the top level.
        vision_config (`CLIPVisionConfig` or `dict`, *optional*, defaults to CLIP ViT-L/14-336): Configuration of the
            vision tower.
        image_token_id (`int`, *optional*, defaults to 32044): Id of `<|image|>`, which holds the place of a feature.
        vision_feature_layer (`int`, *optional*, defaults to -2): Hidden state of the vision tower that is read.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`): Whether the head shares the token embeddings.

    Raises:
        ValueError: The image embedding is built otherwise than in the published checkpoints.
    """

    model_type = "phi3_v"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=Phi3Config),
        "vision_config": SubConfigSpec(
            config_class=CLIPVisionConfig,
            init_kwargs={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
        ),
    }

    text_config: Any = None  # of the class above after `__post_init__`
    vision_config: Any = None
    image_token_id: int = 32044
    vision_feature_layer: int = -2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any):
        """Read the layout of published checkpoints, see above."""
        different = {
            name: value
            for name, value in kwargs.pop("embd_layer", {}).items()
            if value != IMAGE_EMBEDDING.get(name, value)
        }
        if different:
            raise ValueError(f"phi3_v with {different} is not supported: published checkpoints have {IMAGE_EMBEDDING}")
        self.vision_feature_layer = kwargs.pop("img_processor", {}).get("layer_idx", self.vision_feature_layer)
        kwargs.pop("_attn_implementation", None)  # flash attention in the published files, installed or not
        kwargs["auto_map"] = dict(AUTO_MAP)
        if self.text_config is None:
            self.text_config = _language_model(kwargs)
        super().__post_init__(**kwargs)


def _language_model(values: dict[str, Any]) -> Phi3Config:
    """Take the values of the language model out of those of a published config.json."""
    names = {field.name for field in fields(Phi3Config)} - {field.name for field in fields(PreTrainedConfig)}
    text = {name: values.pop(name) for name in names.intersection(values)}
    rope = {"rope_theta": values.pop("rope_theta", 10000.0)}
    scaling = values.pop("rope_scaling", None)
    if scaling is not None:
        if scaling.get("type") not in ("su", "longrope"):  # "su" is what the published checkpoints call LongRoPE
            raise ValueError(f"rope_scaling of type {scaling.get('type')!r} is not supported: expected 'su'")
        rope |= {name: scaling[name] for name in ("short_factor", "long_factor")} | {"rope_type": "longrope"}
        original = text.get("original_max_position_embeddings", 4096)
        rope |= {
            "original_max_position_embeddings": original,
            "factor": text.get("max_position_embeddings", original) / original,
        }
    # The window of published checkpoints is never shorter than the context: it would change nothing but the speed.
    return Phi3Config(**{"rope_parameters": rope} | text | {"sliding_window": None})


Phi3VConfig.register_for_auto_class()
AutoConfig.register(Phi3VConfig.model_type, Phi3VConfig, exist_ok=True)

__all__ = ["Phi3VConfig"]
