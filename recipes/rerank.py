"""Train a reranker (UniME-V2, arXiv 2510.13515): an image-text model that chooses among the candidates of an embedder.

    accelerate launch recipes/rerank.py --config recipes/qwen2.5-vl-7b/rerank.yaml --output_dir runs/reranker

Each row needs hard negatives: mined ones (recipes/mine.py), or judged ones, whose scores `--objective distillation`
learns. Every key of the YAML file is also a command-line option; unknown keys are errors. The same command resumes an
interrupted run.
"""

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from unime.data.sources import DataArguments, open_rows, open_with_eval_sets
from unime.reranker import load_reranker
from unime.trainers import RerankConfig, RerankTrainer, train_reranker


def main(data: DataArguments, args: RerankConfig, model_args: ModelConfig) -> None:
    if data.preset is not None:
        raise ValueError("preset says how an embedder is run, and a reranker has its own prompts: remove it")
    model, processor = load_reranker(
        model_args.model_name_or_path,
        image_size=data.image_size,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args),
    )
    dataset, eval_dataset = open_with_eval_sets(data, open_rows)
    trainer = RerankTrainer(
        model,
        args,
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    train_reranker(trainer, model_args.model_name_or_path, dtype=model_args.dtype)


if __name__ == "__main__":
    main(*TrlParser((DataArguments, RerankConfig, ModelConfig)).parse_args_and_config())
