"""Stage 2, hard-negative enhanced instruction tuning (UniME, arXiv 2504.17432, section 3.3).

    accelerate launch recipes/stage2.py --config recipes/tiny/stage2.yaml --output_dir runs/stage2

Any setting of the YAML file can be given on the command line; an unknown one is an error.
"""

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from unime import load_model
from unime.data.sources import DataArguments, open_rows
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, last_complete_checkpoint, merge_checkpoint


def main(data: DataArguments, args: ContrastiveConfig, model_args: ModelConfig) -> None:
    dtype, quantization = model_args.dtype, get_quantization_config(model_args)
    model, processor = load_model(
        model_args.model_name_or_path,
        dtype=dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
    )
    trainer = ContrastiveTrainer(
        model, args, train_dataset=open_rows(data), processing_class=processor, peft_config=get_peft_config(model_args)
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
    main(*TrlParser((DataArguments, ContrastiveConfig, ModelConfig)).parse_args_and_config())
