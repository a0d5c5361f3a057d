"""Losses and gradients of one batch in one or two processes, for `test_joined_losses.py`.

torchrun --standalone --nproc_per_node 2 tests/trainers/joined_losses.py BACKBONE OUTPUT
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.functional import normalize
from transformers import AutoConfig

from unime import UniMEModel, processor_from_backbone
from unime.data.rows import content_hash
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


FIND, SHOW = {"instruction": "Find it:"}, {"instruction": "Show it:"}
# The first process gets the first four rows. What belongs together is in the batches of both.
ROWS: list[dict[str, Any]] = [
    {"query": {"text": "red"} | FIND, "positive": "rouge", "negatives": ["vert"]},
    {"query": "green", "positive": "vert", "label": "green"},
    {"query": "a pet", "positive": {"text": "cat"} | SHOW, "label": "cat"},
    {"query": "blue", "positive": "yes"},
    {"query": {"text": "red"} | FIND, "positives": ["rosso", "rojo"], "scores": [0.9, 0.7]},
    {"query": "verde", "positive": "a leaf", "label": "green", "negatives": ["red"], "scores": [0.8, 0.3]},
    {"query": "cat", "positive": "a pet", "negatives": ["vert", "bleu", "vert"], "scores": [0.9, 0.1, None, 0.2]},
]
SETTINGS: dict[str, dict[str, Any]] = {
    "hardest": {},
    "symmetric": {"symmetric": True},
    "all directions": {"symmetric": True, "query_to_query": True, "candidate_to_candidate": True},
    "random": {"negative_sampling": "random", "symmetric": True},
    "soft labels": {"soft_label_weight": 0.5, "soft_label_temperature": 0.2},
    "soft labels alone": {"soft_label_weight": 1.0, "contrastive_weight": 0.0, "soft_label_divergence": "js"},
}


def main(backbone: str, output: Path) -> None:
    """Save the loss and the gradient, summed over the processes, of one vector for each distinct item."""
    args = ContrastiveConfig(f"{output}-trainer", per_device_train_batch_size=1, report_to="none", use_cpu=True)
    rows = [{"negatives": [], "task": "names", "label": None} | row for row in ROWS]
    model = UniMEModel.from_backbone(AutoConfig.from_pretrained(backbone))
    trainer = ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor_from_backbone(backbone))
    several = args.world_size > 1
    batch = trainer.data_collator(rows[4:] if args.process_index else rows[:4] if several else rows)

    items = [each for row in rows for each in (row["query"], *row["negatives"])]
    items += [each for row in rows for each in row.get("positives", [row.get("positive")])]
    hashes = sorted({content_hash(item) for item in items})
    table = torch.randn(len(hashes), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    indices = [hashes.index(identity) for identity in batch["identity"].tolist()]
    results = {}
    for name, settings in SETTINGS.items():
        defaults = {"temperature": 0.2, "num_hard_negatives": 2, "false_negative_margin": None, "symmetric": False}
        defaults |= {"query_to_query": False, "candidate_to_candidate": False}
        defaults |= {"negative_sampling": "hardest", "soft_label_weight": 0.0}
        for key, value in (defaults | settings).items():
            setattr(trainer.args, key, value)
        torch.manual_seed(args.process_index)  # processes draw different numbers, for dropout for example
        vectors = table.clone().requires_grad_()
        loss, _ = trainer.batch_loss(normalize(vectors[indices], dim=1), batch)
        (gradient,) = torch.autograd.grad(loss, vectors)
        if several:
            distributed.all_reduce(gradient)
        results[name] = (loss.item(), gradient)
    torch.save(results, f"{output}.{args.process_index}")
    if several:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
