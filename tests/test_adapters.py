"""Adapters, whoever trained them, are loaded strictly and merged as their formula says."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForImageTextToText, BitsAndBytesConfig

from unime import UniMEModel, load_model, processor_from_backbone, save_checkpoint
from unime.checkpoint import fingerprint, load_processor
from unime.checkpoint_safety import read_config
from unime.cli.info import describe
from unime.eval.encoders.loading import load_encoder
from unime.eval.encoders.mteb_encoder import model_meta
from unime.index.index import Index
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


ROOT = Path(__file__).parents[1]
ITEMS = ["a text", Image.radial_gradient("L").resize((40, 24)).convert("RGB")]
# The names of modules in transformers before 4.52, from those of today.
OLD_NAMES = {
    "qwen2-vl": {r"^model\.language_model\.": "model.", r"^model\.visual\.": "visual."},
    "llava-next": {
        r"^model\.language_model\.": "language_model.model.",
        r"^model\.vision_tower\.": "vision_tower.vision_model.",
        r"^model\.multi_modal_projector\.": "multi_modal_projector.",
        r"^lm_head\.": "language_model.lm_head.",
    },
}
LANGUAGE_MODEL = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]  # VLM2Vec's targets
VISION_TOWER = {"qwen2-vl": ["qkv", "fc1"], "llava-next": ["q_proj", "out_proj", "linear_1"]}


def rename(key: str, names: dict[str, str]) -> str:
    prefix, name = "base_model.model.", key.removeprefix("base_model.model.")
    for pattern, replacement in names.items():
        name = re.sub(pattern, replacement, name)
    return prefix + name


def save_adapter(backbone: Path, folder: Path, old_names: dict | None = None, **config) -> dict[str, Tensor]:
    """Save an adapter of the generative class with random weights, under today's or older names.

    Return its tensors under today's names.
    """
    model = AutoModelForImageTextToText.from_pretrained(backbone)
    adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **config))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            noise = torch.rand(parameter.shape, generator=generator)
            parameter.data = parameter.data * (0.5 + noise) if "magnitude" in name else noise - 0.5
    adapted.save_pretrained(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    if old_names is not None:
        renamed = {rename(key, old_names): tensor for key, tensor in tensors.items()}
        assert len(renamed) == len(tensors) and renamed.keys().isdisjoint(tensors)
        save_file(renamed, folder / "adapter_model.safetensors")
    return tensors


def reference_merge(backbone: Path, tensors: dict[str, Tensor], scale: Callable[[str], float], folder: Path) -> Path:
    """Write the merged generative model, computed from its weights by the formulas of LoRA and DoRA."""
    model = AutoModelForImageTextToText.from_pretrained(backbone)
    modules = dict(model.named_modules())
    for key, down in tensors.items():
        name, found, _ = key.removeprefix("base_model.model.").partition(".lora_A")
        if not found:
            continue
        up = tensors[key.replace("lora_A", "lora_B")]
        weight = modules[name].weight
        merged = weight + scale(name) * up @ down
        magnitude = tensors.get(f"base_model.model.{name}.lora_magnitude_vector")
        if magnitude is not None:
            merged = magnitude[:, None] * merged / merged.norm(dim=1, keepdim=True)
        weight.data = merged.detach()
    model.save_pretrained(folder)
    processor_from_backbone(str(backbone)).save_pretrained(folder)
    return folder


def assert_equal_merge(adapter: Path, reference: Path, base: Path) -> None:
    """Check that an adapter's embeddings are those of the reference, and not those of its base."""
    embeddings = load_model(str(adapter), dtype="float32")
    expected = load_model(str(reference), dtype="float32")
    unadapted = load_model(str(base), dtype="float32")
    vectors, right, wrong = (model.encode(ITEMS, processor) for model, processor in (embeddings, expected, unadapted))
    np.testing.assert_allclose(vectors, right, atol=1e-5)
    assert (vectors * wrong).sum(axis=1).max() < 0.999


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("family", OLD_NAMES)
def test_an_adapter_of_the_generative_class_is_merged_as_its_formula_says(
    family: str, old: bool, use_dora: bool, tiny_model: Callable[[str], Path], tmp_path: Path
):
    backbone = tiny_model(family)
    settings = {"target_modules": LANGUAGE_MODEL + VISION_TOWER[family], "lora_alpha": 3, "use_dora": use_dora}
    tensors = save_adapter(backbone, tmp_path / "adapter", OLD_NAMES[family] if old else None, **settings)
    assert any("vis" in key for key in tensors) and use_dora == any("magnitude" in key for key in tensors)
    reference = reference_merge(backbone, tensors, lambda name: 3 / 2, tmp_path / "reference")
    assert_equal_merge(tmp_path / "adapter", reference, backbone)


def test_patterns_mean_the_names_that_the_adapter_was_trained_with(tiny_model: Callable[[str], Path], tmp_path: Path):
    backbone = tiny_model("qwen2-vl")
    tensors = save_adapter(
        backbone,
        tmp_path / "adapter",
        OLD_NAMES["qwen2-vl"],
        target_modules=r"model\.language_model\.layers\.\d+\.(self_attn\.[qv]_proj|mlp\.up_proj)",
        rank_pattern={r"language_model\.layers\.1\.self_attn\.v_proj": 4},
        alpha_pattern={r"language_model\.layers\.0\.mlp\.up_proj": 12},
        use_rslora=True,
        lora_alpha=5,
    )
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    config["target_modules"] = r"model\.layers\.\d+\.(self_attn\.[qv]_proj|mlp\.up_proj)"
    for name in ("rank_pattern", "alpha_pattern"):
        config[name] = {f"^model{key.removeprefix('language_model')}": value for key, value in config[name].items()}
    file.write_text(json.dumps(config))
    scales = {"layers.1.self_attn.v_proj": 5 / 4**0.5, "layers.0.mlp.up_proj": 12 / 2**0.5}
    ranks = {name: tensors[f"base_model.model.model.language_model.{name}.lora_A.weight"].shape[0] for name in scales}
    assert list(ranks.values()) == [4, 2]
    reference = reference_merge(
        backbone,
        tensors,
        lambda name: scales.get(name.removeprefix("model.language_model."), 5 / 2**0.5),
        tmp_path / "reference",
    )
    assert_equal_merge(tmp_path / "adapter", reference, backbone)


def test_modules_that_replace_those_of_the_base_are_taken(tiny_model: Callable[[str], Path], tmp_path: Path):
    backbone = tiny_model("llava-next")
    save_adapter(
        backbone,
        tmp_path / "adapter",
        OLD_NAMES["llava-next"],
        target_modules=["up_proj"],
        modules_to_save=["multi_modal_projector", "lm_head"],
    )
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {key: torch.full_like(t, 0.25) if "projector" in key else t for key, t in load_file(file).items()}
    assert any("lm_head" in key for key in tensors)  # it is not part of the model, and no embedding depends on it
    save_file(tensors, file)
    projector = load_model(str(tmp_path / "adapter"))[0].backbone.multi_modal_projector
    assert all((parameter == 0.25).all() for parameter in projector.parameters())


@pytest.fixture(scope="module")
def trained(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Return the folder of an adapter that UniME's trainer saved, and the embeddings of the trained model."""
    folder = tmp_path_factory.mktemp("trained")
    model, processor = load_model(str(tiny_model("qwen2-vl")), dtype="float32", image_size=48)
    rows = [
        {"query": {"text": f"q {i}"}, "positive": {"text": f"a {i}"}, "negatives": [], "task": "t"} for i in range(8)
    ]
    args = ContrastiveConfig(
        str(folder),
        per_device_train_batch_size=8,
        max_steps=2,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        matryoshka_dims=[8],
    )
    lora = LoraConfig(r=4, target_modules="all-linear")
    trainer = ContrastiveTrainer(
        model,
        args,
        train_dataset=[row | {"label": None} for row in rows],
        processing_class=processor,
        peft_config=lora,
    )
    trainer.train()
    trainer.save_model()
    return folder, model.eval().encode(ITEMS, processor)


def test_the_adapter_of_a_training_loads_wherever_a_model_is_expected(
    trained: tuple[Path, np.ndarray], tiny_model: Callable[[str], Path], tmp_path: Path
):
    folder, expected = trained
    model, processor = load_model(str(folder), dtype="float32")
    np.testing.assert_allclose(model.encode(ITEMS, processor), expected, atol=1e-5)
    np.testing.assert_allclose(load_encoder(str(folder)).encode(ITEMS), expected, atol=1e-5)
    assert (expected * load_model(str(tiny_model("qwen2-vl")))[0].encode(ITEMS, processor)).sum(axis=1).max() < 0.999
    assert Index.create(tmp_path / "index", str(folder)).record.dimensions == 32
    save_checkpoint(model, processor, tmp_path / "merged")
    merged, processor = load_model(str(tmp_path / "merged"), dtype="float32")
    np.testing.assert_allclose(merged.encode(ITEMS, processor), expected, atol=1e-5)
    assert model.config.matryoshka_dimensions == merged.config.matryoshka_dimensions == [8, 32]


def test_an_adapter_that_was_trained_on_an_adapter_builds_on_it(trained: tuple[Path, np.ndarray], tmp_path: Path):
    folder, _ = trained
    model, processor = load_model(str(folder), dtype="float32")
    args = ContrastiveConfig(str(tmp_path), use_cpu=True, report_to="none")
    lora = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False)
    trainer = ContrastiveTrainer(model, args, processing_class=processor, peft_config=lora)
    trainer.save_model()
    loaded, processor = load_model(str(tmp_path), dtype="float32")
    np.testing.assert_allclose(loaded.encode(ITEMS, processor), model.eval().encode(ITEMS, processor), atol=1e-5)
    assert fingerprint(str(tmp_path)) != fingerprint(str(folder))


def edit(adapter: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


def set_config(adapter: Path, **values: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def adapter(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    save_adapter(tiny_model("qwen2-vl"), tmp_path / "a", OLD_NAMES["qwen2-vl"], target_modules=LANGUAGE_MODEL)
    return tmp_path / "a"


def a_key_is_missing(adapter: Path, other: Path) -> None:
    edit(adapter, lambda tensors: tensors.pop("base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight"))


def a_module_is_missing(adapter: Path, other: Path) -> None:
    for part in "AB":
        key = f"base_model.model.model.layers.1.self_attn.o_proj.lora_{part}.weight"
        edit(adapter, lambda tensors, key=key: tensors.pop(key))


def a_module_is_unknown(adapter: Path, other: Path) -> None:
    key = "base_model.model.model.layers.9.a.lora_A.weight"
    edit(adapter, lambda tensors: tensors.update({key: torch.ones(2, 2)}))


def it_is_for_another_family(adapter: Path, other: Path) -> None:
    set_config(adapter, base_model_name_or_path=str(other))


def no_module_is_a_target(adapter: Path, other: Path) -> None:
    set_config(adapter, target_modules=["nothing"])


def it_is_no_lora(adapter: Path, other: Path) -> None:
    file = adapter / "adapter_config.json"
    base = json.loads(file.read_text())["base_model_name_or_path"]
    file.write_text(json.dumps({"peft_type": "IA3", "base_model_name_or_path": base}))


def its_base_is_elsewhere(adapter: Path, other: Path) -> None:
    set_config(adapter, base_model_name_or_path="/no/such/folder")


def its_base_is_not_downloaded(adapter: Path, other: Path) -> None:
    set_config(adapter, base_model_name_or_path="Qwen/Qwen2-VL-2B-Instruct")


def its_base_has_no_name(adapter: Path, other: Path) -> None:
    set_config(adapter, base_model_name_or_path=None)


def a_full_model_lies_beside_it(adapter: Path, other: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (adapter / name).write_bytes((other / name).read_bytes())


def it_is_a_pickle(adapter: Path, other: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()


def its_weights_are_missing(adapter: Path, other: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


REFUSALS = [
    (a_key_is_missing, "1 missing, such as .*layers.1.self_attn.o_proj.lora_B"),
    (a_module_is_missing, "2 missing, such as .*layers.1.self_attn.o_proj"),
    (a_module_is_unknown, "of type 'qwen2_vl', which has no model.layers.9.a: name the model it was trained on in"),
    (it_is_for_another_family, "does not fit this model .12 missing"),
    (no_module_is_a_target, "does not fit this model .*nothing.* not found"),
    (it_is_no_lora, "IA3: only LoRA and DoRA adapters can be merged"),
    (
        its_base_is_elsewhere,
        "is an adapter for /no/such/folder, which .*: set base_model_name_or_path",
    ),
    (its_base_is_not_downloaded, "adapter for Qwen/Qwen2-VL-2B-Instruct, which .* cannot be downloaded: set base_mod"),
    (its_base_has_no_name, "does not name the model it was trained on: set base_model_name_or_path"),
    (a_full_model_lies_beside_it, "both a full model .* and an adapter .*: move one of them"),
    (it_is_a_pickle, r"as a pickle \(adapter_model.bin\).*convert this one as docs/guides/adapters.md shows"),
    (its_weights_are_missing, "has no adapter_model.safetensors: copy or download the adapter again"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSALS, ids=[damage.__name__ for damage, _ in REFUSALS])
def test_an_adapter_is_refused_in_one_sentence_if(
    damage: Callable[[Path, Path], None],
    message: str,
    adapter: Path,
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    damage(adapter, tiny_model("idefics3"))
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load_model(str(adapter))
    assert str(adapter) in str(caught.value) and "\n" not in str(caught.value)


def test_from_pretrained_loads_an_adapter_into_its_native_checkpoint(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    base = save_checkpoint(*load_model(str(tiny_model("llava")), dtype="float32"), tmp_path / "base")
    model, processor = load_model(str(base))
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.get_base_model().encode(ITEMS, processor)
    remote = AutoModel.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    for loaded in (UniMEModel.from_pretrained(tmp_path / "adapter"), remote):
        np.testing.assert_allclose(loaded.encode(ITEMS, processor), expected, atol=1e-6)


def test_an_adapter_is_not_merged_into_quantized_weights(adapter: Path):
    with pytest.raises(ValueError, match="write a merged checkpoint with `unime export --model .* --output FOLDER`"):
        load_model(str(adapter), quantization_config=BitsAndBytesConfig(load_in_4bit=True))


def test_the_documented_conversion_of_a_pickle_gives_the_adapter(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[[str], Path]
):
    expected = load_file(adapter / "adapter_model.safetensors")
    it_is_a_pickle(adapter, adapter)
    block = re.search(r"```python\n(import torch\n.*?)```", (ROOT / "docs/guides/adapters.md").read_text(), re.S)
    monkeypatch.chdir(adapter.parent)
    exec(block[1].replace("the-adapter", adapter.name))
    converted = load_file(adapter / "adapter_model.safetensors")
    assert converted.keys() == expected.keys() and all(torch.equal(converted[key], expected[key]) for key in expected)
    assert isinstance(load_model(str(adapter))[0], UniMEModel)


def test_the_processor_of_an_adapter_without_one_is_that_of_its_base(
    adapter: Path, trained: tuple[Path, np.ndarray], tiny_model: Callable[[str], Path]
):
    base = tiny_model("qwen2-vl")
    assert load_processor(str(adapter)).chat_template == load_processor(str(base)).chat_template
    assert read_config(str(adapter)).model_type == "qwen2_vl"
    assert load_processor(str(trained[0])).image_processor.size["longest_edge"] == 48**2


def test_what_reads_the_files_of_a_whole_model_says_how_to_merge_an_adapter(trained: tuple[Path, np.ndarray]):
    folder = str(trained[0])
    for read in (describe, partial(model_meta, name="a/b")):
        with pytest.raises(ValueError, match=f"{folder} is an adapter for .*: write that with `unime.save_checkpoint"):
            read(folder)
