"""The published UniME checkpoints, which are weights of native classes, give the same embeddings as in their code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoProcessor, LlavaNextForConditionalGeneration, LlavaOnevisionForConditionalGeneration

from unime import UniMEModel, load_model, processor_from_backbone, save_checkpoint


PUBLISHED_SUMMARY = "Summary above {} in one word:"
CLASSES = {"llava-next": LlavaNextForConditionalGeneration, "llava-onevision": LlavaOnevisionForConditionalGeneration}
FRAMES = {
    "llava-next": ("[INST] {} [/INST]", "[INST] <image>\n{} [/INST]"),
    "llava-onevision": (
        "<|im_start|>user \n{}<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user <image>\n{}<|im_end|><|im_start|>assistant\n",
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_embeddings_equal_those_of_the_published_code(name: str, tiny_model: Callable[[str], Path], tmp_path: Path):
    folder = tiny_model(name)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    texts, images = ["a pizza", "a longer text about a cat"], [Image.fromarray(pixels), Image.new("RGB", (30, 60))]
    text_frame, image_frame = FRAMES[name]

    # The released evaluation code: literal prompts, left padding, and the last hidden state of the generative class.
    native = CLASSES[name].from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    expected = []
    for prompts, batch_images in (
        ([text_frame.format(f"{text}\nSummary above sentence in one word:") for text in texts], None),
        ([image_frame.format("Summary above image in one word:")] * 2, images),
    ):
        inputs = processor(text=prompts, images=batch_images, padding=True, return_tensors="pt")
        with torch.no_grad():
            states = native(**inputs, output_hidden_states=True).hidden_states
        expected.append(normalize(states[-1][:, -1, :], dim=-1))

    unime_processor = processor_from_backbone(str(folder), summary=PUBLISHED_SUMMARY)
    model = UniMEModel.from_backbone(str(folder)).eval()
    np.testing.assert_allclose(model.encode([*texts, *images], unime_processor), torch.cat(expected), atol=1e-5)

    save_checkpoint(model, unime_processor, tmp_path)
    loaded, processor = load_model(str(tmp_path))
    np.testing.assert_allclose(loaded.encode([*texts, *images], processor), torch.cat(expected), atol=1e-5)
