"""UniME configuration: the configuration of the backbone, and nothing that the backbone already states."""

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class UniMEConfig(PreTrainedConfig):
    """Configuration of a [`UniMEModel`].

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a LLaVA configuration):
            Configuration of the native image-text model that is used as the embedder.
    """

    model_type = "unime"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="llava")}

    backbone_config: dict | PreTrainedConfig | None = None

    @property
    def hidden_size(self) -> int:
        """Return the number of dimensions of an embedding, which is the width of the language model."""
        return self.get_text_config().hidden_size

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """Return the configuration of the backbone's language model."""
        return self.backbone_config.get_text_config(*args, **kwargs)  # type: ignore[union-attr]


__all__ = ["UniMEConfig"]
