"""Published embedders are trained further with the prompt of their authors, and keep it."""

import json
from pathlib import Path

import numpy as np
from peft import LoraConfig
from published_models import make_published_model

from unime import load_model
from unime.processing_unime import to_item_dict, to_messages
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, train_and_save


def test_stage_2_from_a_published_embedder_keeps_its_template(rows: list[dict], tmp_path: Path) -> None:
    base = str(make_published_model("qwen3-vl-embedding", tmp_path))
    model, processor = load_model(base, dtype="float32")
    items = [rows[index]["query"] for index in range(3)]
    conversations = [to_messages(to_item_dict(item)) for item in items]
    prompts = processor.apply_chat_template(conversations, tokenize=False)
    assert all(prompt.endswith("<|im_start|>assistant\n<|endoftext|>") for prompt in prompts)
    args = ContrastiveConfig(
        str(tmp_path / "output"),
        per_device_train_batch_size=4,
        max_steps=2,
        learning_rate=1e-2,
        warmup_steps=0,
        report_to="none",
        use_cpu=True,
    )
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    before = model.encode(items, processor)
    trainer = ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor, peft_config=lora)
    train_and_save(trainer, base, dtype="float32")
    trained, saved_processor = load_model(str(tmp_path / "output"))
    assert saved_processor.apply_chat_template(conversations, tokenize=False) == prompts
    tokenizer = saved_processor.tokenizer
    assert tokenizer(prompts[0])["input_ids"].count(tokenizer.convert_tokens_to_ids("<|endoftext|>")) == 1
    after = trained.encode(items, saved_processor)
    assert np.abs(after - before).max() > 1e-4
    assert json.loads((tmp_path / "output" / "training.json").read_text())[-1]["started from"] == base
