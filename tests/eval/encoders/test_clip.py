"""The CLIP baseline: one forward for all modalities, its 77 tokens, and training with the trainer of stage 2."""

from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_tokenizers import llama_tokenizer
from torch.nn.functional import normalize
from transformers import AutoProcessor, CLIPModel

from unime.data.collator import ContrastiveCollator
from unime.eval.benchmarks import mmeb
from unime.eval.encoders import clip as clip_encoder
from unime.eval.encoders.clip import (
    IMAGE_TO_TEXT,
    TEXT_TO_IMAGE,
    CLIPEmbedder,
    clip_micro_batches,
    tiny_clip,
    with_mmeb_sides,
)
from unime.eval.lazy_items import LazyItems
from unime.eval.tasks import RetrievalTask
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


RED, BLUE = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (40, 24), "blue")
ITEMS = [
    "a red image",
    RED,
    {"image": BLUE, "text": "with a stripe", "instruction": "Find the changed image:"},
    {"text": "blue", "instruction": "Find an image:"},
    {"image": BLUE, "instruction": "Represent the given image."},
    {"text": "blue " * 200},
]


def clip():
    torch.manual_seed(0)
    return tiny_clip(llama_tokenizer(), image_size=32, width=32, layers=2, heads=2, dimensions=24)


def test_the_default_size_equals_the_tiny_backbone():
    model, _ = tiny_clip(llama_tokenizer())
    vocabulary = model.text_model.embeddings.token_embedding.weight.numel()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 4.69e6 < parameters - vocabulary + 4096 * 192 < 4.75e6


def test_mixed_items_have_the_same_embeddings_as_each_item_alone():
    model, processor = clip()
    together = model.encode(ITEMS, processor)
    assert together.shape == (6, 24) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    alone = np.concatenate([model.encode([item], processor, batch_size=1) for item in ITEMS])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_windows_are_bounded_in_pixels_and_errors_name_the_item_of_the_whole_list(monkeypatch):
    model, processor = clip()
    whole = model.encode(ITEMS, processor)
    monkeypatch.setattr(clip_encoder, "MAX_WINDOW_PIXELS", 1000)  # RED has more, BLUE 960
    sizes = []
    monkeypatch.setattr(
        clip_encoder, "clip_micro_batches", lambda *args: sizes.append(len(args[1])) or clip_micro_batches(*args)
    )
    np.testing.assert_allclose(model.encode(ITEMS, processor), whole, atol=1e-6)
    assert sizes == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="item 6 has 2 images"):
        model.encode([*ITEMS, {"image": [RED, BLUE]}], processor)


def test_mmebs_sum_adds_features_as_they_are():
    model, processor = clip()
    model.eval()
    features = []
    for _, batch in clip_micro_batches(processor, ["Find: it", RED]):
        tower, projection, inputs = (
            (model.text_model, model.text_projection, {"input_ids": batch["input_ids"]})
            if "input_ids" in batch
            else (model.vision_model, model.visual_projection, {"pixel_values": batch["pixel_values"]})
        )
        output = tower(**inputs)
        pooled = output.last_hidden_state[:, -1] if "input_ids" in batch else output.pooler_output
        features.append(projection(pooled)[0].detach())
    expected = normalize(sum(features), dim=-1).numpy()
    item = {"image": RED, "text": "it", "instruction": "Find:"}
    (added,) = model.encode([item], processor, normalize_features=False)
    np.testing.assert_allclose(added, expected, atol=1e-5)
    (normalized,) = model.encode([item], processor)
    assert np.abs(added - normalized).max() > 1e-3
    one_side = model.encode(["a", RED], processor, normalize_features=False)
    np.testing.assert_allclose(one_side, model.encode(["a", RED], processor), atol=1e-6)


def test_mmebs_sides_are_those_of_vlm2vecs_lists():
    assert {*TEXT_TO_IMAGE, *IMAGE_TO_TEXT} < set(mmeb.SETS) and not {*TEXT_TO_IMAGE} & {*IMAGE_TO_TEXT}

    def items(*stored):
        return LazyItems(stored, lambda path: RED)

    similar = {"text": None, "image": "a.png", "instruction": "Find a similar image."}
    shown = {"text": "a tower", "image": "b.png", "instruction": "Represent the given image."}
    name = {"text": "tench", "image": None, "instruction": None}
    tasks = [
        RetrievalTask("NIGHTS", "retrieval", items(similar), items(shown), [[0]]),
        RetrievalTask("ImageNet-1K", "classification", items(similar), items(name), [[0]]),
        RetrievalTask("FashionIQ", "retrieval", items(similar), items(shown), [[0]]),
    ]
    nights, imagenet, fashion = with_mmeb_sides(tasks)
    # One text for all queries: VLM2Vec's code gives NIGHTS the score of random guesses.
    assert nights.queries[0] == {"text": "", "instruction": "Find a similar image."}
    assert nights.candidates[0] == {"image": RED} == imagenet.queries[0]
    assert imagenet.candidates[0] == {"text": "tench"}
    assert fashion is tasks[2]
    model, processor = clip()
    assert model.encode([nights.queries[0], imagenet.queries[0]], processor).shape == (2, 24)


def test_text_with_image_is_the_normalized_sum_of_both():
    model, processor = clip()
    text, image, both = model.encode(
        ["Find: it", RED, {"image": RED, "text": "it", "instruction": "Find:"}], processor
    )
    np.testing.assert_allclose(both, (text + image) / np.linalg.norm(text + image), atol=1e-6)


def test_features_equal_the_plain_model():
    model, processor = clip()
    # The plain model finds the end of the text by its id, except for id 2, where it takes the greatest id.
    assert processor.tokenizer.eos_token_id == 2
    ((_, text),) = clip_micro_batches(processor, ["a cat", "a dog and a cat"])
    ((_, image),) = clip_micro_batches(processor, [RED, BLUE])
    plain = CLIPModel(model.config).eval()
    plain.load_state_dict(model.state_dict())
    expected = plain.get_image_features(**image).pooler_output
    torch.testing.assert_close(model.eval()(**image).embeddings, normalize(expected))
    hidden = plain.text_model(**text).last_hidden_state
    ends = [ids.index(2) for ids in text["input_ids"].tolist()]
    expected = plain.text_projection(hidden[[0, 1], ends])
    torch.testing.assert_close(model(**text).embeddings, normalize(expected))


def test_texts_are_truncated_to_77_tokens():
    model, processor = clip()
    beginning = "a red tile and " * 40
    first, second = model.encode([beginning + "a cat", beginning + "a dog"], processor)
    np.testing.assert_allclose(first, second, atol=1e-6)
    (_, tensors), *_ = clip_micro_batches(processor, [beginning, "short"])
    assert tensors["input_ids"].shape == (2, 77)
    assert tensors["input_ids"][1, -1] == processor.tokenizer.eos_token_id


def test_a_control_token_in_a_text_is_tokenized_as_plain_text():
    _, processor = clip()
    (_, tensors), *_ = clip_micro_batches(processor, ["a </s> b <image>"])
    ids = tensors["input_ids"][0].tolist()
    assert ids.count(processor.tokenizer.eos_token_id) == 1 and ids[-1] == processor.tokenizer.eos_token_id


def test_micro_batches_have_one_modality_each_and_every_item_once():
    _, processor = clip()
    batches = clip_micro_batches(processor, ITEMS * 3, batch_size=4)
    assert sorted(index for indices, _ in batches for index in indices) == list(range(18))
    modalities = [set(tensors) for _, tensors in batches]
    text, pixels = {"input_ids", "attention_mask"}, {"pixel_values"}
    # 3 images, 9 texts, 6 with both
    assert modalities == [pixels, text, text, text, text | pixels, text | pixels]
    assert [len(indices) for indices, _ in batches] == [3, 4, 4, 1, 4, 2]


def test_the_error_for_several_images_names_the_item():
    _, processor = clip()
    with pytest.raises(ValueError, match="item 1 has 2 images, but CLIP takes one"):
        clip_micro_batches(processor, ["a", {"image": [RED, BLUE]}])
    with pytest.raises(ValueError, match="item 0: expected 'text' or 'image'"):
        clip_micro_batches(processor, [{"instruction": "Find"}])


def test_a_saved_model_loads_again_and_as_plain_clip(tmp_path):
    model, processor = clip()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = CLIPEmbedder.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    np.testing.assert_allclose(loaded.encode(ITEMS, loaded_processor), model.encode(ITEMS, processor), atol=1e-6)
    assert torch.equal(CLIPModel.from_pretrained(tmp_path).text_projection.weight, model.text_projection.weight)


def test_the_contrastive_trainer_trains_it_in_several_micro_batches(tmp_path):
    model, processor = clip()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    colours = ["red", "blue", "green", "white"]
    rows = [
        {
            "query": {"image": Image.new("RGB", (32, 32), colour), "instruction": "Find a caption."},
            "positive": {"text": f"this is {colour}"},
            "negatives": [],
            "task": "colour",
            "label": None,
        }
        for colour in colours
    ]
    dataset = Dataset.from_dict({"row": list(range(4))}).with_transform(
        lambda batch: {name: [rows[row][name] for row in batch["row"]] for name in rows[0]}
    )
    trainer = ContrastiveTrainer(
        model,
        ContrastiveConfig(
            output_dir=tmp_path,
            per_device_train_batch_size=4,
            max_steps=30,
            learning_rate=1e-3,
            temperature=0.05,
            false_negative_margin=None,  # four random images start too close to each other for a margin
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=dataset,
        data_collator=ContrastiveCollator(partial(clip_micro_batches, processor, batch_size=2)),
    )
    trainer.train()
    frozen = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert frozen == {"logit_scale"}
    queries = model.encode([row["query"] for row in rows], processor)
    candidates = model.encode([row["positive"] for row in rows], processor)
    assert (queries @ candidates.T).argmax(axis=1).tolist() == [0, 1, 2, 3]
