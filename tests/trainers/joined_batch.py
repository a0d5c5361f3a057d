"""Train both stages for two steps, in one process or in two, and write down what came out (`test_distributed.py`).

torchrun --standalone --nproc_per_node 2 tests/trainers/joined_batch.py MODEL BACKBONE OUTPUT BATCH_SIZE [WAY]

WAY is a file of `recipes/accelerate`, without its ending.
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
from torch.profiler import ProfilerActivity, profile

from unime import UniMEModel, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, DistillationConfig, DistillationTrainer
from unime.trainers.distributed import gather, is_sharded, sum_gradients
from unime.trainers.embedding_trainer import EmbeddingTrainer


SOME_GRAPHS = 4e-4  # GB: room for one micro-batch of the rows below or two, never for all of a step
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def contrastive_rows() -> list[dict[str, Any]]:
    """Return 24 rows: every other six hold no image, so that two processes see batches of different kinds."""
    rows = []
    for i in range(24):
        image = Image.new("RGB", (24, 24), (10 * i, 255 - 10 * i, 80))
        # "shared" is in the batches of both processes, as positive and as explicit negative; labels are shared too.
        texts = i // 6 % 2 == 0
        rows.append(
            {
                "query": {"text": f"question {i}" + " long" * (i % 5)} if texts else {"image": image},
                "positive": {"text": "shared" if i % 6 == 0 else f"answer {i}"},
                "negatives": [{"text": "shared"}, {"image": image}] if i % 6 == 5 and not texts else [],
                "task": "task",
                "label": "even" if i % 6 in (2, 4) else None,
            }
        )
    return rows


def distillation_rows() -> list[dict[str, Any]]:
    """Return 24 texts whose lengths differ, with teacher embeddings."""
    teacher = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)).tolist()
    return [{"text": f"text {i}" + " and so on" * (i // 6 % 2 * 4), "teacher": teacher[i]} for i in range(24)]


def check_primitives() -> None:
    """Gather parts of different lengths and sum gradients that one process lacks; two processes only."""
    rank = distributed.get_rank()
    own = torch.full((rank + 1, 2), float(rank), requires_grad=True)
    whole, offset = gather(own)
    assert whole.tolist() == [[0, 0], [1, 1], [1, 1]] and offset == rank
    (whole * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert own.grad.tolist() == ([[1, 1]] if rank == 0 else [[2, 2], [3, 3]])

    everywhere, one, nowhere = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    everywhere.grad = torch.full((2,), 1.0 + rank)
    if rank == 1:
        one.grad = torch.full((2,), 5.0)
    sum_gradients([everywhere, one, nowhere])
    assert everywhere.grad.tolist() == [3, 3] and one.grad.tolist() == [5, 5] and nowhere.grad is None


def shard_on_the_cpu() -> None:
    """Have accelerate shard by FSDP2 as the recipe says: on a CPU it would pass the settings over and use DDP."""
    settings = load_config_from_file(str(RECIPES / "accelerate" / "fsdp2.yaml")).fsdp_config
    os.environ |= {name.upper(): str(value) for name, value in settings.items()}  # as the launcher does
    Accelerator(cpu=True)
    for state in (PartialState, AcceleratorState):
        state._shared_state |= {"distributed_type": DistributedType.FSDP}
    AcceleratorState._shared_state |= {"fsdp_plugin": FullyShardedDataParallelPlugin()}


def zero_on_the_cpu(way: str) -> None:
    """Have accelerate start DeepSpeed as the recipe says, by the environment as its launcher does."""
    settings = load_config_from_file(str(RECIPES / "accelerate" / f"{way}.yaml")).deepspeed_config
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

    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo will do: to compile this takes minutes


def main(model_folder: str, backbone: str, output: Path, batch_size: int, way: str | None) -> None:
    if way in ("zero2", "zero3"):
        zero_on_the_cpu(way)
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
            {"symmetric": True, "num_hard_negatives": 3, "graph_cache_gb": SOME_GRAPHS},
            contrastive_rows(),
        ),
        "distillation": (DistillationTrainer, DistillationConfig, {}, distillation_rows()),
    }
    if way == "zero2":  # differs from stage 3 in what is sharded, not in what is asked of the trainers
        del stages["distillation"]
    elif way != "zero3":  # the same rows as a stream, of which every process reads all and keeps its own
        stages["streamed"] = (*stages["contrastive"][:3], IterableDataset.from_generator(contrastive_rows))
    results = {}
    for name, (trainer_class, config_class, options, rows) in stages.items():
        saved = output.parent / f"{output.name}-{name}"

        def make_trainer(
            trainer_class=trainer_class, config_class=config_class, options=options, rows=rows, saved=saved
        ) -> EmbeddingTrainer:
            args = config_class(str(saved), **common, **options)
            if way == "fsdp2":
                shard_on_the_cpu()
            model = UniMEModel.from_pretrained(model_folder)
            return trainer_class(model, args, train_dataset=rows, eval_dataset=rows, processing_class=processor)

        trainer = make_trainer()
        with profile(activities=[ProfilerActivity.CPU]) if way is None else nullcontext() as profiler:
            trainer.train()
        trainer.save_model()
        trainer.accelerator.wait_for_everyone()
        own_rows = list(rows)[trainer.args.process_index * batch_size :][:batch_size]
        results[name] = {
            "log": [e for e in trainer.state.log_history if "loss" in e],
            "evaluation": [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e],
            "all_reduces": profiler and sum(e.count for e in profiler.key_averages() if e.key == "gloo:all_reduce"),
            "has_images": any("pixel_values" in t for t in trainer.data_collator(own_rows)["micro_batches"]),
            "files": sorted(str(file.relative_to(saved)) for file in saved.rglob("*") if file.is_file()),
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
        # All that is compared is on disk. At the interpreter's end a thread of a library aborted a process once
        # ("terminate called without an active exception").
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5] if len(sys.argv) > 5 else None)
