"""Tests of the GISTEmbed baseline: the loss of sentence-transformers on the embeddings of stage 2."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedGISTEmbedLoss

from unime import load_model
from unime.openmoji.dataset import openmoji_rows
from unime.trainers import ContrastiveConfig


ROOT = Path(__file__).resolve().parents[2]
GUIDE = str(ROOT / "checkpoints" / "unime-tiny")


@pytest.fixture
def recipe(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(ROOT / "recipes" / "tiny" / "gist.py")


def triplets(number: int) -> list[dict]:
    """Return rows of a distinct caption, its scene and another scene, without instructions."""
    rows = {row["query"]["text"]: row for row in openmoji_rows("train", 3 * number, tasks=["scene_t2i"])}
    return [
        {
            "query": {"text": text},
            "positive": {"image": row["positive"]["image"]},
            "negatives": [{"image": row["negatives"][0]["image"]}],
            "task": "scenes",
            "label": None,
        }
        for text, row in list(rows.items())[:number]
    ]


@pytest.mark.parametrize("with_negatives", [False, True])
def test_loss_and_gradient_equal_those_of_sentence_transformers(
    recipe: ModuleType, tmp_path: Path, with_negatives: bool
):
    data = [row if with_negatives else row | {"negatives": []} for row in triplets(6)]
    model, processor = load_model(GUIDE, dtype="float32")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # make the model differ from its guide
            parameter.add_(torch.randn_like(parameter) * 0.02 * parameter.std().nan_to_num())
    args = ContrastiveConfig(
        str(tmp_path), per_device_train_batch_size=6, temperature=0.1, use_cpu=True, report_to="none"
    )
    trainer = recipe.GuidedTrainer(model, args, data, processing_class=processor)
    trainer.set_guide(GUIDE, 0.01)
    model.eval()
    with torch.enable_grad():
        loss = trainer.compute_loss(model, trainer.data_collator(data))
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    model.zero_grad()
    reference, guide = (SentenceTransformer(GUIDE, device="cpu", model_kwargs={"dtype": "float32"}) for _ in range(2))
    reference[0].model = model
    columns = [[row["query"] for row in data], [row["positive"] for row in data]]
    columns += [[row["negatives"][0] for row in data]] if with_negatives else []
    expected = CachedGISTEmbedLoss(reference, guide, 0.1, mini_batch_size=6, margin=0.01)(
        [reference.preprocess(column) for column in columns], None
    )
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    expected_gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_training_changes_the_model(recipe: ModuleType, parsed: Callable[..., tuple], tmp_path: Path):
    words = ["--config", ROOT / "recipes" / "tiny" / "stage2.yaml", "--guide", GUIDE, "--output_dir", tmp_path]
    words += [
        "--model_name_or_path",
        GUIDE,
        "--num_rows",
        64,
        "--per_device_train_batch_size",
        8,
        "--task_block_size",
        4,
    ]
    recipe.main(*parsed(recipe, *words, "--max_steps", 2, "--warmup_steps", 0))
    trained, _ = load_model(str(tmp_path), dtype="float32")
    before, _ = load_model(GUIDE, dtype="float32")
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), before.parameters(), strict=True))
