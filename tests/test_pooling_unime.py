"""The last layer is computed for the last token only, and the embeddings do not change."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import TINY_MODELS
from transformers import AutoConfig, ProcessorMixin

from unime import UniMEModel, processor_from_backbone
from unime.pooling_unime import SHORTCUT_DECODERS, last_layer_on_last_token


INSTRUCTIONS = (
    "Find an everyday image that shows what the following words describe, and nothing else:",
    "Name in one word what can be seen in an image that the following text describes, in any language:",
)
TEXTS = [f"{i} cats " + "and a dog " * (i % 5) for i in range(40)]
ITEMS = [{"text": text, "instruction": INSTRUCTIONS[i % 2]} for i, text in enumerate(TEXTS)]
ITEMS += [{"text": "a cat", "image": Image.new("RGB", (40, 56), "red")}, "日本"]


@pytest.fixture(scope="module", params=TINY_MODELS)
def loaded(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> tuple[UniMEModel, ProcessorMixin]:
    folder = tiny_model(request.param)
    return UniMEModel.from_backbone(folder).eval(), processor_from_backbone(folder)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_last_layer_is_computed_for_the_last_tokens_only(
    loaded: tuple[UniMEModel, ProcessorMixin], attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded
    model.set_attn_implementation(attention)
    shapes = []
    last_mlp = model.backbone.get_decoder().layers[-1].mlp
    hook = last_mlp.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[:2])))
    embeddings = model.encode(ITEMS, processor, micro_batch_tokens=100)
    hook.remove()
    assert sum(rows for rows, tokens in shapes if tokens == 1) == len(ITEMS)
    assert [rows for rows, tokens in shapes if tokens > 1] == [1, 1]  # the prefixes of both instructions
    monkeypatch.setattr("unime.pooling_unime.SHORTCUT_DECODERS", frozenset())
    np.testing.assert_allclose(embeddings, model.encode(ITEMS, processor, micro_batch_tokens=100), atol=1e-6)
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("side", ["left", "right"])
def test_another_thread_computes_the_last_layer_for_all_tokens(
    loaded: tuple[UniMEModel, ProcessorMixin], side: str
) -> None:
    model, processor = loaded
    texts = ["a cat", "a dog and some cats beside it"]
    batch = processor(text=texts, padding=True, padding_side=side, return_tensors="pt")
    assert batch["attention_mask"][0, -1 if side == "right" else 0] == 0
    expected = model(**batch)
    with (
        torch.no_grad(),
        last_layer_on_last_token(model.backbone, batch),
        ThreadPoolExecutor(1) as executor,
    ):
        in_other_thread, in_this_thread = executor.submit(model, **batch).result(), model(**batch)
    torch.testing.assert_close(in_other_thread.last_hidden_state, expected.last_hidden_state)
    assert not torch.allclose(in_this_thread.last_hidden_state, expected.last_hidden_state, atol=1e-3)
    torch.testing.assert_close(in_this_thread.embeddings, expected.embeddings, atol=1e-6, rtol=0)


def test_every_decoder_with_the_shortcut_is_tested(tiny_model: Callable[[str], Path]) -> None:
    tested = {AutoConfig.from_pretrained(tiny_model(name)).get_text_config().model_type for name in TINY_MODELS}
    assert tested == SHORTCUT_DECODERS
