"""The reranker's trainer: prompts and labels, what is drawn, and trainings."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rerank_runs import make_trainer, rerank_rows
from scipy.stats import chisquare
from tiny_architectures import tiny_architecture
from transformers import AutoProcessor, ProcessorMixin

from unime.data.rerank_collator import RerankCollator, similar_sizes
from unime.judging import label_tokens
from unime.rerank_answers import FILLER
from unime.reranker import load_reranker
from unime.trainers import RerankConfig, RerankTrainer
from unime.trainers.rerank_trainer import ranking_loss


PAIRWISE = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate meets the requirements of "
    "the query. If it does, respond with 'Yes'; if it doesn't, respond with 'No'."
)
LISTWISE = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, etc. Each "
    "candidate is independent of the others. Evaluate each candidate against the query, and respond with the number "
    "corresponding to the candidate that best meets the requirements of the query."
)
IMAGE = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"  # the tiny model's image of 24 x 24 pixels


@pytest.fixture(scope="module")
def qwen(tiny_model: Callable[[str], Path]) -> str:
    return str(tiny_model("qwen2.5-vl"))


@pytest.fixture(scope="module")
def processor(qwen: str) -> ProcessorMixin:
    return AutoProcessor.from_pretrained(qwen)


def collated(processor: ProcessorMixin, rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    settings = {"objective": "both", "num_candidates": 10, "seed": 0} | options
    return RerankCollator(processor, **settings)(rows)


def texts_of(processor: ProcessorMixin, batch: dict[str, Any]) -> list[str]:
    """Return what the model attends to in each conversation, sorted."""
    texts = []
    for tensors in batch["micro_batches"]:
        rows = zip(tensors["input_ids"], tensors["attention_mask"].bool(), strict=True)
        texts += [processor.tokenizer.decode(ids[mask]) for ids, mask in rows]
    return sorted(texts)


def test_prompts_and_answers_are_those_of_unime_v2_with_all_texts(processor: ProcessorMixin):
    text, image = rerank_rows(2, num_negatives=1)
    image["query"] |= {"text": "who is it?\n", "instruction": "Find me a name:"}
    texts = texts_of(processor, collated(processor, [text, image]))
    turns = [
        ("who is 0?", "answer 0", "answer 1 of another"),
        (f"{IMAGE}Find me a name: who is it?\n", "answer 1", "answer 2 of another"),
    ]
    start, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    expected = []
    for query, positive, negative in turns:
        for candidate, answer in ((positive, "Yes"), (negative, "No")):
            expected.append(f"{start}{PAIRWISE}Query:{query}Candidate:{candidate}{end}{answer}<|im_end|>")
        listed = next(text for text in texts if f"Query:{query}Candidates:" in text)
        place = int(listed.rpartition("Ans: (")[2][0])
        first, second = (positive, negative) if place == 1 else (negative, positive)
        expected.append(
            f"{start}{LISTWISE}Query:{query}Candidates:(1) {first}(2) {second}{end}Ans: ({place})<|im_end|>"
        )
    assert texts == sorted(expected)


def test_only_the_answer_up_to_the_end_of_the_turn_has_a_loss(processor: ProcessorMixin):
    batch = collated(processor, rerank_rows(3))
    decode = processor.tokenizer.decode
    answers = []
    for tensors in batch["micro_batches"]:
        width = tensors["answers"].shape[1]
        for ids, labels in zip(tensors["input_ids"][:, -width:], tensors["answers"], strict=True):
            kept = labels != FILLER
            assert torch.equal(ids[kept], labels[kept])
            answers.append(decode(labels[kept]))
    positions = [answer for answer in answers if answer.startswith("Ans: (") and answer.endswith(")<|im_end|>")]
    assert Counter(answers) == Counter(["Yes<|im_end|>", "No<|im_end|>"] * 3 + positions) and len(positions) == 3
    assert len(batch["labels"]) == sum(len(processor.tokenizer(answer)["input_ids"]) for answer in answers)


def test_conversations_of_similar_size_share_a_micro_batch():
    # Images, characters. 125 is at most 1.25 times 100, 126 is not; 130 starts from 126.
    sizes = [(1, 100), (0, 500), (1, 126), (2, 100), (1, 125), (1, 130), (0, 20)]
    assert similar_sizes(sizes) == [[6], [1], [0, 4], [2, 5], [3]]
    assert similar_sizes([]) == []


def test_little_of_the_micro_batches_is_padding(processor: ProcessorMixin):
    rows = [{"query": "who?", "positive": "he", "negatives": ["she"]}, rerank_rows(1)[0]]
    rows.append({"query": "who?", "positive": "he " * 300, "negatives": ["she " * 300]})
    masks = [tensors["attention_mask"] for tensors in collated(processor, rows)["micro_batches"]]
    assert sum(mask.shape[0] for mask in masks) == 9
    assert sum(mask.sum() for mask in masks) > 0.9 * sum(mask.numel() for mask in masks)


def question(conversation: list[dict[str, Any]]) -> str:
    """Return the text of a conversation without images."""
    (part,) = conversation[0]["content"]
    return part["text"]


def test_the_positive_stands_at_every_offered_place_equally_often(processor: ProcessorMixin):
    (row,) = rerank_rows(1, num_negatives=12)
    collator = RerankCollator(processor, "listwise", num_candidates=10, seed=0)
    places: Counter[str] = Counter()
    negatives: Counter[int] = Counter()
    draws = 1000
    for number in range(draws):
        [(conversation, answer)] = collator.questions(row, f"row {number}")
        offered = question(conversation).partition("Candidates:")[2].split("(")[1:]
        assert len(offered) == 10
        place = answer.removeprefix("Ans: (")
        assert f"{place} answer 0" in offered
        places[place] += 1
        negatives.update(n for n in range(1, 13) if any(f" answer {n} of another" in text for text in offered))
    assert len(places) == 10
    assert chisquare(list(places.values())).pvalue > 0.01
    assert sum(negatives.values()) == 9 * draws and min(negatives.values()) > 0.9 * 9 * draws / 12


def test_the_negative_of_no_is_any_of_the_distinct_ones(processor: ProcessorMixin):
    (row,) = rerank_rows(1, num_negatives=3)
    row["negatives"] += [row["negatives"][0], row["positive"]]  # a repeated one, and a right answer
    del row["scores"]
    collator = RerankCollator(processor, "both", num_candidates=10, seed=0)
    wrong: Counter[str] = Counter()
    for number in range(600):
        [_, (conversation, answer), (listed, _)] = collator.questions(row, f"row {number}")
        assert answer == "No" and question(listed).count("of another") == 3
        wrong[question(conversation).partition("Candidate:")[2]] += 1
    assert wrong.keys() == {f"answer {other} of another" for other in (1, 2, 3)}
    assert chisquare(list(wrong.values())).pvalue > 0.01


def test_draws_depend_on_the_seed_the_row_and_the_epoch_alone(processor: ProcessorMixin):
    rows = [row | {"where": f"row {number}"} for number, row in enumerate(rerank_rows(6))]
    collator = RerankCollator(processor, "listwise", num_candidates=5, seed=0)

    def lists(rows: list[dict[str, Any]], collator: RerankCollator = collator) -> list[str]:
        conversations = [collator.questions(row, row["where"])[-1][0] for row in rows]
        return [conversation[0]["content"][-1]["text"] for conversation in conversations]

    first = lists(rows)
    assert [*lists(rows[3:]), *lists(rows[:3])] == first[3:] + first[:3]
    assert lists(rows, replace(collator, seed=1)) != first
    collator.epoch.fill_(1)
    assert lists(rows) != first


def test_a_row_without_a_negative_and_a_score_that_is_no_probability_are_refused(processor: ProcessorMixin):
    (row,) = rerank_rows(1)
    with pytest.raises(ValueError, match="pairs, row 7: it has no negative that differs from its positive"):
        collated(processor, [row | {"negatives": [row["positive"]], "scores": None, "where": "pairs, row 7"}])
    with pytest.raises(ValueError, match="row 0 of the batch: objective 'distillation' needs 'scores'.* got None"):
        collated(processor, [row | {"scores": None}], objective="distillation")
    with pytest.raises(ValueError, match="num_candidates must be at least 2, got 1"):
        RerankConfig("out", num_candidates=1, use_cpu=True)
    with pytest.raises(ValueError, match="objective must be one of both, pairwise.* got 'triplet'"):
        RerankConfig("out", objective="triplet", use_cpu=True)


def test_the_ranking_loss_by_hand():
    log_odds = torch.tensor([1.0, 0.0, 2.0, 2.0, 2.0])
    loss = ranking_loss(log_odds, torch.tensor([2, 3]))
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0, 2.0])
    assert loss.item() == pytest.approx(-(first.log_softmax(0)[0] + second.log_softmax(0)[0]).item())


@pytest.mark.parametrize("objective", ["both", "ranking", "distillation"])
def test_the_loss_is_that_of_one_conversation_at_a_time(qwen: str, tmp_path: Path, objective: str):
    trainer = make_trainer(qwen, tmp_path, 2, objective=objective, num_candidates=4)
    rows = [trainer.train_dataset[0], trainer.train_dataset[1]]
    batch = trainer.data_collator(rows)
    model = trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(model, batch).item()
        terms = []
        for tensors in batch["micro_batches"]:
            grids = tensors.get("image_grid_thw", torch.empty(0, 3, dtype=torch.long))
            images = iter(tensors["pixel_values"].split(grids.prod(1).tolist()) if len(grids) else ())
            grids = iter(grids)
            for index, mask in enumerate(tensors["attention_mask"].bool()):
                ids = tensors["input_ids"][index][mask][None]
                types = tensors["mm_token_type_ids"][index][mask][None]
                visual = {}
                if types.any():
                    visual = {"pixel_values": next(images), "image_grid_thw": next(grids)[None]}
                logits = model(input_ids=ids, mm_token_type_ids=types, **visual).logits[0].log_softmax(-1)
                if "answers" in tensors:
                    answer = tensors["answers"][index][tensors["answers"][index] != FILLER]
                    terms += [logits[-len(answer) - 1 + place, token] for place, token in enumerate(answer)]
                else:
                    yes, no = logits[-1, label_tokens(trainer.processing_class)]
                    terms.append(yes - no)
    values = torch.stack(terms)
    if objective != "both":
        values = values[batch["order"].argsort()]
    if objective == "both":
        expected = -values.mean()
    elif objective == "ranking":
        expected = -values.view(2, 4).log_softmax(dim=1)[:, 0].mean()
    else:
        scores, odds = batch["scores"], values.sigmoid()
        expected = -(scores * odds.log() + (1 - scores) * (1 - odds).log()).mean()
    assert loss == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("objective", ["both", "ranking"])
def test_micro_batches_do_not_change_the_loss_with_batch_normalization(tmp_path: Path, objective: str):
    torch.manual_seed(0)
    native, processor = tiny_architecture("fast_vlm")  # its tower is a ResNet
    native.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    trainer = make_trainer(str(tmp_path / "model"), tmp_path / "run", 4, objective=objective, num_candidates=4)
    statistics = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    assert any("running_mean" in name for name in statistics)
    rows = [trainer.train_dataset[index] for index in range(4)]
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(rows)).item()
        loss = trainer.compute_loss(trainer.model.train(), trainer.data_collator(rows)).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(dict(trainer.model.named_buffers()), statistics, atol=0, rtol=0)


def test_training_lowers_the_loss(qwen: str, tmp_path: Path):
    trainer = make_trainer(qwen, tmp_path, 2, max_steps=6, save_strategy="no", num_candidates=2)
    trainer.eval_dataset = [trainer.train_dataset[index] for index in range(2)]
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.85 * before


def trained(trainer: RerankTrainer) -> dict[str, torch.Tensor]:
    """Return the weights of the adapter."""
    return {name: tensor for name, tensor in trainer.model.state_dict().items() if "lora_" in name}


def test_resumed_training_equals_uninterrupted_training(qwen: str, tmp_path: Path):
    options = {"num_train_epochs": 2, "max_steps": -1, "save_steps": 3}
    trainer = make_trainer(qwen, tmp_path / "whole", 4, **options)  # two epochs of two steps
    trainer.train()
    resumed = make_trainer(qwen, tmp_path / "resumed", 4, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.state.global_step == 4
    torch.testing.assert_close(trained(resumed), trained(trainer), atol=0, rtol=0)


def test_accumulated_batches_train_like_one_batch(qwen: str, tmp_path: Path):
    whole = make_trainer(qwen, tmp_path / "whole", 4, save_strategy="no")
    parts = make_trainer(qwen, tmp_path / "parts", 1, gradient_accumulation_steps=4, save_strategy="no")
    for trainer in (whole, parts):
        trainer.train()
    torch.testing.assert_close(trained(parts), trained(whole), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_joined_batch(qwen: str, tmp_path: Path):
    script = str(Path(__file__).parents[1] / "rerank_runs.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launchers = {"one": ([], ["4"]), "two": (torchrun, ["2"]), "shards": (torchrun, ["2", "fsdp2"])}
    for name, (launcher, settings) in launchers.items():
        command = [sys.executable, *launcher, script, qwen, str(tmp_path / name), *settings]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=240)
    for objective in ("both", "ranking"):
        folders = [tmp_path / name / objective for name in launchers]
        expected, *others = (json.loads((folder / "losses.json").read_text()) for folder in folders)
        weights, *other_weights = (load_reranker(str(folder), dtype="float32")[0].state_dict() for folder in folders)
        for losses, actual in zip(others, other_weights, strict=True):
            assert losses == pytest.approx(expected, rel=1e-5)
            torch.testing.assert_close(actual, weights, atol=1e-5, rtol=0)
        assert json.loads((folders[1] / "training.json").read_text())[-1]["processes"] == 2


def test_a_trained_model_is_saved_as_the_backbone_is(qwen: str, tmp_path: Path):
    model, processor = load_reranker(qwen, dtype="float32")
    args = RerankConfig(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", save_strategy="no")
    trainer = RerankTrainer(model, args, rerank_rows(8), processing_class=processor)
    trainer.train()
    trainer.save_model()
    loaded, saved_processor = load_reranker(str(tmp_path), dtype="float32")
    torch.testing.assert_close(loaded.state_dict(), trainer.model.state_dict(), atol=0, rtol=0)
    assert type(loaded).__name__ == "Qwen2_5_VLForConditionalGeneration"
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    assert saved_processor.apply_chat_template(turn) == processor.apply_chat_template(turn)
    assert json.loads((tmp_path / "training.json").read_text())[-1]["trainer"] == "RerankTrainer"
