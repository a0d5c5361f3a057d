"""UniME's configuration says what its backbone's says, and survives being written to a file."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import LAYER, TINY_MODELS
from transformers import AutoConfig, LlavaConfig

from unime import UniMEConfig


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_width_of_an_embedding_is_the_width_of_the_language_model(
    name: str, tiny_model: Callable[[str], Path]
) -> None:
    config = UniMEConfig(backbone_config=AutoConfig.from_pretrained(tiny_model(name)))
    assert config.hidden_size == LAYER["hidden_size"]
    assert config.get_text_config() is config.backbone_config.get_text_config()


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_written_configuration_is_read_back_with_its_backbone(
    name: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    config = UniMEConfig(backbone_config=AutoConfig.from_pretrained(tiny_model(name)))
    config.save_pretrained(tmp_path)
    for again in (AutoConfig.from_pretrained(tmp_path), UniMEConfig.from_pretrained(tmp_path)):
        assert type(again) is UniMEConfig
        assert type(again.backbone_config) is type(config.backbone_config)
        assert again.backbone_config.to_dict() == config.backbone_config.to_dict()


def test_a_backbone_may_be_given_as_a_dict() -> None:
    config = UniMEConfig(backbone_config={"model_type": "llava", "text_config": {"model_type": "llama"} | LAYER})
    assert isinstance(config.backbone_config, LlavaConfig)
    assert config.hidden_size == LAYER["hidden_size"]


def test_a_configuration_without_a_backbone_is_a_llava() -> None:
    assert isinstance(UniMEConfig().backbone_config, LlavaConfig)
