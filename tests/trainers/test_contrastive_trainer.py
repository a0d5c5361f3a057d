import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch.nn.functional import cross_entropy
from transformers import ProcessorMixin

from unime.data.collator import ContrastiveCollator
from unime.data.rows import task_hash
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


@pytest.fixture
def make_trainer(make_model: Callable, processor: ProcessorMixin, tmp_path: Path) -> Callable[..., ContrastiveTrainer]:
    def make(rows: list[dict[str, Any]], **options: Any) -> ContrastiveTrainer:
        defaults = {
            "per_device_train_batch_size": 12,
            "max_steps": 2,
            "micro_batch_tokens": 100,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        args = ContrastiveConfig(str(tmp_path), **defaults | options)
        return ContrastiveTrainer(make_model(), args, train_dataset=rows, processing_class=processor)

    return make


def test_every_parameter_used_by_the_model_changes(make_trainer: Callable, rows: list[dict[str, Any]]):
    trainer = make_trainer(rows, max_steps=1, warmup_steps=0)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    unchanged = [name for name, parameter in trainer.model.named_parameters() if torch.equal(parameter, before[name])]
    # LLaVA uses the output of CLIP's second-to-last layer: later weights have no effect on the embedding.
    assert unchanged == [
        name for name in before if "vision_tower.encoder.layers.1." in name or "post_layernorm" in name
    ]


def test_the_loss_falls_and_every_statistic_is_logged(make_trainer: Callable, rows: list[dict[str, Any]]):
    trainer = make_trainer(rows, max_steps=10, per_device_train_batch_size=24, temperature=0.1, learning_rate=3e-3)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = {"filtered", "hardness", "positive_similarity", "negative_similarity", "accuracy"}
    assert all(names <= entry.keys() for entry in log)
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]


def test_logged_statistics_are_means_since_the_last_log(make_trainer: Callable, rows: list[dict[str, Any]]):
    def hardness(logging_steps: int) -> list[float]:
        trainer = make_trainer(rows, max_steps=4, logging_steps=logging_steps)
        trainer.train()
        return [entry["hardness"] for entry in trainer.state.log_history if "hardness" in entry]

    each, both = hardness(1), hardness(2)
    assert both == pytest.approx([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2], abs=1e-5)


def batch_of(content: list[int], label: list[int], positive: list[int], query: list[int]) -> dict[str, torch.Tensor]:
    """Return a batch whose first items are the candidates, with these contents and labels; the others are queries."""
    num_queries = max(query) + 1 - len(content)
    content = [*content, *(100 + index for index in range(num_queries))]
    columns = {"identity": content, "content": content, "candidate": list(range(len(label))), "label": label}
    columns |= {"query": query, "positive": positive, "task": [0] * len(query)}
    return {name: torch.tensor(values) for name, values in columns.items()}


def plain(temperature: float = 1.0, **options: Any) -> dict[str, Any]:
    return {"temperature": temperature, "false_negative_margin": None, "num_hard_negatives": None} | options


def test_the_same_answer_is_never_a_negative(make_trainer: Callable, rows: list[dict[str, Any]]):
    # Four candidates and four queries with equal embeddings: each loss is log(1 + number of negatives).
    trainer = make_trainer(rows, **plain())
    batch = batch_of(content=[10, 11, 12, 13], label=[5, 5, -1, -1], positive=[0, 1, 2, 3], query=[4, 5, 6, 7])
    loss, _ = trainer.batch_loss(torch.ones(8, 2) / math.sqrt(2), batch)
    # Rows 0 and 1 share a label and keep two negatives; rows 2 and 3 have no label and keep three.
    assert loss.item() == pytest.approx((2 * math.log(3) + 2 * math.log(4)) / 4, abs=1e-6)
    trainer = make_trainer(rows, **plain(exclude_same_label=False))  # rows 0 and 1 become negatives of each other
    loss, _ = trainer.batch_loss(torch.ones(8, 2) / math.sqrt(2), batch)
    assert loss.item() == pytest.approx(math.log(4), abs=1e-6)


def test_all_negatives_count_until_the_warmup_ends(make_trainer: Callable, rows: list[dict[str, Any]]):
    # The query's cosines: 0 with its positive, 1 with a negative that the filter drops, 0 and -1 with two more.
    trainer = make_trainer(
        rows, temperature=1.0, false_negative_margin=0.5, num_hard_negatives=1, hard_negative_warmup_steps=3
    )
    batch = batch_of(content=[10, 11, 12, 13], label=[-1] * 4, positive=[0], query=[4])
    embeddings = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [1.0, 0.0]])
    all_negatives = math.log(1 + math.e + 1 + 1 / math.e)
    for step, expected in ((0, all_negatives), (2, all_negatives), (3, math.log(2)), (9, math.log(2))):
        trainer.state.global_step = step
        loss, _ = trainer.batch_loss(embeddings, batch)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_content_with_two_labels_counts_once_and_has_both_labels(make_trainer: Callable, rows: list[dict[str, Any]]):
    trainer = make_trainer(rows, **plain())
    # Candidates 1 and 2 have the same content: one with the label of row 0's positive, one an explicit negative.
    batch = batch_of(content=[10, 11, 11, 12], label=[5, 5, -1, -1], positive=[0, 3], query=[4, 5])
    loss, _ = trainer.batch_loss(torch.ones(6, 2) / math.sqrt(2), batch)
    # Row 0 keeps only candidate 3; row 1 keeps 0, and the content of 1 and 2 once.
    assert loss.item() == pytest.approx((math.log(2) + math.log(3)) / 2, abs=1e-6)


def test_explicit_negatives_join_the_pool_of_every_row(make_trainer: Callable, rows: list[dict[str, Any]]):
    trainer = make_trainer(rows, **plain())
    batch = batch_of(content=[10, 11, 12], label=[-1, -1, -1], positive=[0, 1], query=[3, 4])
    loss, _ = trainer.batch_loss(torch.ones(5, 2) / math.sqrt(2), batch)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)


def test_tasks_have_their_own_temperatures(make_trainer: Callable, rows: list[dict[str, Any]]):
    trainer = make_trainer(rows, **plain(0.5, task_temperatures={"captions": 1.0}))
    batch = batch_of(content=[10, 11], label=[-1, -1], positive=[0, 1], query=[2, 3])
    batch["task"] = torch.tensor([task_hash("captions"), task_hash("questions")])
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    loss, _ = trainer.batch_loss(items, batch)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2, abs=1e-6)


def test_a_temperature_of_an_unknown_task_is_an_error(make_trainer: Callable, rows: list[dict[str, Any]]):
    dataset = Dataset.from_list([{"anchor": f"a{i}", "positive": f"b{i}", "task": "scenes"} for i in range(4)])
    trainer = make_trainer(dataset, per_device_train_batch_size=4, task_temperatures={"scene": 0.01})
    with pytest.raises(ValueError, match="task_temperatures names scene, but the training data has the tasks scenes"):
        trainer.train()


def test_the_symmetric_loss_is_the_mean_of_both_directions(make_trainer: Callable, rows: list[dict[str, Any]]):
    trainer = make_trainer(rows, **plain(0.5, symmetric=True))
    items = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    batch = batch_of(content=[10, 11, 12], label=[-1, -1, -1], positive=[0, 1, 2], query=[3, 4, 5])
    loss, _ = trainer.batch_loss(items, batch)
    logits = items[3:] @ items[:3].T / 0.5
    diagonal = torch.arange(3)
    torch.testing.assert_close(loss, (cross_entropy(logits, diagonal) + cross_entropy(logits.T, diagonal)) / 2)


def test_negatives_on_the_same_side_give_the_loss_of_sentence_transformers(make_trainer: Callable, rows: list):
    """GTE's loss without its direction from positives to queries."""
    trainer = make_trainer(rows, **plain(0.5, query_to_query=True, candidate_to_candidate=True))
    items = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    batch = batch_of(content=[10, 11, 12], label=[-1, -1, -1], positive=[0, 1, 2], query=[3, 4, 5])
    loss, _ = trainer.batch_loss(items, batch)
    directions = ("query_to_doc", "query_to_query", "doc_to_doc")
    peer = MultipleNegativesRankingLoss(None, scale=2.0, directions=directions)
    torch.testing.assert_close(loss, peer.compute_loss_from_embeddings([items[3:], items[:3]], torch.zeros(3)))


IMAGE = {"image": Image.new("RGB", (24, 24), "red")}
FIND = {"instruction": "Find a caption."}
SHOW = {"instruction": "Represent the given image."}


def training_row(query: Any, positive: Any, *negatives: Any, task: str = "t", label: str | None = None) -> dict:
    return {"query": query, "positive": positive, "negatives": list(negatives), "task": task, "label": label}


OTHER = training_row("something else", "another thing")
# name -> (rows, number of negatives of each row, number of negatives from each row's positive to the queries)
RIGHT_ANSWERS = {
    "several captions of one image": (
        [training_row(IMAGE | FIND, "a red square"), training_row(IMAGE | FIND, "one square in red"), OTHER],
        [1, 1, 2],
        [1, 1, 1],  # the image is one negative of the other row
    ),
    "the same query in two tasks": (
        [training_row("red", "rouge", task="french"), training_row("red", "rosso", task="italian"), OTHER],
        [2, 2, 2],
        [1, 1, 1],  # the text of the query is the same: no other query than its own and that of the other row
    ),
    "pairs in both directions": (
        [training_row(IMAGE | FIND, "a red square"), training_row("a red square", IMAGE | SHOW), OTHER],
        [1, 1, 2],
        [1, 1, 2],
    ),
    "one image under two instructions": (
        [training_row("a red square", IMAGE | SHOW), training_row("one square in red", IMAGE), OTHER],
        [1, 1, 2],
        [1, 1, 2],
    ),
    "a negative that another row of the query knows as right": (
        [training_row("red", "rouge", "rosso"), training_row("red", "rosso"), OTHER],
        [1, 1, 2],
        [1, 1, 1],
    ),
    "a label of another positive of the query": (
        [
            *(training_row("a pet", "cat", label="cat"), training_row("a pet", "dog")),
            *(training_row("x", "kitten", label="cat"), OTHER),
        ],
        [1, 1, 2, 3],
        [1, 2, 1, 2],
    ),
    "an answer of several rows without a label": (
        [training_row("is it red?", "yes"), training_row("is it round?", "yes"), training_row("is it big?", "no")],
        [1, 1, 1],
        [1, 1, 2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", RIGHT_ANSWERS)
def test_no_right_answer_of_a_query_is_its_negative(kind: str, symmetric: bool, make_trainer: Callable, rows: list):
    # All embeddings are equal, so the loss of a row is log(1 + number of negatives).
    examples, negatives, reverse_negatives = RIGHT_ANSWERS[kind]
    trainer = make_trainer(rows, **plain(symmetric=symmetric))
    batch = trainer.data_collator(examples)
    loss, _ = trainer.batch_loss(torch.ones(len(batch["identity"]), 1), batch)
    expected = sum(math.log(1 + number) for number in negatives) / len(negatives)
    if symmetric:
        expected = (expected + sum(math.log(1 + number) for number in reverse_negatives) / len(negatives)) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_row_with_several_positives_trains_like_a_row_for_each(symmetric: bool, make_trainer: Callable, rows: list):
    captions = ["a red square", "one square in red", "something scarlet"]
    several = {
        "query": IMAGE | FIND,
        "positives": captions,
        "negatives": ["a blue square"],
        "task": "t",
        "label": "red",
    }
    one_each = [training_row(IMAGE | FIND, caption, "a blue square", label="red") for caption in captions]
    results = []
    for examples in ([several, OTHER], [*one_each, OTHER]):
        trainer = make_trainer(rows, temperature=0.1, num_hard_negatives=2, symmetric=symmetric)
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(examples))
        loss.backward()
        gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
        results.append([loss.detach(), *gradients])
    assert len(results[0]) > 10 and results[0][0] > 0
    torch.testing.assert_close(*results, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positives": ["b"]}, "row 1 of the batch: it has both 'positive' and 'positives'"),
        ({"positive": None, "positives": []}, "row 1 of the batch: 'positives' must be a list of at least one item"),
        ({"scores": [1.0]}, "row 1 of the batch: 'scores' has 1 scores: give one score for each of the 1 positive"),
    ],
)
def test_a_malformed_row_is_refused(change: dict, message: str, make_trainer: Callable, rows: list[dict[str, Any]]):
    with pytest.raises(ValueError, match=message):
        make_trainer(rows).data_collator([OTHER, training_row("red", "rouge", "vert") | change])


def test_the_symmetric_loss_of_one_query_is_half_of_its_loss_from_query_to_candidates(
    make_trainer: Callable, rows: list[dict[str, Any]]
):
    trainer = make_trainer(rows, **plain(symmetric=True))
    batch = trainer.data_collator([training_row("red", "rouge", "vert", "bleu"), training_row("red", "rosso")])
    loss, _ = trainer.batch_loss(torch.ones(5, 1), batch)
    assert loss.item() == pytest.approx(math.log(3) / 2, abs=1e-6)


def test_info_nce_of_vlm2vec_is_a_configuration(
    make_trainer: Callable, rows: list[dict[str, Any]], make_model: Callable, processor: ProcessorMixin
):
    distinct = [row for row in rows if row["label"] is None and not row["negatives"]]
    trainer = make_trainer(distinct, **plain(0.02), per_device_train_batch_size=len(distinct))
    batch = trainer.data_collator(distinct)
    assert isinstance(trainer.data_collator, ContrastiveCollator)
    loss = trainer.compute_loss(trainer.model.eval(), batch)
    queries = trainer.model.encode([row["query"] for row in distinct], processor)
    positives = trainer.model.encode([row["positive"] for row in distinct], processor)
    logits = torch.tensor(queries @ positives.T) / 0.02
    torch.testing.assert_close(loss.detach(), cross_entropy(logits, torch.arange(len(distinct))), atol=1e-4, rtol=1e-4)


def test_a_batch_of_one_is_refused(make_trainer: Callable, rows: list[dict[str, Any]]):
    with pytest.raises(ValueError, match="no query has a negative"):
        make_trainer(rows[:1], per_device_train_batch_size=1).train()


def test_more_hard_negatives_than_candidates_can_be_trained(make_trainer: Callable, rows: list[dict[str, Any]]):
    trainer = make_trainer(rows, num_hard_negatives=1000, max_steps=1)
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hard_negatives": 0}, "num_hard_negatives must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"soft_label_temperature": -1.0}, "soft_label_temperature must be positive"),
        ({"task_temperatures": {"a": 0}}, "task_temperatures must be positive numbers, got 0 for a"),
        ({"task_temperatures": "a=1"}, "task_temperatures must be a dict"),
        ({"soft_label_divergence": "kl"}, "soft_label_divergence must be 'symmetric_kl'"),
        ({"soft_label_weight": -1.0}, "contrastive_weight and soft_label_weight must not be negative"),
        ({"contrastive_weight": 0.0}, "one of them must be positive, got 0.0 and 0.0"),
        ({"pad_negatives": "drop"}, "pad_negatives must be 'mask' or 'repeat'"),
        ({"negative_sampling": "best"}, "negative_sampling must be 'hardest', 'random' or 'easiest'"),
        ({"gradient_accumulation_steps": 4}, "raise per_device_train_batch_size instead"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        ContrastiveConfig(str(tmp_path), use_cpu=True, **options)


def test_a_task_block_fills_batches_with_one_task(make_trainer: Callable, rows: list[dict[str, Any]]):
    columns = {"number": list(range(24)), "task": [["names", "crops"][number % 2] for number in range(24)]}
    dataset = Dataset.from_dict(columns).with_transform(
        lambda batch: {"rows": [rows[number] | {"number": number} for number in batch["number"]]} | batch
    )
    trainer = make_trainer(rows, per_device_train_batch_size=6, task_block_size=6)
    trainer.data_collator = lambda batch: {"number": [row["number"] for row in batch]}
    trainer.train_dataset = dataset
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append([batch["number"] for batch in loader])
    assert [sorted(number for batch in epoch for number in batch) for epoch in epochs] == [list(range(24))] * 2
    assert all(len({number % 2 for number in batch}) == 1 for epoch in epochs for batch in epoch)
    assert epochs[0] != epochs[1]


def test_rows_of_a_transform_train_in_task_blocks(make_trainer: Callable, rows: list[dict[str, Any]]):
    columns = {"number": list(range(24)), "task": [["names", "crops"][number % 2] for number in range(24)]}
    dataset = Dataset.from_dict(columns).with_transform(
        lambda batch: {name: [rows[number][name] for number in batch["number"]] for name in rows[0] if name != "task"}
    )
    trainer = make_trainer(dataset, per_device_train_batch_size=6, task_block_size=6)
    tasks = [batch["task"].unique() for batch in trainer.get_train_dataloader()]
    assert len(tasks) == 4 and all(len(of_batch) == 1 for of_batch in tasks)


def test_task_blocks_need_a_stored_task_column(make_trainer: Callable, rows: list[dict[str, Any]]):
    trainer = make_trainer(rows, task_block_size=6)
    trainer.train_dataset = Dataset.from_dict({"number": list(range(24))}).with_transform(
        lambda batch: {"task": ["names"] * len(batch["number"])}
    )
    with pytest.raises(ValueError, match="task_block_size=6 needs to know the task of every row"):
        trainer.get_train_dataloader()
