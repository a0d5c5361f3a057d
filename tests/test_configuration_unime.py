"""UniME's configuration takes its values from the backbone's and survives saving and loading."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import LAYER_SIZES, TINY_MODELS
from transformers import AutoConfig, LlavaConfig

from unime import UniMEConfig


@pytest.mark.parametrize("name", TINY_MODELS)
def test_embeddings_are_as_wide_as_the_language_model(name: str, tiny_model: Callable[[str], Path]) -> None:
    config = UniMEConfig(backbone_config=AutoConfig.from_pretrained(tiny_model(name)))
    assert config.hidden_size == LAYER_SIZES["hidden_size"]
    assert config.get_text_config() is config.backbone_config.get_text_config()


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_saved_configuration_is_loaded_with_its_backbone(
    name: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    config = UniMEConfig(backbone_config=AutoConfig.from_pretrained(tiny_model(name)))
    config.save_pretrained(tmp_path)
    for loaded in (AutoConfig.from_pretrained(tmp_path), UniMEConfig.from_pretrained(tmp_path)):
        assert type(loaded) is UniMEConfig
        assert type(loaded.backbone_config) is type(config.backbone_config)
        assert loaded.backbone_config.to_dict() == config.backbone_config.to_dict()


def test_the_backbone_configuration_may_be_a_dict() -> None:
    config = UniMEConfig(backbone_config={"model_type": "llava", "text_config": {"model_type": "llama"} | LAYER_SIZES})
    assert isinstance(config.backbone_config, LlavaConfig)
    assert config.hidden_size == LAYER_SIZES["hidden_size"]


def test_the_default_backbone_is_llava() -> None:
    assert isinstance(UniMEConfig().backbone_config, LlavaConfig)
