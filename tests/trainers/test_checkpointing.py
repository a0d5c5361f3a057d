"""The training record stays beside a checkpoint, through both stages and a merge, and appears in its card."""

import json
from collections.abc import Callable
from pathlib import Path

from peft import LoraConfig
from transformers import ProcessorMixin

from unime import load_model, save_checkpoint
from unime.eval.report.model_card import training_table
from unime.trainers import (
    ContrastiveConfig,
    ContrastiveTrainer,
    DistillationConfig,
    DistillationTrainer,
    merge_checkpoint,
)


def test_the_record_lists_both_stages(
    make_model: Callable, processor: ProcessorMixin, rows: list[dict], tmp_path: Path
):
    base = str(save_checkpoint(make_model().eval(), processor, tmp_path / "base"))
    common = {"per_device_train_batch_size": 4, "max_steps": 1, "report_to": "none", "use_cpu": True}

    texts = [{"text": f"text {i}", "teacher": [float(i), 1.0]} for i in range(8)]
    model, processor = load_model(base)
    args = DistillationConfig(str(tmp_path / "adapter"), **common, hub_token="secret", logging_steps=1)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"])
    first = DistillationTrainer(model, args, train_dataset=texts, processing_class=processor, peft_config=lora)
    first.train()
    first.save_model()
    stage1 = str(merge_checkpoint(base, tmp_path / "adapter", tmp_path / "stage1"))

    model, processor = load_model(stage1)
    args = ContrastiveConfig(str(tmp_path / "stage2"), **common, num_hard_negatives=3, learning_rate=1e-3)
    second = ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor)
    second.train()
    second.save_model()

    text = (tmp_path / "stage2" / "training.json").read_text()
    distilled, contrasted = json.loads(text)
    assert (distilled["trainer"], distilled["started from"], distilled["rows"]) == ("DistillationTrainer", base, 8)
    assert distilled["adapter"] == {"rank": 2, "alpha": 4, "targets": distilled["adapter"]["targets"]}
    assert (contrasted["started from"], contrasted["rows"], contrasted["steps"]) == (stage1, len(rows), 1)
    assert contrasted["arguments"] == {
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "use_cpu": True,
        "num_hard_negatives": 3,
        "learning_rate": 1e-3,
    }
    assert "secret" not in text and "output_dir" not in text

    table = training_table(json.loads(text)).splitlines()
    assert table[0] == "|  | Distillation | Contrastive |"
    assert "| `num_hard_negatives` |  | 3 |" in table and "| rows | 8 | 24 |" in table
    assert table[-1].startswith("| LoRA | rank 2, alpha 4, targets ")
