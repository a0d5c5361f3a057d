"""The table of supported architectures: a tiny random model of every image-text architecture of transformers.

    python tests/architectures.py [MODEL_TYPE...]

A model goes through the steps of [`check`], if it runs without this package ([`check_native`]). Results are written to
`architectures.json`, and from them the page `docs/architectures.md`.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from sentence_transformers import SentenceTransformer
from tiny_architectures import NOT_SMALL, NoTinyModelError, tiny_architecture
from tiny_models import TINY_MODELS
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from unime import load_model, processor_from_backbone, save_checkpoint
from unime.export.plain import export_plain
from unime.modeling_unime import require_image_text_model
from unime.processing_unime import to_item_dict, to_messages
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, merge_adapter


ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "architectures.md"
STEPS = {
    "prompts": "the backbone is accepted, and its prompts are derived from its chat template",
    "batches": "a batch gives the embeddings of single items",
    "padding": "padding on the left and on the right give the same embeddings",
    "training": "two steps of stage 2 with an adapter change the embeddings",
    "AutoModel": "the saved checkpoint gives the same embeddings with `AutoModel`",
    "SentenceTransformer": "and with `SentenceTransformer`",
    "plain export": "and so does the export to native classes",
}
INCONSISTENT = "The tiny model does not run on the output of its own processor"
# What an error means where it does not say so itself.
BATCHED_IMAGES = "with transformers alone, too, the second image of a batch gets other features than on its own"
LIMITS = {
    "cosmos3_edge SentenceTransformer": "its processor gives `mm_token_type_ids` only to callers that ask for them, "
    "which sentence-transformers does not: use `AutoModel`",
    "got_ocr2 batches": "its processor takes one image per text, but is given a list of images for each text",
    "minicpmv4_6 batches": BATCHED_IMAGES,
    "minicpmv4_7 batches": BATCHED_IMAGES,
    "mistral_large4 padding": "its positions are absolute and padding on the left shifts them: pad on the right, as "
    "`encode` and the trainers do",
    "mllama SentenceTransformer": "its processor does not take texts without images beside those with images, which "
    "sentence-transformers batches together: encode them in separate calls",
    "paligemma padding": "not compared for texts without images, which its processor does not take",
    "paligemma SentenceTransformer": "sentence-transformers passes texts without `token_type_ids`, and transformers "
    "then gives padded texts other embeddings: use `AutoModel`",
    "qianfan_ocr batches": "its processor replaces another token than its `image_token`, which gives the number of "
    "tokens of an image",
}
MIN_DIFFERENCE = 1e-5  # between embeddings that are not equal
MAX_ERROR_CHARACTERS = 400
TOLERANCE = 1e-4  # between elements of embeddings, in float32
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
SIZES = [(64, 64), (64, 64), (64, 96)]
TILE, OTHER, STRIPE = (Image.fromarray(PIXELS[i]).resize(size) for i, size in enumerate(SIZES))
TEXTS = ["a cat", "a longer text about a cat on a tile"]
ITEMS = [*TEXTS, TILE, OTHER, {"image": STRIPE, "text": "Is it <b>red</b>?"}]


def tiny(model_type: str) -> tuple[torch.nn.Module, ProcessorMixin]:
    """Return a tiny model and its processor: those of other tests, which are like a checkpoint, or generic ones."""
    name = model_type.replace("_", "-").replace("qwen2-5", "qwen2.5")
    return TINY_MODELS[name]() if name in TINY_MODELS else tiny_architecture(model_type)


def check(model_type: str, folder: Path) -> Iterator[tuple[str, BaseException | None]]:
    """Send a tiny model through all steps, and yield each with its error.

    Raises:
        NoTinyModelError: There is no tiny model, or it does not run without this package either.
    """
    torch.manual_seed(0)
    native, processor = tiny(model_type)
    try:
        native.eval().save_pretrained(folder / "native")
        processor.save_pretrained(folder / "native")
    except Exception as error:
        raise NoTinyModelError(NOT_SMALL, f"it cannot be saved ({first_sentence(error)})") from error
    del native
    state = State(folder)
    for name, step in STEP_FUNCTIONS.items():
        try:
            step(state)
            yield name, None
        except NoTinyModelError:
            raise
        except (Exception, SystemExit) as error:  # transformers exits where it cannot read weights
            yield name, error
            if name not in INDEPENDENT:
                return


@dataclass
class State:
    """What a step leaves to the next ones."""

    folder: Path
    model: Any = None
    processor: Any = None
    embeddings: Any = None


def check_prompts(state: State) -> None:
    """Derive the template, and check that the model works without it."""
    folder = state.folder / "native"
    require_image_text_model(AutoConfig.from_pretrained(folder), "it")
    processor_from_backbone(str(folder))
    check_native(folder)


def check_native(folder: Path) -> None:
    """Run a model with transformers alone: what does not work there is no fault of this package.

    Raises:
        NoTinyModelError: The model does not read the output of its processor, or not its images.
    """
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32", output_loading_info=True)
        if report["missing_keys"]:
            raise AssertionError(f"transformers does not find {min(report['missing_keys'])} in its own file")
        processor = AutoProcessor.from_pretrained(folder)
        logits = [native_logits(model.eval(), processor, image) for image in (TILE, OTHER)]
        if not torch.stack(logits).isfinite().all():
            raise AssertionError("its outputs are not finite")
        if not (logits[0] - logits[1]).abs().max() > MIN_DIFFERENCE:
            raise AssertionError("different images give the same output at the last token")
    except (Exception, SystemExit) as error:
        raise NoTinyModelError(INCONSISTENT, first_sentence(error)) from error


@torch.no_grad()
def native_logits(model: torch.nn.Module, processor: ProcessorMixin, image: Image.Image) -> Tensor:
    """Return the logits of the last token of an image and a text."""
    if processor.chat_template is None:
        prompt = f"{processor.image_token}\n{TEXTS[0]}"
    else:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TEXTS[0]}]}
        prompt = processor.apply_chat_template([turn], tokenize=False)
    inputs = processor(images=image, text=prompt, return_tensors="pt", **token_types(processor))
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return model(**inputs, use_cache=False).logits[0, -1]


def check_batches(state: State) -> None:
    """Load the model, and compare a batch with single items."""
    model, processor = load_model(str(state.folder / "native"), dtype="float32")
    model.eval()
    batch = model.encode(ITEMS, processor)
    assert_equal(np.stack([model.encode(item, processor) for item in ITEMS]), batch)
    if not min(1 - batch[2] @ batch[3], 1 - batch[0] @ batch[1]) > MIN_DIFFERENCE:
        raise AssertionError("different items have the same embedding")
    state.model, state.processor, state.embeddings = model, processor, batch


def check_padding(state: State) -> None:
    """Compare left and right padding."""
    with torch.no_grad():
        for items in (ITEMS[:2], ITEMS[2:]):
            tensors = [inputs(state.processor, items, side) for side in ("left", "right")]
            assert_equal(*(state.model(**sides).embeddings.numpy() for sides in tensors))


def check_training(state: State) -> None:
    """Train an adapter in two steps of stage 2 and merge it."""
    images = [{"image": image, "text": "q"} for image in (TILE, STRIPE)]
    queries = [*images, {"text": "c"}, *images, {"text": "d"}]
    rows = [
        {"query": query, "positive": {"text": f"answer {i}"}, "negatives": [], "task": "t", "label": None}
        for i, query in enumerate(queries)
    ]
    dataset = Dataset.from_dict({"row": range(len(rows))})
    dataset.set_transform(lambda batch: {key: [rows[i][key] for i in batch["row"]] for key in rows[0]})
    arguments = ContrastiveConfig(
        str(state.folder / "trained"),
        per_device_train_batch_size=len(rows),
        max_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    lora = LoraConfig(r=2, target_modules="all-linear")
    trainer = ContrastiveTrainer(state.model, arguments, dataset, processing_class=state.processor, peft_config=lora)
    trainer.train()
    state.model = merge_adapter(trainer.model).eval()
    trained = state.model.encode(ITEMS, state.processor)
    if not np.abs(trained - state.embeddings).max() > MIN_DIFFERENCE:
        raise AssertionError("training does not change the embeddings")
    state.embeddings = trained
    save_checkpoint(state.model, state.processor, state.folder / "saved")


def check_auto_model(state: State) -> None:
    """Load the checkpoint as users without this package do."""
    model = AutoModel.from_pretrained(state.folder / "saved", trust_remote_code=True).eval()
    assert_equal(model.encode(ITEMS), state.embeddings)


def check_sentence_transformer(state: State) -> None:
    """Load the checkpoint with sentence-transformers, which batches texts and images together."""
    model = SentenceTransformer(str(state.folder / "saved"), trust_remote_code=True, device="cpu")
    items = [
        item if isinstance(item, dict) else {"image" if item in (TILE, OTHER) else "text": item} for item in ITEMS
    ]
    assert_equal(model.encode(items), state.embeddings)


def check_plain_export(state: State) -> None:
    """Export to native classes and load the export."""
    export_plain(state.model, state.processor, state.folder / "plain")
    model, processor = load_model(str(state.folder / "plain"), dtype="float32")
    assert_equal(model.eval().encode(ITEMS, processor), state.embeddings)


STEP_FUNCTIONS = dict(
    zip(
        STEPS,
        (
            check_prompts,
            check_batches,
            check_padding,
            check_training,
            check_auto_model,
            check_sentence_transformer,
            check_plain_export,
        ),
        strict=True,
    )
)
INDEPENDENT = ("padding", "AutoModel", "SentenceTransformer", "plain export")


def inputs(processor: ProcessorMixin, items: list, side: str) -> dict[str, Tensor]:
    """Return the tensors of items, all of them with images or none, as the processor pads them on one side."""
    normalized = [to_item_dict(item) for item in items]
    texts = processor.apply_chat_template([to_messages(item) for item in normalized], tokenize=False)
    images = [item["images"] for item in normalized]
    start = processor.tokenizer.bos_token
    return processor(
        text=texts,
        images=images if images[0] else None,
        padding=True,
        padding_side=side,
        return_tensors="pt",
        add_special_tokens=start is None or not texts[0].startswith(start),
        **token_types(processor),
    )


def token_types(processor: ProcessorMixin) -> dict[str, bool]:
    """Return the option that gives a model all its inputs, since some processors leave one out."""
    return {"return_mm_token_type_ids": True} if "mm_token_type_ids" in processor.model_input_names else {}


def assert_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    """Check that embeddings are equal up to rounding."""
    difference = float(np.abs(actual - expected).max())
    if not difference < TOLERANCE:
        raise AssertionError(f"embeddings differ by {difference:.1e}")


def run(model_type: str) -> dict[str, Any]:
    """Return the steps that a model passes, and the first sentence of the error of each one that it does not."""
    passed, errors = [], {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for step, error in check(model_type, Path(folder)):
                if error is None:
                    passed.append(step)
                else:
                    errors[step] = first_sentence(error).replace(folder, "FOLDER")
        except NoTinyModelError as error:
            return {"not tested": error.reason} | ({"detail": error.detail} if error.detail else {})
    return {"passed": passed} | ({"errors": errors} if errors else {})


def first_sentence(error: BaseException) -> str:
    """Return the first line of an error, with its type unless the line is made for users."""
    line = str(error).strip().partition("\n")[0][:MAX_ERROR_CHARACTERS]
    return line if type(error) in (ValueError, OSError, AssertionError) else f"{type(error).__name__}: {line}"


def page(results: dict[str, dict[str, Any]], transformers_version: str) -> str:
    """Return the documentation page: what passes, what does not, and what was not tested."""
    complete = [name for name, result in results.items() if len(result.get("passed", ())) == len(STEPS)]
    failing = {name: result for name, result in results.items() if "errors" in result}
    reasons = sorted({result["not tested"] for result in results.values() if "not tested" in result})
    lines = [
        "# Supported architectures",
        "",
        f"transformers {transformers_version} lists {len(results)} model types as image-text models. `make",
        "test-architectures` builds each with random weights from its classes, with few and small layers, and checks:",
        "",
        *(f"- **{name}**: {text}" for name, text in STEPS.items()),
        "",
        "A model that does not run with transformers alone on an image and a text was not tested.",
        "",
        f"## Every step passes: {len(complete)}",
        "",
        "| model type | class of transformers |",
        "|---|---|",
        *(f"| `{name}` | `{MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name]}` |" for name in complete),
        "",
        f"## A step fails: {len(failing)}",
        "",
        "| model type | fails at | reason |",
        "|---|---|---|",
    ]
    for name, result in failing.items():
        explained = {step: LIMITS.get(f"{name} {step}", error) for step, error in result["errors"].items()}
        lines += [f"| `{name}` | {step} | {escape(reason)} |" for step, reason in explained.items()]
    lines += [
        "",
        f"## Not tested: {len(results) - len(complete) - len(failing)}",
        "",
        "This says nothing about real checkpoints: a tiny model is built from the defaults of transformers' classes,",
        "which do not always fit together.",
    ]
    for reason in reasons:
        group = {name: result for name, result in results.items() if result.get("not tested") == reason}
        lines += ["", f"### {reason}", ""]
        details = (f": {escape(result['detail'])}" if "detail" in result else "" for result in group.values())
        lines += [f"- `{name}`{detail}" for name, detail in zip(group, details, strict=True)]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Return a text as Markdown shows it in a table."""
    return re.sub(r"([|<>*`\[\]])", lambda match: f"&#{ord(match[1])};", text)


def main(names: list[str]) -> None:
    """Check the given model types, or all of them, and write the table."""
    transformers.logging.set_verbosity_error()
    results = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else {}
    for name in names or MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        results[name] = run(name)
        print(name, results[name], flush=True)
        results = {key: results[key] for key in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if key in results}
        content = {"transformers": version("transformers"), "results": results}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    PAGE.write_text(page(results, version("transformers")))


if __name__ == "__main__":
    main(sys.argv[1:])
