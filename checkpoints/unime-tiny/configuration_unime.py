"""UniME configuration: the configuration of the backbone, and how an embedding is read from it."""

from collections.abc import Sequence
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


SETTINGS_KEY = "unime"  # of this class, in the configuration of a backbone


class UniMEConfig(PreTrainedConfig):
    """Configuration of a [`UniMEModel`].

    A checkpoint that native classes load as well has the configuration of its backbone, with the arguments of this
    class under `"unime"`; `from_pretrained` reads both forms.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a LLaVA configuration):
            Configuration of the native image-text model that is used as the embedder.
        pooling (`str`, *optional*, defaults to `"last"`): The hidden states that give the embedding: that of the last
            token (`"last"`), or the mean over all tokens (`"mean"`).
        positions (`str`, *optional*, defaults to `"native"`): The positions of the tokens: the backbone's own
            (`"native"`), or one after the other also inside images (`"sequential"`), as published embedders on
            Qwen2-VL were trained whose prompts have no `<|vision_start|>`.
        prompts (`dict[str, str]`, *optional*): Named instructions that replace UniME's, such as `{"image": ""}` for a
            model that was trained without one.
        matryoshka_dimensions (`list[int]`, *optional*): Numbers of dimensions that the model was trained for, the full
            one included, so that embeddings can be truncated to the others. The trainers write it, and vLLM reads it.
    """

    model_type = "unime"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="llava")}

    backbone_config: dict | PreTrainedConfig | None = None
    pooling: Literal["last", "mean"] = "last"
    positions: Literal["native", "sequential"] = "native"
    prompts: dict[str, str] | None = None
    matryoshka_dimensions: list[int] | None = None

    @classmethod
    def get_config_dict(cls, *args, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the arguments of this class from a file, which may be the configuration of a backbone."""
        stored, kwargs = super().get_config_dict(*args, **kwargs)
        if SETTINGS_KEY not in stored:
            return stored, kwargs
        shared = {key: stored.pop(key, None) for key in ("auto_map", "matryoshka_dimensions")}
        shared |= {"model_type": cls.model_type, "dtype": stored.get("dtype")}
        return shared | stored.pop(SETTINGS_KEY) | {"backbone_config": stored}, kwargs

    @property
    def hidden_size(self) -> int:
        """Return the number of dimensions of an embedding."""
        return embedding_dimensions(self)

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """Return the configuration of the backbone's language model."""
        return self.backbone_config.get_text_config(*args, **kwargs)  # type: ignore[union-attr]


def embedding_dimensions(config: PreTrainedConfig) -> int:
    """Return the number of dimensions of an embedding: the width of the language model, or of its projection.

    Args:
        config (`PreTrainedConfig`): Configuration of a UniME checkpoint or of a backbone.
    """
    text_config = config.get_text_config()
    return text_config.to_dict().get("embedding_dim", text_config.hidden_size)


def matryoshka_dimensions(config: PreTrainedConfig, trained: Sequence[int] | None) -> list[int] | None:
    """Return the `matryoshka_dimensions` of a model that was trained with `matryoshka_dims`.

    Args:
        config ([`UniMEConfig`]): Configuration of the model.
        trained (`Sequence[int]`, *optional*): The `matryoshka_dims` of the training.
    """
    return sorted({*trained, embedding_dimensions(config)}) if trained else None


__all__ = ["UniMEConfig", "embedding_dimensions", "matryoshka_dimensions"]
