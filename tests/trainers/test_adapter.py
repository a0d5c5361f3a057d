from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from unime.trainers import load_adapter


@pytest.fixture
def adapter(make_model: Callable, tmp_path: Path) -> Path:
    get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    return tmp_path


def edit(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


def test_an_adapter_with_renamed_keys_is_refused(make_model: Callable, adapter: Path):
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[key.replace("language_model", "text_model")] = tensors.pop(key)

    edit(adapter, rename)
    with pytest.raises(
        ValueError, match=r"does not fit this model \(4 missing, such as .*language_model.*4 unexpected.*text_model"
    ):
        load_adapter(make_model(), adapter)


def test_an_adapter_with_a_missing_key_is_refused(make_model: Callable, adapter: Path):
    edit(adapter, lambda tensors: tensors.pop(sorted(tensors)[0]))
    with pytest.raises(ValueError, match="1 missing, such as"):
        load_adapter(make_model(), adapter)


def test_an_adapter_with_a_wrong_shape_is_refused(make_model: Callable, adapter: Path):
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        key = sorted(tensors)[0]
        tensors[key] = torch.zeros(2, 99)

    edit(adapter, widen)
    with pytest.raises(ValueError, match="1 of the wrong shape"):
        load_adapter(make_model(), adapter)


def test_all_weights_of_a_matching_adapter_are_loaded(make_model: Callable, adapter: Path):
    def fill(tensors: dict[str, torch.Tensor]) -> None:
        for key in tensors:
            tensors[key] = torch.full_like(tensors[key], 0.5)

    edit(adapter, fill)
    loaded = [p for name, p in load_adapter(make_model(), adapter).named_parameters() if "lora_" in name]
    assert loaded and all((parameter == 0.5).all() for parameter in loaded)
