"""The published UniME checkpoints are weights of native classes: read with their prompts, they give their vectors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoProcessor, LlavaNextForConditionalGeneration, LlavaOnevisionForConditionalGeneration

from unime import UniMEModel, load_model, processor_from_backbone, save_checkpoint


PUBLISHED = "Summary above {} in one word:"
CLASSES = {"llava-next": LlavaNextForConditionalGeneration, "llava-onevision": LlavaOnevisionForConditionalGeneration}
FRAMES = {
    "llava-next": ("[INST] {} [/INST]", "[INST] <image>\n{} [/INST]"),
    "llava-onevision": (
        "<|im_start|>user \n{}<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user <image>\n{}<|im_end|><|im_start|>assistant\n",
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_vectors_are_those_of_the_published_computation(name: str, twin: Callable[[str], Path], tmp_path: Path):
    folder = twin(name)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    texts, images = ["a pizza", "a longer text about a cat"], [Image.fromarray(pixels), Image.new("RGB", (30, 60))]
    of_text, of_image = FRAMES[name]

    # The released evaluation: prompts as literal strings, left padding, the generative class, its last hidden state.
    native = CLASSES[name].from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    expected = []
    for prompts, pictures in (
        ([of_text.format(f"{text}\nSummary above sentence in one word:") for text in texts], None),
        ([of_image.format("Summary above image in one word:")] * 2, images),
    ):
        inputs = processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
        with torch.no_grad():
            states = native(**inputs, output_hidden_states=True).hidden_states
        expected.append(normalize(states[-1][:, -1, :], dim=-1))

    ours = processor_from_backbone(str(folder), summary=PUBLISHED)
    model = UniMEModel.from_backbone(str(folder)).eval()
    np.testing.assert_allclose(model.encode([*texts, *images], ours), torch.cat(expected), atol=1e-5)

    save_checkpoint(model, ours, tmp_path)
    again, processor = load_model(str(tmp_path))
    np.testing.assert_allclose(again.encode([*texts, *images], processor), torch.cat(expected), atol=1e-5)
