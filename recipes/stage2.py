"""Stage 2, hard-negative enhanced instruction tuning (UniME, arXiv 2504.17432, section 3.3).

    accelerate launch recipes/stage2.py --config recipes/tiny/stage2.yaml --output_dir runs/stage2

Any setting of the YAML file can be given on the command line; an unknown one is an error.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from unime import load_model
from unime.data.rows import ROW, load_rows, require_columns
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, merge_checkpoint


@dataclass
class ScriptArguments:
    """What to train on."""

    dataset: str = field(default="openmoji", metadata={"help": "'openmoji', or a JSONL file in the row contract."})
    image_root: str | None = field(default=None, metadata={"help": "Folder of the JSONL file's pictures."})
    rows: int = field(default=100_000, metadata={"help": "Rows to take from the OpenMoji world."})
    world_seed: int = field(default=0, metadata={"help": "Seed of the OpenMoji world."})


def main(script: ScriptArguments, args: ContrastiveConfig, model_args: ModelConfig) -> None:
    dtype, quantization = model_args.dtype, get_quantization_config(model_args)
    model, processor = load_model(
        model_args.model_name_or_path,
        dtype=dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
    )
    if script.dataset == "openmoji":
        from unime.data.world import rows

        dataset = rows("train", script.rows, seed=script.world_seed)
    else:
        dataset = load_rows(script.dataset, script.image_root)
        require_columns(dataset, ROW[:2], "stage 2")
    trainer = ContrastiveTrainer(
        model, args, train_dataset=dataset, processing_class=processor, peft_config=get_peft_config(model_args)
    )
    started = Path(args.output_dir).is_dir()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir) if started else None)
    trainer.save_state()
    if model_args.use_peft:
        trainer.save_model(f"{args.output_dir}/adapter")
        if trainer.is_world_process_zero():
            merge_checkpoint(model_args.model_name_or_path, f"{args.output_dir}/adapter", args.output_dir, dtype=dtype)
    else:
        trainer.save_model()


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, ContrastiveConfig, ModelConfig)).parse_args_and_config())
