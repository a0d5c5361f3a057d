import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.bnb import Linear4bit
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, ProcessorMixin

from unime import UniMEModel, load_model, save_checkpoint
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, load_adapter, merge_checkpoint, train_and_save


NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


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


@pytest.fixture
def quantized(tiny_model: Callable[[str], Path]) -> UniMEModel:
    return load_model(str(tiny_model("llava")), dtype=torch.float32, quantization_config=NF4)[0]


def test_adapters_over_a_4_bit_backbone_are_those_for_4_bit_weights(quantized: UniMEModel):
    adapted = get_peft_model(quantized, LoraConfig(r=2, target_modules="all-linear"))
    adapters = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    assert adapters and all(isinstance(adapter, Linear4bit) for adapter in adapters)


def test_a_4_bit_backbone_is_not_trained_without_an_adapter(
    quantized: UniMEModel, processor: ProcessorMixin, rows: list[dict], tmp_path: Path
):
    with pytest.raises(ValueError, match="cannot perform fine-tuning on purely quantized models"):
        args = ContrastiveConfig(str(tmp_path), use_cpu=True)
        ContrastiveTrainer(quantized, args, train_dataset=rows, processing_class=processor)


def test_a_4_bit_model_is_saved_with_one_quantization_config(
    quantized: UniMEModel, processor: ProcessorMixin, tmp_path: Path
):
    save_checkpoint(quantized, processor, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["load_in_4bit"]
    assert "quantization_config" not in config["backbone_config"]
    loaded, _ = load_model(str(tmp_path))
    texts = ["a text", "another one"]
    np.testing.assert_array_equal(loaded.encode(texts, processor), quantized.encode(texts, processor))


def test_an_adapter_that_changes_no_weight_is_not_merged(
    tiny_model: Callable[[str], Path], adapter: Path, tmp_path: Path
):
    with pytest.raises(ValueError, match="changes no weight, so that merging would return .*: train it with a"):
        merge_checkpoint(str(tiny_model("llava")), adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("dequantize", [False, True])
def test_the_merged_checkpoint_is_compared_with_what_was_trained_over_4_bit_weights(
    dequantize: bool,
    quantized: UniMEModel,
    tiny_model: Callable,
    processor: ProcessorMixin,
    rows: list,
    tmp_path: Path,
):
    args = ContrastiveConfig(
        str(tmp_path),
        per_device_train_batch_size=12,
        max_steps=2,
        learning_rate=1e-2,
        merge_dequantized=dequantize,
        use_cpu=True,
        report_to="none",
    )
    lora = LoraConfig(r=2, target_modules="all-linear")
    trainer = ContrastiveTrainer(quantized, args, train_dataset=rows, processing_class=processor, peft_config=lora)
    train_and_save(trainer, str(tiny_model("llava")), dtype=torch.float32)

    assert "quantization" not in (tmp_path / "config.json").read_text()
    merged, _ = load_model(str(tmp_path))
    items = [row["query"] for row in rows]
    cosines = (merged.encode(items) * trainer.model.get_base_model().encode(items, processor)).sum(axis=1)
    merge = json.loads((tmp_path / "training.json").read_text())[-1]["merge"]
    assert merge["base weights"] == ("dequantized" if dequantize else "full")
    if dequantize:
        assert cosines.min() > 1 - 1e-5 and merge["least cosine to trained"] > 1 - 1e-5
    else:  # of other items, but of the same order
        assert 1e-3 < 1 - merge["least cosine to trained"] < 0.5 and 1e-3 < 1 - cosines.min() < 0.5


def test_weights_that_were_not_quantized_are_not_dequantized(
    make_model: Callable, tiny_model: Callable, processor: ProcessorMixin, rows: list, adapter: Path, tmp_path: Path
):
    with pytest.raises(ValueError, match="there is nothing to dequantize: pass the quantization_config"):
        merge_checkpoint(str(tiny_model("llava")), adapter, tmp_path / "merged", dequantize=True)
    with pytest.raises(ValueError, match="merge_dequantized needs quantized weights"):
        args = ContrastiveConfig(str(tmp_path), merge_dequantized=True, use_cpu=True)
        ContrastiveTrainer(make_model(), args, train_dataset=rows, processing_class=processor)
