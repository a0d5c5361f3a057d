"""Configuration of UniME: the configuration of its backbone, and nothing that the backbone already says."""

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class UniMEConfig(PreTrainedConfig):
    """Configuration of a [`UniMEModel`].

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a LLaVA configuration):
            Configuration of the native image-text model that is turned into an embedder.
    """

    model_type = "unime"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="llava")}

    backbone_config: dict | PreTrainedConfig | None = None

    @property
    def hidden_size(self) -> int:
        """Number of dimensions of an embedding: the width of the language model."""
        return self.get_text_config().hidden_size

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """Configuration of the backbone's language model."""
        return self.backbone_config.get_text_config(*args, **kwargs)


__all__ = ["UniMEConfig"]
