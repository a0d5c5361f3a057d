"""Presets of published embedders: each prompt to the token, and embeddings as their authors compute them."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from published_models import PUBLISHED, make_published_model
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.image_utils import SizeDict
from typer.testing import CliRunner

from unime import UniMEModel, load_model, micro_batches, save_checkpoint
from unime.batching_unime import plan_micro_batches
from unime.checkpoint import load_processor
from unime.cli.main import app
from unime.eval.encoders.loading import load_encoder
from unime.export.plain import export_plain
from unime.image_tokens_unime import square_of
from unime.index.index import Index
from unime.presets import all_presets, find_preset
from unime.processing_unime import Item, normalize_item, to_item_dict, to_messages
from unime.trainers.gradient_cache import with_last_layer_shortcut


IMAGE = Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 20).convert("RGB")
QUESTION = "Represent the given image with the following question:"
CAPTION = "Find me an everyday image that matches the given caption:"
WIKIPEDIA = "Find a Wikipedia image that answers this question:"
RELATED = "Represent the given Wikipedia image with related text information:"
DIALOGUE = "Represent the given dialogue about an image, which is used for image retrieval:"
CROP = "Represent the given cropped image of the object"


def mmeb(begin: str) -> list[tuple[dict, str]]:
    """Return items of MMEB and the strings that VLM2Vec's code makes of them; `begin` precedes those with an image."""
    return [
        ({"image": IMAGE, "text": "What is it?", "instruction": QUESTION}, f"{begin}{QUESTION} What is it?\n"),
        (
            {"image": IMAGE, "instruction": "Represent the given image for classification"},
            f"{begin}Represent the given image for classification\n",
        ),
        ({"text": "A cat", "instruction": CAPTION}, f"{CAPTION} A cat\n"),
        ({"image": IMAGE, "instruction": "Represent the given image."}, f"{begin}Represent the given image.\n"),
        ({"image": IMAGE, "text": "A cat", "instruction": RELATED}, f"{begin}{RELATED} A cat\n"),
        ({"text": "A cat"}, "A cat"),
        # Pitfall: the final line feed decides the pooled token, and two strings differ from the others.
        ({"image": IMAGE, "instruction": CROP}, f"{begin}{CROP}"),
        ({"text": "Is it a cat? yes", "instruction": DIALOGUE}, f"{DIALOGUE} Is it a cat? yes\n\n"),
    ]


# Pitfall: WebQA and EDIS have text-only queries that begin with an image token.
STRAY = ({"text": "Which?", "instruction": WIKIPEDIA}, f"<|image_pad|>\n{WIKIPEDIA} Which?\n")
BEGIN = "<|begin_of_text|>"
E5_V = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n \n"
QWEN3 = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
UNIME_V2 = "<|im_start|>user {}\n{}<|im_end|><|im_start|>assistant\n"
GME = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
FIND_CAPTION = "Find an image caption describing the given image."
COMBINED = (
    "Retrieve the target image that best meets the combined criteria by using both the provided image and the image "
    "retrieval instructions: "
)
LLAVE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant"
    "\n\n<|im_end|>\n"
)
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

PROMPTS = {
    "embeddinggemma-2": [
        ({"text": "A cat", "instruction": "search result"}, "task: search result | query: A cat"),
        ({"text": "A cat"}, "title: none | text: A cat"),
        ({"text": "A cat", "instruction": "fact checking"}, "task: fact checking | query: A cat"),
    ],
    "wemm-embedding": [
        ({"text": "A cat"}, "<|im_start|>user\nA cat<|im_end|><embedding>"),
        ({"image": IMAGE}, f"<|im_start|>user{QWEN_IMAGE}<|im_end|><embedding>"),
        ({"image": IMAGE, "text": "A cat"}, f"<|im_start|>user{QWEN_IMAGE}A cat<|im_end|><embedding>"),
    ],
    "llave": [
        (item, LLAVE.format(prompt))
        for item, prompt in [*mmeb("<image>\n"), ({"image": IMAGE}, "<image>\nRepresent the given image.\n")]
    ],
    "unime-phi-3.5": [
        ({"text": "A cat"}, "<|user|>\nA cat\nSummary above sentence in one word:<|end|>\n<|assistant|>\n"),
        ({"image": IMAGE}, "<|user|>\n<|image_1|>\nSummary above image in one word:<|end|>\n<|assistant|>\n"),
    ],
    "vlm2vec-phi-3.5": [
        *mmeb("<|image_1|>\n"),
        ({"image": IMAGE}, "<|image_1|>\nRepresent the given image.\n"),
    ],
    "unime-llava-1.6": [
        ({"text": "A cat"}, "[INST] A cat\nSummary above sentence in one word: [/INST]"),
        ({"image": IMAGE}, "[INST] <image>\nSummary above image in one word: [/INST]"),
    ],
    "unime-llava-onevision": [
        (
            {"text": "A cat"},
            "<|im_start|>user \nA cat\nSummary above sentence in one word:\n<|im_end|><|im_start|>assistant\n",
        ),
        (
            {"image": IMAGE},
            "<|im_start|>user <image>\nSummary above image in one word:\n<|im_end|><|im_start|>assistant\n",
        ),
        (
            {"image": IMAGE, "text": "A cat"},
            "<|im_start|>user <image>\nA cat\nSummary above image and the following text in one word:\n<|im_end|>"
            "<|im_start|>assistant\n",
        ),
    ],
    "unime-v2-qwen2-vl": [*mmeb("<|image_pad|>\n"), STRAY, ({"image": IMAGE}, f"<|image_pad|> {FIND_CAPTION}")],
    "unime-v2-llava-onevision": [
        ({"text": " A cat\n"}, UNIME_V2.format("", "A cat")),
        ({"image": IMAGE}, UNIME_V2.format("<image>", FIND_CAPTION)),
        (
            {"image": IMAGE, "text": "What is it?\n", "instruction": QUESTION},
            UNIME_V2.format("<image>", f"{QUESTION} What is it?"),
        ),
        ({"text": "A cat", "instruction": CAPTION}, UNIME_V2.format("", f"{CAPTION} A cat")),
    ],
    "vlm2vec-llava-next": [
        *mmeb("<image>\n"),
        ({"image": IMAGE}, "<image>\nRepresent the given image.\n"),
    ],
    "vlm2vec-v2": [
        *mmeb("<|image_pad|>\n"),
        STRAY,
        ({"image": IMAGE}, "<|image_pad|>\nRepresent the given image.\n"),
    ],
    "gme": [
        ({"text": "A cat"}, GME.format("You are a helpful assistant.", "A cat")),
        ({"image": IMAGE}, GME.format("You are a helpful assistant.", QWEN_IMAGE)),
        (
            {"image": IMAGE, "text": "A cat", "instruction": "Find an image"},
            GME.format("Find an image", f"{QWEN_IMAGE}A cat"),
        ),
        ({"text": "A cat", "instruction": "Find an image"}, GME.format("Find an image", "A cat")),
    ],
    "mme5": [
        *mmeb("<|image|><|begin_of_text|>"),
        # The authors' code turns the stray image token of WebQA and EDIS into a beginning of the text.
        ({"text": "Which?", "instruction": WIKIPEDIA}, f"<|begin_of_text|>{WIKIPEDIA} Which?\n"),
        ({"image": IMAGE}, "<|image|><|begin_of_text|>Represent the given image.\n"),
    ],
    "bge-vl-mllm": [
        (
            {"image": IMAGE, "text": "in red", "instruction": COMBINED},
            f"[INST] \n <instruct> {COMBINED} <query>  in red \n <image> [/INST]",
        ),
        ({"image": IMAGE, "instruction": COMBINED}, f"[INST] \n <instruct> {COMBINED} <query>  <image> [/INST]"),
        ({"text": "in red", "instruction": COMBINED}, f"[INST] \n <instruct> {COMBINED} <query>  in red \n [/INST]"),
        (  # a query without an instruction, which the authors warn of; without any it is a candidate
            {"image": IMAGE, "text": "in red", "instruction": " "},
            "[INST] \n <instruct>  <query> in red \n <image> [/INST]",
        ),
        ({"image": IMAGE, "text": "in red"}, "[INST]  in red \n <image> [/INST]"),
        ({"text": "in red"}, "[INST]  in red \n [/INST]"),
        ({"image": IMAGE}, "[INST]  <image> [/INST]"),
    ],
    "vlm2vec-qwen2-vl": [
        *mmeb("<|image_pad|>\n"),
        STRAY,
        ({"image": IMAGE}, "<|image_pad|>\nRepresent the given image.\n"),
    ],
    "qwen3-vl-embedding": [
        ({"text": "A cat"}, QWEN3.format("Represent the user's input.", "A cat")),
        ({"image": IMAGE}, QWEN3.format("Represent the user's input.", QWEN_IMAGE)),
        ({"image": IMAGE, "text": " A cat "}, QWEN3.format("Represent the user's input.", f"{QWEN_IMAGE} A cat ")),
        ({"text": "A cat", "instruction": " Find it "}, QWEN3.format("Find it.", "A cat")),
        ({"text": "A cat", "instruction": "Find it:"}, QWEN3.format("Find it:", "A cat")),
        ({"text": "A cat", "instruction": "找到它。"}, QWEN3.format("找到它。", "A cat")),
        ({"text": "A cat", "instruction": "1 + 1 ="}, QWEN3.format("1 + 1 =.", "A cat")),
        ({"text": ""}, QWEN3.format("Represent the user's input.", "NULL")),
        ({"image": [IMAGE, IMAGE]}, QWEN3.format("Represent the user's input.", QWEN_IMAGE * 2)),
    ],
    "e5-v": [
        ({"text": "A cat"}, E5_V.format("A cat\nSummary above sentence in one word: ")),
        ({"image": IMAGE}, E5_V.format("<image>\nSummary above image in one word: ")),
        (
            {"image": IMAGE, "text": "A cat"},
            E5_V.format("<image>\nA cat\nSummary above image and text in one word: "),
        ),
        (
            {
                "image": IMAGE,
                "text": "make it red",
                "instruction": 'Modify this image with "{text}", desribe modified image in one word:',
            },
            E5_V.format('<image>Modify this image with "make it red", desribe modified image in one word:'),
        ),
        (
            {"image": IMAGE, "instruction": "\n Describe this image in one word:"},
            E5_V.format("<image>\n Describe this image in one word:"),
        ),
        (
            {
                "image": IMAGE,
                "text": "shorter",
                "instruction": " change the style of this dress to {text}\n Desribe this modified dress in one word "
                "based on its style:",
            },
            E5_V.format(
                "<image> change the style of this dress to shorter\n Desribe this modified dress in one word based on "
                "its style:"
            ),
        ),
    ],
}
FORMS = [(name, item, prompt) for name, forms in PROMPTS.items() for item, prompt in forms]


# Sizes in proportion to the tiny models, instead of the authors'.
SIZES = {
    "unime-v2-qwen2-vl": {"square": 64, "min_pixels": 1024, "max_pixels": 4096},
    "unime-v2-llava-onevision": {"square": 40},
    "vlm2vec-llava-next": {"square": 40},
    "vlm2vec-v2": {"min_pixels": 1024, "max_pixels": 4096},
    "gme": {"min_pixels": 1024, "max_pixels": 4096},
    "bge-vl-mllm": {"square": 20},
    "vlm2vec-qwen2-vl": {"square": 64, "min_pixels": 1024, "max_pixels": 2304},
    "qwen3-vl-embedding": {"min_pixels": 1024, "max_pixels": 4096},
}
# What the authors' tokenizer adds to the end of a text, and the template of the preset writes.
ADDED = {"qwen3-vl-embedding": "<|endoftext|>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a family to the folder of its tiny model."""
    root = tmp_path_factory.mktemp("published")
    return cache(lambda name: make_published_model(name, root))


@pytest.fixture(scope="module")
def loaded(folder: Callable[[str], Path]) -> Callable[[str], tuple[UniMEModel, ProcessorMixin]]:
    """Return a function from a family to its model and processor, loaded by the name of the folder."""
    return cache(lambda name: load_model(str(folder(name)), SIZES.get(name), dtype="float32"))


def rendered(processor: ProcessorMixin, item: Item, max_length: int = 10**6) -> tuple[str, list[int]]:
    """Return the prompt of an item, and its tokens with one token for each image."""
    (batch,) = plan_micro_batches(processor, {0: normalize_item(item, 0)}, max_length=max_length)
    return batch.items[0].text, batch.items[0].tokens


@pytest.mark.parametrize(("name", "item", "prompt"), FORMS)
def test_a_prompt_is_that_of_the_authors_to_the_token(folder, loaded, name: str, item: dict, prompt: str) -> None:
    text, tokens = rendered(loaded(name)[1], item)
    prompt = prompt.replace("<|image_1|>", "<|image|><s>")  # Phi-3.5's processor does the same
    if name == "mme5":  # the template writes the beginning of a text, which the authors' processor adds
        text = text.removeprefix(BEGIN) if BEGIN not in prompt else text
    assert text == prompt
    assert tokens == authors_tokens(AutoTokenizer.from_pretrained(folder(name)), name, prompt)


def authors_tokens(tokenizer: PreTrainedTokenizerBase, name: str, prompt: str) -> list[int]:
    """Return the tokens of a prompt with those that the authors' tokenizer adds, but no second beginning."""
    return tokenizer(prompt.removesuffix(ADDED.get(name, "")), add_special_tokens=BEGIN not in prompt)["input_ids"]


def authors_embedding(folder: Path, name: str, prompt: str, image: Image.Image | None) -> np.ndarray:
    """Embed one item as its authors do: their processor, positions, pooled token and normalization, step by step."""
    processor = AutoProcessor.from_pretrained(folder)
    auto_class = AutoModel if name == "embeddinggemma-2" else AutoModelForImageTextToText
    model = auto_class.from_pretrained(folder, dtype=torch.float32).eval()
    preset, sizes = find_preset(str(folder)), SIZES.get(name, {})
    options = {"add_special_tokens": BEGIN not in prompt, "return_tensors": "pt"}
    prompt = prompt.removesuffix(ADDED.get(name, ""))
    if image is None:
        inputs = processor.tokenizer(prompt, **options)
    else:
        if "square" in sizes:
            image = image.resize((sizes["square"], sizes["square"]))
        if "max_pixels" in sizes:
            limits = {"shortest_edge": sizes["min_pixels"], "longest_edge": sizes["max_pixels"]}
            processor.image_processor.size = SizeDict(**limits)
        inputs = processor(text=[prompt], images=[[image]], **options)
    if preset.positions == "sequential":
        length = inputs["input_ids"].shape[1]
        inputs["position_ids"] = torch.arange(length).expand(3, 1, length)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    hidden = (output.last_hidden_state if name == "embeddinggemma-2" else output.hidden_states[-1])[0]
    pooled = hidden.mean(dim=0) if name == "embeddinggemma-2" else hidden[-1]
    return torch.nn.functional.normalize(pooled, dim=-1).numpy()


# Those that only differ from another family in their prompt are left to the slow tests.
ONLY_PROMPT_DIFFERS = {"llave", "unime-v2-llava-onevision", "vlm2vec-llava-next", "vlm2vec-phi-3.5", "vlm2vec-v2"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ONLY_PROMPT_DIFFERS)) for name in PUBLISHED],
)
def test_embeddings_are_those_of_the_authors(folder, loaded, name: str) -> None:
    model, processor = loaded(name)
    forms = [form for form in PROMPTS[name] if not isinstance(form[0].get("image"), list)]
    stray = [form for form in forms if form is STRAY]  # its image token is read as text
    forms = [forms[0], next(form for form in forms if "image" not in form[0]), *stray, forms[-1]]
    embeddings = model.encode([item for item, _ in forms], processor)
    for (item, prompt), embedding in zip(forms, embeddings, strict=True):
        expected = authors_embedding(folder(name), name, prompt, item.get("image"))
        np.testing.assert_allclose(embedding, expected, atol=1e-5)


@pytest.mark.parametrize("name", [preset.name for preset in all_presets() if preset.refused is None])
def test_a_preset_names_all_that_its_family_needs(folder, name: str) -> None:
    preset = find_preset("", name)
    assert name in PUBLISHED and name in PROMPTS, "add the tiny model and the prompts of this preset"
    assert preset.certainty.startswith(("Sure", "2nd")) and preset.source and preset.template
    processor = load_processor(str(folder(name)))
    sizes = preset.image_size or {}
    assert square_of(processor) == sizes.get("square")
    if "max_pixels" in sizes:
        size = processor.image_processor.size
        assert (size["shortest_edge"], size["longest_edge"]) == (sizes["min_pixels"], sizes["max_pixels"])
    if preset.max_length:
        assert processor.tokenizer.model_max_length == preset.max_length


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("Qwen/Qwen3-VL-Embedding-8B", "qwen3-vl-embedding"),
        ("TIGER-Lab/VLM2Vec-Qwen2VL-7B", "vlm2vec-qwen2-vl"),
        ("royokong/E5-V", "e5-v"),
        ("Qwen/Qwen3-VL-2B-Instruct", None),
        ("somebody/e5-v", None),
    ],
)
def test_an_id_has_one_preset(checkpoint: str, name: str | None) -> None:
    matches = [preset.name for preset in all_presets() if preset.matches(checkpoint)]
    assert matches == ([] if name is None else [name])


def test_a_folder_is_known_by_its_name_its_config_or_its_place_in_the_hubs_cache(tmp_path: Path) -> None:
    plain, cached = tmp_path / "plain", tmp_path / "models--royokong--e5-v" / "snapshots" / "0123"
    for directory in (plain, cached, tmp_path / "e5-v"):
        directory.mkdir(parents=True)
    assert find_preset(str(plain)) is None
    assert find_preset(str(cached)).name == find_preset(str(tmp_path / "e5-v")).name == "e5-v"
    (plain / "config.json").write_text('{"_name_or_path": "royokong/e5-v"}')
    assert find_preset(str(plain)).name == "e5-v"


def test_a_preset_is_named_overridden_or_left_out(folder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(folder("qwen3-vl-embedding"))
    load_model(path, dtype="float32")
    assert "preset qwen3-vl-embedding (Qwen3-VL-Embedding)" in caplog.text
    native = AutoProcessor.from_pretrained(path).chat_template
    assert load_processor(path, preset="keep").chat_template == native
    assert "in one word" in rendered(load_processor(path, preset="none"), "A cat")[0]
    (tmp_path / "own.jinja").write_text("{{- '[' ~ text ~ ']' -}}")
    own = {"family": "Mine", "ids": [], "certainty": "", "source": "", "template": "own.jinja"}
    (tmp_path / "own.json").write_text(json.dumps(own))
    assert rendered(load_processor(path, preset=str(tmp_path / "own.json")), "a <|im_end|>")[0] == "[a < |im_end|>]"


def test_a_wrong_preset_is_explained(folder, tmp_path: Path) -> None:
    path = str(folder("qwen3-vl-embedding"))
    with pytest.raises(ValueError, match="e5-v is for models of type llava_next, but .* is of type 'qwen3_vl'"):
        load_model(path, preset="e5-v")
    with pytest.raises(FileNotFoundError, match="there is no preset 'e5v': choose from .*qwen3-vl-embedding"):
        load_model(path, preset="e5v")
    (tmp_path / "bad.json").write_text('{"familie": 1}')
    with pytest.raises(ValueError, match="bad.json is no preset .*familie"):
        load_model(path, preset=str(tmp_path / "bad.json"))


def test_an_item_without_a_prompt_is_refused_by_its_index(loaded) -> None:
    model, processor = loaded("e5-v")
    with pytest.raises(ValueError, match="item 1: the authors of E5-V state no prompt for a text with an instruction"):
        model.encode(["a", {"text": "b", "instruction": "Find it"}], processor)
    with pytest.raises(ValueError, match="item 0: the prompt of E5-V has one place for the images"):
        model.encode([["a", IMAGE, "b"]], processor)


def test_a_final_line_feed_changes_the_embedding(loaded) -> None:
    model, processor = loaded("vlm2vec-qwen2-vl")
    with_line_feed, without = ({"text": f"{CAPTION} A cat{end}"} for end in ("\n", ""))
    assert rendered(processor, with_line_feed)[0] == rendered(processor, {"text": "A cat", "instruction": CAPTION})[0]
    vectors = model.encode([with_line_feed, without, {"text": "A cat", "instruction": CAPTION}], processor)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_an_evaluation_takes_the_preset_of_the_id_or_another(folder, loaded) -> None:
    path, items = str(folder("qwen3-vl-embedding")), ["A cat", {"text": "A dog", "instruction": "Find it"}]
    expected = loaded("qwen3-vl-embedding")[0].encode(items, loaded("qwen3-vl-embedding")[1])
    np.testing.assert_allclose(load_encoder(path).encode(items), expected, atol=1e-5)
    assert np.abs(load_encoder(path, preset="none").encode(items) - expected).max() > 1e-3


def test_truncation_keeps_the_end_token(loaded) -> None:
    _, processor = loaded("qwen3-vl-embedding")
    text, tokens = rendered(processor, {"text": "word " * 200}, max_length=60)
    assert len(tokens) <= 60 and text.endswith("assistant\n<|endoftext|>")
    assert tokens[-1] == processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")


MIXED = [
    {"image": IMAGE, "text": "What is it?", "instruction": QUESTION},
    {"image": IMAGE.crop((0, 0, 20, 48)), "instruction": CROP},
    *({"text": f"A cat with a long name, number {i}", "instruction": CAPTION} for i in range(30)),
]


@pytest.mark.parametrize("name", ["vlm2vec-qwen2-vl", "mean"])
def test_embeddings_do_not_depend_on_batches_padding_or_packing(loaded, name: str, monkeypatch) -> None:
    model, processor = loaded("vlm2vec-qwen2-vl")
    if name == "mean":
        monkeypatch.setattr(model.config, "pooling", "mean")
    single = np.stack([model.encode(item, processor) for item in MIXED])
    together = model.encode(MIXED, processor)  # with a shared prefix, unless all tokens are pooled
    np.testing.assert_allclose(together, single, atol=1e-5)
    np.testing.assert_allclose(model.encode(MIXED, processor, packed=True), single, atol=1e-5)
    for indices, tensors in micro_batches(processor, MIXED):
        processor.tokenizer.padding_side = "left"
        left = processor.tokenizer.pad(
            {
                "input_ids": [
                    ids[mask.bool()].tolist()
                    for ids, mask in zip(tensors["input_ids"], tensors["attention_mask"], strict=True)
                ]
            },
            return_tensors="pt",
        )
        padded = {**tensors, **left}
        if "mm_token_type_ids" in tensors:
            padded["mm_token_type_ids"] = (left["input_ids"] == model.backbone.config.image_token_id).long()
        with torch.no_grad():
            embeddings = model(**padded).embeddings
        np.testing.assert_allclose(embeddings, single[indices], atol=1e-5)


def test_native_positions_would_give_other_embeddings(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = loaded("vlm2vec-qwen2-vl")
    expected = model.encode(MIXED[:3], processor)
    monkeypatch.setattr(model.config, "positions", "native")
    changed = model.encode(MIXED[:3], processor)
    assert (np.abs(changed - expected).max(axis=1) > 1e-3).tolist() == [True, True, False]


def test_training_reads_the_positions_of_the_preset(loaded) -> None:
    model, processor = loaded("vlm2vec-qwen2-vl")
    embed = with_last_layer_shortcut(model, lambda tensors: model(**tensors).embeddings)
    expected = model.encode(MIXED, processor)
    for packed in (False, True):
        for indices, tensors in micro_batches(processor, MIXED, packed=packed):
            np.testing.assert_allclose(embed(tensors).detach(), expected[indices], atol=1e-5)


def test_a_saved_model_keeps_its_preset_wherever_it_is_loaded(folder, tmp_path: Path) -> None:
    model, processor = load_model(str(folder("vlm2vec-qwen2-vl")), {"square": None}, dtype="float32")
    model.config.pooling = "mean"
    item = {"image": IMAGE, "text": "What is it?", "instruction": QUESTION}
    expected = model.encode(item, processor)
    saved = str(save_checkpoint(model, processor, tmp_path / "saved"))
    native = AutoModel.from_pretrained(saved), AutoProcessor.from_pretrained(saved)
    for again, its_processor in (load_model(saved), native):
        assert rendered(its_processor, item) == rendered(processor, item)
        np.testing.assert_allclose(again.encode(item, its_processor), expected, atol=1e-5)
    transformer = SentenceTransformer(saved, device="cpu")
    np.testing.assert_allclose(transformer.encode(to_messages(to_item_dict(item))), expected, atol=1e-5)


def test_a_saved_bidirectional_embedder_pools_all_tokens_wherever_it_is_loaded(loaded, tmp_path: Path) -> None:
    model, processor = loaded("embeddinggemma-2")
    texts = ["A cat", "A much longer text about a cat and a dog"]
    expected = model.encode(texts, processor)
    assert expected.shape == (2, model.config.backbone_config.text_config.embedding_dim)
    saved = str(save_checkpoint(model, processor, tmp_path / "saved"))
    again, its_processor = load_model(saved)
    assert again.config.prompts["query"] == "search result"
    np.testing.assert_allclose(again.encode(texts, its_processor), expected, atol=1e-5)
    transformer = SentenceTransformer(saved, device="cpu")
    np.testing.assert_allclose(transformer.encode(texts), expected, atol=1e-5)
    query = {"text": "A cat", "instruction": "search result"}
    np.testing.assert_allclose(
        transformer.encode("A cat", prompt_name="query"), model.encode(query, processor), atol=1e-5
    )


def test_an_index_has_the_dimensions_of_a_projection(folder, loaded, tmp_path: Path) -> None:
    model = str(folder("embeddinggemma-2"))
    (tmp_path / "texts").mkdir()
    for name in ("a cat", "a dog"):
        (tmp_path / "texts" / f"{name}.txt").write_text(name)
    run = CliRunner().invoke
    assert run(app, ["index", str(tmp_path / "texts"), str(tmp_path / "index"), "--model", model]).exit_code == 0
    assert Index.open(tmp_path / "index").record.dimensions == loaded("embeddinggemma-2")[0].config.hidden_size
    found = json.loads(run(app, ["search", str(tmp_path / "index"), "a cat", "--json"]).stdout)
    assert len(found["hits"]) == 2


def test_sentence_transformers_refuses_a_model_that_reads_squares(loaded, tmp_path: Path) -> None:
    model, processor = loaded("vlm2vec-qwen2-vl")
    saved = str(save_checkpoint(model, processor, tmp_path / "saved"))
    with pytest.raises(ImportError, match="reads images as squares, which no version can do: load it with unime"):
        SentenceTransformer(saved, device="cpu")
    again, its_processor = load_model(saved)
    assert square_of(its_processor) == SIZES["vlm2vec-qwen2-vl"]["square"]
    np.testing.assert_allclose(again.encode(MIXED[:2], its_processor), model.encode(MIXED[:2], processor), atol=1e-5)
    with pytest.raises(ValueError, match="sequential positions or reads images as squares"):
        export_plain(model, processor, tmp_path / "plain")


@pytest.mark.parametrize(
    ("checkpoint", "reason"),
    [
        ("jinaai/jina-embeddings-v4", "code of its own, which is never run"),
        ("Alibaba-NLP/UEmbed-2B", "nobody states how its end tokens are appended"),
        ("AIDC-AI/Ovis-VL-Embedding-2B", "not published the exact string of its prompts"),
        ("BAAI/BGE-VL-v1.5-mmeb", "its prompts differ from those of BGE-VL-MLLM"),
        ("Qwen/Qwen3-VL-Reranker-2B", "it is a reranker"),
    ],
)
def test_a_family_that_cannot_be_run_as_its_authors_do_is_refused(checkpoint: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{checkpoint} cannot be loaded as its authors run it: .*{reason}"):
        load_model(checkpoint)
    assert find_preset(checkpoint, "none") is None


def test_an_adapter_is_run_as_its_own_authors_do(folder, tmp_path: Path) -> None:
    adapter = tmp_path / "VLM2Vec-Qwen2VL-2B"
    base = AutoModelForImageTextToText.from_pretrained(folder("gme"))
    adapted = get_peft_model(base, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(folder("gme"))  # another family's, on purpose
    adapted.save_pretrained(adapter)
    model, processor = load_model(str(adapter), SIZES["vlm2vec-qwen2-vl"], dtype="float32")
    item, prompt = PROMPTS["vlm2vec-qwen2-vl"][0]
    assert rendered(processor, item)[0] == prompt and model.config.positions == "sequential"
    nameless = adapter.rename(tmp_path / "nameless")
    assert rendered(load_processor(str(nameless)), {"text": "A cat"})[0] == PROMPTS["gme"][0][1]


def test_an_index_keeps_its_preset_and_the_default_instructions_of_its_model(folder, tmp_path: Path) -> None:
    model, photos = str(folder("e5-v")), tmp_path / "photos"
    photos.mkdir()
    IMAGE.save(photos / "fractal.png")
    (photos / "cat.txt").write_text("A cat")
    run = CliRunner().invoke
    for name, options in {"by-id": [], "none": ["--preset", "none"]}.items():
        index = str(tmp_path / name)
        assert run(app, ["index", str(photos), index, "--model", model, *options]).exit_code == 0
        # E5-V refuses the instruction that UniME's models have for this search.
        query = json.loads(run(app, ["search", index, "A cat", "--json"]).stdout)["query"]
        assert bool(query["instruction"]) == (name == "none")
    refused = run(app, ["index", str(photos), index, "--preset", "e5-v"]).exception
    assert "was created with the preset none, not e5-v: leave --preset out" in str(refused)
