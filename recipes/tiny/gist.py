"""Stage 2 with the loss of GISTEmbed (arXiv 2402.16829), which is that of sentence-transformers: a baseline.

    python recipes/tiny/gist.py --config recipes/tiny/stage2.yaml --guide checkpoints/unime-tiny --output_dir runs/gist

All but the loss is stage 2's. Another model, the guide, embeds every batch too: whatever it finds nearer to a query
than the query's positive is no negative. Queries and positives are contrasted among themselves as well. One process.
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
    """The guide."""

    guide: str = field(metadata={"help": "UniME checkpoint with the processor of the model that is trained."})
    margin: float = field(
        default=0.01,
        metadata={"help": "As near as this to the positive is false too: the positive of a tiny model is."},
    )


class GuidedTrainer(ContrastiveTrainer):
    """Stage 2 with a guide in place of labels, beta and k."""

    def guided_by(self, folder: str, margin: float) -> None:
        """Take the loss with this guide; it is given embeddings, and never calls its `model`."""
        guide = SentenceTransformer(folder, device=str(self.args.device), model_kwargs={"dtype": "float32"})
        self.guide = guide[0].model.eval()
        self.guided = CachedGISTEmbedLoss(
            guide, guide, self.args.temperature, mini_batch_size=self.args.train_batch_size, margin=margin
        )

    def batch_loss(self, embeddings: Tensor, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrast queries, positives, and the other candidates."""
        with torch.no_grad():
            vectors = torch.cat([self.guide(**tensors).embeddings for tensors in batch["micro_batches"]])
        candidate, positive = batch["candidate"], batch["positive"]
        others = candidate[~torch.isin(candidate, candidate[positive])].unique()
        columns = [column for column in (batch["query"], candidate[positive], others) if len(column)]
        own, of_guide = (
            [[items[column]] for column in columns] for items in (embeddings, vectors[torch.argsort(batch["order"])])
        )
        return self.guided.calculate_loss(own, of_guide), {}


def main(data: DataArguments, script: ScriptArguments, args: ContrastiveConfig, model_args: ModelConfig) -> None:
    if args.world_size > 1:
        raise ValueError(f"the guided loss compares the batch of one process: start one, not {args.world_size}")
    model, processor = load_model(
        model_args.model_name_or_path, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation
    )
    trainer = GuidedTrainer(model, args, train_dataset=open_rows(data), processing_class=processor)
    trainer.guided_by(script.guide, script.margin)
    trainer.train()
    trainer.save_state()
    trainer.save_model()


if __name__ == "__main__":
    main(*TrlParser((DataArguments, ScriptArguments, ContrastiveConfig, ModelConfig)).parse_args_and_config())
