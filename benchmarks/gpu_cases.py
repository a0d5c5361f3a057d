"""What `gpu.py` measures with one model: `encode`, a step of stage 2, and the gradients of gradient caching."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from items import images, texts
from models import TINY, checkpoint, real_size_checkpoint
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor
from training import TEMPERATURE, pairs
from transformers import BitsAndBytesConfig, PreTrainedModel, ProcessorMixin, TrainerCallback

from unime import UniMEModel, load_model
from unime.batching_unime import micro_batches
from unime.trainers import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.gradient_cache import with_last_layer_shortcut
from unime.trainers.throughput import ModelFlops, count_tokens


OURS, BASELINE = "unime", "sentence-transformers"
BASELINE_ITEMS = 32  # in a micro-batch of sentence-transformers, its default
GRADIENT_ROWS = 8


@dataclass
class Sizes:
    """Device, and sizes of the work."""

    device: str = field(default="cuda", metadata={"help": "Device of all computations."})
    items: int = field(default=128, metadata={"help": "Items of a workload with images; eight times as many texts."})
    image_side: int = field(default=336, metadata={"help": "Width and height of images, in pixels."})
    batch_size: int = field(default=64, metadata={"help": "Rows of a training batch."})
    micro_batch_tokens: int = field(default=8192, metadata={"help": "Token budget of a pass in training."})
    graph_cache_gb: float = field(default=16, metadata={"help": "Graph cache of the cases that have one, in GB."})
    rounds: int = field(default=2, metadata={"help": "Number of timing rounds, after a warm-up."})


@dataclass(frozen=True)
class Case:
    """What is measured with one loaded model."""

    model: str
    work: str
    weights: str = "bf16"
    attention: str = "sdpa"
    settings: Mapping[str, Any] = field(default_factory=dict)
    beside_baseline: bool = False

    def row(self, **values: Any) -> dict[str, Any]:
        """Return a row of the table; `values` replace and extend what the case states."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items()).replace(" True", "")
        row = {"model": self.model, "work": self.work, "library": OURS, "weights": self.weights}
        return row | {"attention": self.attention, "settings": settings} | values


def measure(sizes: Sizes, folder: str, case: Case) -> Iterator[dict[str, Any]]:
    """Load the model of a case, after writing its checkpoint if needed, and yield the rows."""
    work = {"encode": measure_encode, "step": measure_step, "gradients": measure_gradients}[case.work]
    path = checkpoint(TINY, Path(folder)) if case.model == TINY else Path(folder) / case.model
    if not (path / "config.json").exists():
        real_size_checkpoint(case.model, path.parent, sizes.device)
    options: dict[str, Any] = {"dtype": torch.float32 if case.weights == "float32" else torch.bfloat16}
    if case.weights == "4-bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    if case.attention != "sdpa":  # the default of every part that has it, which unime-tiny's ResNet has not
        options["attn_implementation"] = case.attention
    model, processor = load_model(str(path), device_map=sizes.device, **options)
    yield from work(sizes, case, path, model, processor)


class Stopwatch:
    """Times of several rounds, the first of which is a warm-up, and the peak memory of a GPU meanwhile."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def round(self) -> Iterator[None]:
        """Time what runs inside this context."""
        start = _now()
        yield
        self.seconds.append(_now() - start)

    def rates(self, items: int, tokens: int, flops: int) -> dict[str, float | None]:
        """Return what a round did per second, by the median of the rounds, and the peak memory."""
        seconds = median(self.seconds[1:])
        peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
        return {
            "items/s": items / seconds,
            "tokens/s": tokens / seconds,
            "TFLOP/s": flops / seconds / 1e12,
            "peak, GB": peak,
        }


class StepTimer(TrainerCallback):
    """Times each optimizer step with a [`Stopwatch`]; waiting for the batch does not count."""

    def __init__(self, stopwatch: Stopwatch):
        self.stopwatch = stopwatch

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.step = self.stopwatch.round()
        self.step.__enter__()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock."""
        self.step.__exit__(None, None, None)


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def measure_encode(
    sizes: Sizes, case: Case, path: Path, model: UniMEModel, processor: ProcessorMixin
) -> Iterator[dict[str, Any]]:
    """Yield the speed of `encode` with each workload."""
    flops = ModelFlops(model.requires_grad_(False))
    functions: dict[str, Callable] = {OURS: partial(model.encode, processor=processor, **case.settings)}
    if case.beside_baseline:
        functions[BASELINE] = partial(around(model, path).encode, batch_size=BASELINE_ITEMS, show_progress_bar=False)
    for name, items in workloads(sizes.items, sizes.image_side).items():
        batches = [tensors for _, tensors in micro_batches(processor, items)]
        embeddings = {}
        for library, encode in functions.items():
            stopwatch = Stopwatch()
            for index in range(1 + sizes.rounds):
                with stopwatch.round():
                    embeddings[library] = encode(items if index > 0 else items[:BASELINE_ITEMS])
            rates = stopwatch.rates(len(items), count_tokens(batches), flops.of_batch(batches))
            if library == BASELINE:
                rates["difference"] = float(abs(embeddings[OURS] - embeddings[BASELINE]).max())
            yield case.row(work=f"encode {name}", library=library, **rates)


@cache
def workloads(size: int, image_side: int) -> dict[str, list[Any]]:
    """Return texts, images, and texts, images and both in turn."""
    large = [image.resize((image_side, image_side)) for image in images(size)]
    both = zip(texts(size), large, strict=True)
    mixed = [(text, image, {"image": image, "text": text})[i % 3] for i, (text, image) in enumerate(both)]
    return {"texts": texts(8 * size), "images": large, "mixed": mixed}


def measure_step(
    sizes: Sizes, case: Case, path: Path, model: UniMEModel, processor: ProcessorMixin
) -> Iterator[dict[str, Any]]:
    """Yield the speed of a step of stage 2, and of the same step with the loss of sentence-transformers."""
    rows = training_rows(sizes.batch_size, sizes.image_side)
    trainer = trainer_of(sizes, case, model, processor, rows)
    batch = trainer.data_collator(rows)
    trainer.data_collator = lambda rows: batch  # its preparation is not measured
    stopwatch = Stopwatch()
    trainer.add_callback(StepTimer(stopwatch))
    trainer.train()
    work = {"items": len(batch["order"]), "tokens": count_tokens(batch["micro_batches"])}
    work["flops"] = ModelFlops(model).of_batch(batch["micro_batches"])
    yield case.row(**stopwatch.rates(**work))
    if not case.beside_baseline:
        return

    # The model that the trainer has added the adapter to, with the same activation checkpointing.
    ours = next(logs["loss"] for logs in trainer.state.log_history if "loss" in logs)
    optimizer = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=0)
    baseline = around(model, path)
    features = [baseline.preprocess([row[side] for row in rows]) for side in ("query", "positive")]
    features = [{name: _to_device(value, sizes.device) for name, value in column.items()} for column in features]
    cached = CachedMultipleNegativesRankingLoss(baseline, scale=1 / TEMPERATURE, mini_batch_size=BASELINE_ITEMS)
    trainer.optimizer = None  # its states do not count for the other library
    stopwatch = Stopwatch()
    for _ in range(1 + sizes.rounds):
        with stopwatch.round(), torch.autocast(torch.device(sizes.device).type, torch.bfloat16):
            loss = cached([dict(column) for column in features], None)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    yield case.row(library=BASELINE, **stopwatch.rates(**work), difference=abs(ours - loss.item()))


def measure_gradients(
    sizes: Sizes, case: Case, path: Path, model: UniMEModel, processor: ProcessorMixin
) -> Iterator[dict[str, Any]]:
    """Yield how far the gradients of gradient caching are from those of one graph of the whole batch."""
    rows = training_rows(min(GRADIENT_ROWS, sizes.batch_size), sizes.image_side)
    trainer = trainer_of(sizes, case, model, processor, rows)
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    trainer.model.train()

    def gradients(loss: Callable[[], Tensor]) -> Tensor:
        torch.manual_seed(0)  # of dropout
        trainer.model.zero_grad()
        loss().backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    # Without the shortcut, dropout would draw other numbers in the last layer.
    embed = with_last_layer_shortcut(model, lambda tensors: trainer.model(**tensors).embeddings)

    def uncached() -> Tensor:
        embeddings = torch.cat([embed(tensors) for tensors in batch["micro_batches"]])
        return trainer.batch_loss(embeddings[torch.argsort(batch["order"])], batch)[0]

    expected = gradients(uncached)
    for gigabytes in (0, sizes.graph_cache_gb):
        trainer.args.graph_cache_gb = gigabytes
        cached = gradients(lambda: trainer.compute_loss(trainer.model, batch))
        difference = (cached - expected).norm() / expected.norm()
        yield case.row(settings=f"graph_cache_gb {gigabytes:g}", difference=difference.item())


def around(model: PreTrainedModel, path: Path) -> SentenceTransformer:
    """Return sentence-transformers with this model in place of the one that it would load."""
    baseline = SentenceTransformer(str(path), trust_remote_code=True, model_kwargs={"device_map": "meta"})
    baseline[0].model = model
    return baseline


def training_rows(size: int, image_side: int) -> list[dict[str, Any]]:
    """Return rows of a caption and its image."""
    rows = pairs(size)
    large = [{"image": row["positive"]["image"].resize((image_side, image_side))} for row in rows]
    return [row | {"positive": positive} for row, positive in zip(rows, large, strict=True)]


def trainer_of(
    sizes: Sizes, case: Case, model: UniMEModel, processor: ProcessorMixin, rows: list[dict[str, Any]]
) -> ContrastiveTrainer:
    """Return a trainer with an adapter as in the recipes of stage 2; its steps leave the weights as they are."""
    small = case.work == "gradients"
    arguments = ContrastiveConfig(
        tempfile.mkdtemp(dir=tempfile.gettempdir()),
        per_device_train_batch_size=len(rows),
        micro_batch_tokens=sizes.micro_batch_tokens // 16 if small else sizes.micro_batch_tokens,
        max_steps=1 + sizes.rounds,
        learning_rate=0.0,
        temperature=TEMPERATURE,
        false_negative_margin=None,
        num_hard_negatives=None,
        bf16=case.weights != "float32",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=sizes.device == "cpu",
        **case.settings,
    )
    adapter = LoraConfig(
        r=16,
        lora_alpha=64,
        lora_dropout=0.1,
        target_modules="all-linear",
        task_type="FEATURE_EXTRACTION",
        init_lora_weights=not small,  # without it, all gradients of one of the two matrices are 0
    )
    return ContrastiveTrainer(model, arguments, rows, processing_class=processor, peft_config=adapter)


def _to_device(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
