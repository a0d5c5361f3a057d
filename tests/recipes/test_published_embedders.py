"""A recipe trains a published embedder further with the prompt of its authors, which it keeps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from published_models import make_published_model

from unime import load_model
from unime.processing_unime import to_item_dict, to_messages


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize(
    ("preset", "end"),
    [(None, "assistant\n<|endoftext|>"), pytest.param("none", "assistant\n", marks=pytest.mark.slow)],
)
def test_stage_2_from_a_published_embedder_keeps_its_template(
    run_script: Callable[..., None], pairs: Path, tmp_path: Path, preset: str | None, end: str
) -> None:
    base, output = str(make_published_model("qwen3-vl-embedding", tmp_path)), tmp_path / "output"
    model, processor = load_model(base, preset=preset, dtype="float32")
    items = ["a text", {"text": "A cat", "instruction": "Find it"}]
    conversations = [to_messages(to_item_dict(item)) for item in items]
    prompts = processor.apply_chat_template(conversations, tokenize=False)
    assert all(prompt.endswith(end) for prompt in prompts)
    options = ["--config", RECIPES / "tiny" / "stage2.yaml", "--model_name_or_path", base, "--output_dir", output]
    options += ["--dataset", pairs, "--max_steps", 2, "--per_device_train_batch_size", 4, "--bf16", "false"]
    options += ["--learning_rate", 1e-2, "--warmup_steps", 0, *(["--preset", preset] if preset else [])]
    run_script(RECIPES / "stage2.py", *options)
    trained, saved_processor = load_model(str(output), dtype="float32")
    assert saved_processor.apply_chat_template(conversations, tokenize=False) == prompts
    tokenizer = saved_processor.tokenizer
    ends = tokenizer(prompts)["input_ids"]
    assert {ids.count(tokenizer.convert_tokens_to_ids("<|endoftext|>")) for ids in ends} == {1}
    assert np.abs(trained.encode(items, saved_processor) - model.encode(items, processor)).max() > 1e-4
