"""Stage 2, hard-negative enhanced instruction tuning (UniME, arXiv 2504.17432, section 3.3).

    accelerate launch recipes/stage2.py --config recipes/tiny/stage2.yaml --output_dir runs/stage2

Every key of the YAML file is also a command-line option; unknown keys are errors. The same command resumes an
interrupted run.
"""

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from unime import load_model
from unime.data.sources import DataArguments, open_rows, open_with_eval_sets
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, train_and_save


def main(data: DataArguments, args: ContrastiveConfig, model_args: ModelConfig) -> None:
    model, processor = load_model(
        model_args.model_name_or_path,
        image_size=data.image_size,
        preset=data.preset,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args),
    )
    dataset, eval_dataset = open_with_eval_sets(data, open_rows)
    trainer = ContrastiveTrainer(
        model,
        args,
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    train_and_save(trainer, model_args.model_name_or_path, preset=data.preset, dtype=model_args.dtype)


if __name__ == "__main__":
    main(*TrlParser((DataArguments, ContrastiveConfig, ModelConfig)).parse_args_and_config())
