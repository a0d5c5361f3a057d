"""With a frozen tower and projector, image features are computed once per micro-batch, and nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, ProcessorMixin

from unime import UniMEModel, micro_batches, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, cached_loss
from unime.trainers.gradient_cache import CachedVisionFeatures, GraphCacheBudget, vision_is_frozen


BACKBONES = [
    "llava",
    "llava-next",
    "llava-onevision",
    "qwen2-vl",
    "qwen2.5-vl",
    "qwen3-vl",
    "smolvlm",
    "idefics3",
    "phi3-v",
]


def freeze_vision(model: UniMEModel) -> UniMEModel:
    """Freeze all but the language model."""
    model.requires_grad_(False)
    model.backbone.get_decoder().requires_grad_(True)
    return model


def count_images(model: UniMEModel) -> list[int]:
    """Return a list that grows by one with each pass through the vision tower."""
    calls = []
    model.backbone.get_encoder(modality="image").register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_with_dropout_are_identical(
    name: str, tiny_model: Callable[[str], Path], make_image: Callable[[int], Image.Image]
):
    config, processor = AutoConfig.from_pretrained(tiny_model(name)), processor_from_backbone(str(tiny_model(name)))
    config.text_config.attention_dropout = 0.3
    config.vision_config.attention_dropout = 0.3  # has no effect in towers without dropout
    torch.manual_seed(0)
    model = freeze_vision(UniMEModel.from_backbone(config)).train()
    items = [*map(make_image, range(3)), "a text", {"image": make_image(3), "text": "and a text"}, "another"]
    batches = [tensors for _, tensors in micro_batches(processor, items, 1)]

    def embed(tensors: dict[str, Tensor]) -> Tensor:
        return model(**tensors).embeddings

    def gradients(embed: Callable[[dict[str, Tensor]], Tensor], gigabytes: float = 0.0) -> dict[str, Any]:
        torch.manual_seed(7)
        model.zero_grad()
        budget = GraphCacheBudget(gigabytes, model)
        loss = cached_loss(embed, batches, lambda embeddings: (embeddings @ embeddings.T).exp().sum(), budget)
        loss.backward()
        return {"loss": loss.detach(), "random": torch.rand(3)} | {
            name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
        }

    calls = count_images(model)
    twice = gradients(embed)
    assert len(twice) > 10
    assert len(calls) > 4
    calls.clear()
    once = gradients(CachedVisionFeatures(model.backbone, embed))
    assert len(calls) == 4
    torch.testing.assert_close(once, twice, atol=0, rtol=0)
    for gigabytes in (1e-9, 1e-3, 1):
        calls.clear()
        kept = gradients(CachedVisionFeatures(model.backbone, embed), gigabytes)
        assert len(calls) == 4
        torch.testing.assert_close(kept, twice, atol=0, rtol=0)


def test_features_wait_in_host_memory(make_model: Callable[..., UniMEModel], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    backbone = freeze_vision(make_model()).backbone

    def features(tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat(list(backbone.get_image_features(**tensors).pooler_output))

    with FakeTensorMode(allow_non_fake_inputs=True):  # its tensors claim to be on a GPU
        backbone.to("cuda")
        embed, pixels = CachedVisionFeatures(backbone, features), torch.zeros(2, 3, 24, 24, device="cuda")
        with torch.no_grad():
            first = [embed({"pixel_values": pixels}) for _ in range(3)]
        waiting = [tensor for tensors, *_ in embed._queue for tensor in tensors]
        assert len(embed._queue) == 3 and {tensor.device.type for tensor in waiting} == {"cpu"}
        again = embed({"pixel_values": pixels})
    assert again.is_cuda and again.shape == first[0].shape and len(embed._queue) == 2


@pytest.mark.parametrize("trained", ["language model", "projector too"])
def test_trainers_recompute_image_features_only_if_they_may_change(
    trained: str,
    make_model: Callable[..., UniMEModel],
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    tmp_path: Path,
):
    model = freeze_vision(make_model())
    if trained == "projector too":
        model.backbone.multi_modal_projector.requires_grad_(True)
    assert vision_is_frozen(model.backbone) is (trained == "language model")
    args = ContrastiveConfig(str(tmp_path), micro_batch_tokens=1, use_cpu=True, report_to="none")
    trainer = ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor)
    batch = trainer.data_collator(rows)
    images = sum("pixel_values" in tensors for tensors in batch["micro_batches"])
    first = "pixel_values" in batch["micro_batches"][0]  # its graph is kept, so it is embedded once
    calls = count_images(model)
    trainer.compute_loss(model.train(), batch).backward()
    assert images > 10
    assert len(calls) == (images if trained == "language model" else 2 * images - first)
    with torch.no_grad():
        trainer.compute_loss(model.eval(), batch)
    assert "get_image_features" not in vars(model.backbone)
