"""Stage 2 with the guided loss of GISTEmbed (arXiv 2402.16829) from sentence-transformers: a baseline.

    python recipes/tiny/gist.py --config recipes/tiny/stage2.yaml --guide checkpoints/unime-tiny --output_dir runs/gist

Everything but the loss is as in stage 2. A second model, the guide, embeds every batch too: a candidate that the guide
ranks above the positive of a query is not used as its negative. Queries and positives are also contrasted among
themselves. Runs in one process.
"""

from dataclasses import dataclass, field

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedGISTEmbedLoss
from torch import Tensor
from trl import ModelConfig, TrlParser

from unime import load_model
from unime.data.sources import DataArguments, open_rows
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


@dataclass
class ScriptArguments:
    """The guide and its margin."""

    guide: str = field(metadata={"help": "UniME checkpoint with the same processor as the trained model."})
    margin: float = field(
        default=0.01,
        metadata={"help": "Drop candidates within this margin of the positive too, such as its duplicates."},
    )


class GuidedTrainer(ContrastiveTrainer):
    """Stage 2 with a guide instead of labels, the false-negative filter and hard negatives."""

    def set_guide(self, folder: str, margin: float) -> None:
        """Load the guide and build the loss, which receives embeddings and never calls its `model`."""
        guide = SentenceTransformer(folder, device=str(self.args.device), model_kwargs={"dtype": "float32"})
        self.guide = load_model(folder, dtype="float32")[0].to(self.args.device).eval()
        self.guided_loss = CachedGISTEmbedLoss(
            guide, guide, self.args.temperature, mini_batch_size=self.args.train_batch_size, margin=margin
        )

    def batch_loss(self, embeddings: Tensor, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the guided loss of queries, positives, and the other candidates."""
        with torch.no_grad():
            guide_embeddings = torch.cat([self.guide(**tensors).embeddings for tensors in batch["micro_batches"]])
        candidate, positive = batch["candidate"], batch["positive"]
        others = candidate[~torch.isin(candidate, candidate[positive])].unique()
        columns = [column for column in (batch["query"], candidate[positive], others) if len(column)]
        model_columns, guide_columns = (
            [[items[column]] for column in columns]
            for items in (embeddings, guide_embeddings[torch.argsort(batch["order"])])
        )
        return self.guided_loss.calculate_loss(model_columns, guide_columns), {}


def main(data: DataArguments, script: ScriptArguments, args: ContrastiveConfig, model_args: ModelConfig) -> None:
    if args.world_size > 1:
        raise ValueError(f"the guided loss works in one process: start 1 process, not {args.world_size}")
    model, processor = load_model(
        model_args.model_name_or_path, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation
    )
    trainer = GuidedTrainer(model, args, train_dataset=open_rows(data), processing_class=processor)
    trainer.set_guide(script.guide, script.margin)
    trainer.train()
    trainer.save_state()
    trainer.save_model()


if __name__ == "__main__":
    main(*TrlParser((DataArguments, ScriptArguments, ContrastiveConfig, ModelConfig)).parse_args_and_config())
