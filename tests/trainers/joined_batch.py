"""Train both stages for two steps in one or two processes, and save the results for `test_distributed.py`.

    torchrun --standalone --nproc_per_node 2 tests/trainers/joined_batch.py MODEL BACKBONE OUTPUT BATCH_SIZE [SHARDING]

SHARDING is the name of a file in `recipes/accelerate`, without its suffix.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState, PartialState
from datasets import IterableDataset
from PIL import Image
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from unime import UniMEModel, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, DistillationConfig, DistillationTrainer
from unime.trainers.distributed import gather, is_sharded, sum_gradients
from unime.trainers.embedding_trainer import EmbeddingTrainer


SMALL_GRAPH_CACHE_GB = 4e-4  # enough for one or two micro-batches of the rows below, never for all of a step
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def contrastive_rows() -> list[dict[str, Any]]:
    """Return 24 rows; every other six have no images, so that two processes get batches of different kinds."""
    rows = []
    for i in range(24):
        image = Image.new("RGB", (24, 24), (10 * i, 255 - 10 * i, 80))
        # "shared" is in the batches of both processes, as a positive and as a negative; labels are shared too.
        texts_only = i // 6 % 2 == 0
        query = {"text": f"question {i}" + " long" * (i % 5)} if texts_only else {"image": image}
        rows.append(
            {
                "query": {"text": "a question of both processes"} if i % 6 == 1 else query,
                "positive": {"text": "shared" if i % 6 == 0 else f"answer {i}"},
                "negatives": [{"text": "shared"}, {"image": image}] if i % 6 == 5 and not texts_only else [],
                "task": "task",
                "label": "even" if i % 6 in (2, 4) else None,
            }
        )
    return rows


def distillation_rows() -> list[dict[str, Any]]:
    """Return 24 texts of different lengths, with teacher embeddings."""
    teacher = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)).tolist()
    return [{"text": f"text {i}" + " and so on" * (i // 6 % 2 * 4), "teacher": teacher[i]} for i in range(24)]


def check_primitives() -> None:
    """Gather parts of different lengths and sum gradients that one process lacks, in two processes."""
    rank = distributed.get_rank()
    part = torch.full((rank + 1, 2), float(rank), requires_grad=True)
    gathered, offset = gather(part)
    assert gathered.tolist() == [[0, 0], [1, 1], [1, 1]] and offset == rank
    (gathered * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert part.grad.tolist() == ([[1, 1]] if rank == 0 else [[2, 2], [3, 3]])

    used_by_both, used_by_one, unused = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    used_by_both.grad = torch.full((2,), 1.0 + rank)
    if rank == 1:
        used_by_one.grad = torch.full((2,), 5.0)
    sum_gradients([used_by_both, used_by_one, unused])
    assert used_by_both.grad.tolist() == [3, 3] and used_by_one.grad.tolist() == [5, 5] and unused.grad is None


def enable_fsdp2_on_the_cpu(mixed_precision: str = "no", **changes: str) -> None:
    """Make accelerate use FSDP2 as the recipe says, but for changes; on a CPU it would ignore this and use DDP."""
    settings = load_config_from_file(str(RECIPES / "accelerate" / "fsdp2.yaml")).fsdp_config | changes
    os.environ |= {name.upper(): str(value) for name, value in settings.items()}  # as accelerate's launcher does
    Accelerator(cpu=True, mixed_precision=mixed_precision)
    for state in (PartialState, AcceleratorState):
        state._shared_state |= {"distributed_type": DistributedType.FSDP}
    AcceleratorState._shared_state |= {"fsdp_plugin": FullyShardedDataParallelPlugin()}


def enable_deepspeed_on_the_cpu(sharding: str) -> None:
    """Make accelerate use DeepSpeed as the recipe says, through the environment variables of its launcher."""
    settings = load_config_from_file(str(RECIPES / "accelerate" / f"{sharding}.yaml")).deepspeed_config
    names = {
        "zero_stage": "DEEPSPEED_ZERO_STAGE",
        "zero3_init_flag": "DEEPSPEED_ZERO3_INIT",
        "zero3_save_16bit_model": "DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
        "gradient_accumulation_steps": "GRADIENT_ACCUMULATION_STEPS",
        "gradient_clipping": "GRADIENT_CLIPPING",
        "offload_optimizer_device": "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
        "offload_param_device": "DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    }
    os.environ |= {f"ACCELERATE_{names[name]}": str(value).lower() for name, value in settings.items()}
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiling it takes minutes, and gloo works


def main(model_folder: str, backbone: str, output: Path, batch_size: int, sharding: str | None) -> None:
    if sharding in ("zero2", "zero3"):
        enable_deepspeed_on_the_cpu(sharding)
    processor = processor_from_backbone(backbone)
    common = {
        "per_device_train_batch_size": batch_size,
        "max_steps": 2,
        "learning_rate": 0.1,
        "optim": "sgd",
        "train_sampling_strategy": "sequential",
        "micro_batch_tokens": 100,
        "logging_steps": 1,
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": batch_size,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    stages = {
        "contrastive": (
            ContrastiveTrainer,
            ContrastiveConfig,
            {"symmetric": True, "num_hard_negatives": 3, "graph_cache_gb": SMALL_GRAPH_CACHE_GB},
            contrastive_rows(),
        ),
        "distillation": (DistillationTrainer, DistillationConfig, {}, distillation_rows()),
    }
    if sharding == "zero2":  # the trainers do the same under ZeRO-2 and ZeRO-3
        del stages["distillation"]
        stages["contrastive"][2]["packed"] = True
    elif sharding != "zero3":  # the same rows as a stream, which every process reads and takes its share from
        options = stages["contrastive"][2] | {"packed": sharding == "fsdp2"}
        stream = IterableDataset.from_generator(contrastive_rows)
        stages["streamed"] = (*stages["contrastive"][:2], options, stream)
    results = {}
    for name, (trainer_class, config_class, options, rows) in stages.items():
        saved = output.parent / f"{output.name}-{name}"

        def make_trainer(
            trainer_class=trainer_class, config_class=config_class, options=options, rows=rows, saved=saved
        ) -> EmbeddingTrainer:
            args = config_class(str(saved), **common, **options)
            if sharding == "fsdp2":
                enable_fsdp2_on_the_cpu()
            model = UniMEModel.from_pretrained(model_folder)
            if sharding is None and args.process_index > 0:  # plain data parallelism starts from the first process's
                torch.nn.init.zeros_(next(model.backbone.language_model.parameters()))
            return trainer_class(model, args, train_dataset=rows, eval_dataset=rows, processing_class=processor)

        trainer = make_trainer()
        with profile(activities=[ProfilerActivity.CPU]) if sharding is None else nullcontext() as profiler:
            trainer.train()
        trainer.save_model()
        trainer.accelerator.wait_for_everyone()
        local_rows = list(rows)[trainer.args.process_index * batch_size :][:batch_size]
        results[name] = {
            "packed": trainer.args.packed,
            "log": [
                {name: value for name, value in entry.items() if not name.endswith("_per_second")}
                for entry in trainer.state.log_history
                if "loss" in entry
            ],
            "evaluation": [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e],
            "all_reduces": profiler and sum(e.count for e in profiler.key_averages() if e.key == "gloo:all_reduce"),
            "has_images": any("pixel_values" in t for t in trainer.data_collator(local_rows)["micro_batches"]),
            "files": sorted(str(file.relative_to(saved)) for file in saved.rglob("*") if file.is_file()),
            "wrapped": isinstance(trainer.model_wrapped, DistributedDataParallel),
            "sharded": [name for name, module in trainer.model.named_modules() if is_sharded(module)],
        }
        resumed = make_trainer()
        resumed.train(resume_from_checkpoint=str(saved / "checkpoint-1"))
        resumed.save_model(f"{saved}-resumed")
        resumed.accelerator.wait_for_everyone()
    if distributed.is_initialized():
        check_primitives()
        results["world"] = distributed.get_world_size()
    torch.save(results, f"{output}.{trainer.args.process_index}")
    if distributed.is_initialized():
        distributed.destroy_process_group()
        # All results are on disk. A library's thread once aborted a process during the interpreter's shutdown.
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5] if len(sys.argv) > 5 else None)
