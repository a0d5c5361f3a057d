"""Tests of the benchmark items: lengths, repetitions and mixtures."""

import numpy as np
from items import INSTRUCTION, mixed, texts, with_repetitions
from models import ROOT
from PIL import Image
from transformers import AutoTokenizer


def test_text_lengths_have_a_heavy_tail():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "tiny-backbone")
    lengths = np.array([len(ids) for ids in tokenizer(texts(2000))["input_ids"]])
    assert lengths.min() >= 4 and 300 < lengths.max() <= 450
    assert lengths.mean() > 1.4 * np.median(lengths)
    assert 35 <= len(tokenizer(INSTRUCTION)["input_ids"]) <= 45


def test_three_in_ten_items_are_repetitions():
    repeated = with_repetitions(texts(100))
    assert len(repeated) == 100 and len(set(repeated)) == 70
    assert repeated == with_repetitions(texts(100)) != with_repetitions(texts(100), seed=1)


def test_mixed_items_are_texts_images_and_both():
    text, image, both = mixed(3)
    assert isinstance(text, str) and isinstance(image, Image.Image) and set(both) == {"text", "image"}
