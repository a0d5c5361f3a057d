"""Ranking candidates with an image-text model, compared with what it generates."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from rerank_runs import make_trainer, rerank_rows
from sentence_transformers import CrossEncoder

from unime.judging import conversation_images, listwise_messages, pairwise_messages, prompt_tensors, render
from unime.rerank_answers import answer_end, position_answer
from unime.rerank_cross_encoder import pair_template
from unime.reranker import UniMEReranker, load_reranker, save_reranker


QUERY = {"image": Image.new("RGB", (24, 24), (200, 60, 60)), "text": "which one is it?"}
CANDIDATES = [{"text": f"candidate {n}" + " and more" * (n % 3)} for n in range(11)]
CANDIDATES[4] = {"image": Image.new("RGB", (24, 24), (20, 160, 60)), "text": "a green one"}


@pytest.fixture(scope="module")
def qwen(tiny_model: Callable[[str], Path]) -> str:
    return str(tiny_model("qwen2.5-vl"))


def logits_after(reranker: UniMEReranker, conversation: list[dict], answer: str, steps: int) -> torch.Tensor:
    """Return the logits of `generate` behind each token of an answer, which it is forced to give."""
    processor = reranker.processor
    inputs = prompt_tensors(processor, render(processor, [conversation]), [conversation_images(conversation)])
    tokens = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    width = inputs["input_ids"].shape[1]
    output = reranker.model.generate(
        **inputs,
        max_new_tokens=steps,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        prefix_allowed_tokens_fn=lambda _, ids: [tokens[len(ids) - width]],
    )
    return torch.stack([step[0] for step in output.logits])


def test_pointwise_scores_are_the_probabilities_of_yes_that_generate_gives(qwen: str):
    reranker = UniMEReranker.from_pretrained(qwen, dtype="float32")
    scores = reranker.scores(QUERY, CANDIDATES[:5])
    labels = [reranker.processor.tokenizer(word)["input_ids"][0] for word in ("Yes", "No")]
    for score, candidate in zip(scores, CANDIDATES[:5], strict=True):
        (logits,) = logits_after(reranker, pairwise_messages(QUERY, candidate), "Yes", 1)
        assert score == pytest.approx(logits[labels].softmax(0)[0].item(), abs=1e-5)


def test_listwise_scores_follow_the_tokens_that_generate_weighs(qwen: str):
    reranker = UniMEReranker.from_pretrained(qwen, "listwise", dtype="float32")
    scores = reranker.scores(QUERY, CANDIDATES)
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    tokenizer = reranker.processor.tokenizer
    answers = [tokenizer(position_answer(place))["input_ids"] for place in range(len(CANDIDATES))]
    conversation = listwise_messages(QUERY, CANDIDATES)
    for place, tokens in enumerate(answers):
        expected = 1.0
        logits = logits_after(reranker, conversation, position_answer(place), len(tokens))
        for length, token in enumerate(tokens):
            allowed = sorted({other[length] for other in answers if other[:length] == tokens[:length]})
            expected *= logits[length][allowed].softmax(0)[allowed.index(token)].item()
        assert scores[place] == pytest.approx(expected, abs=1e-5)


def test_candidates_are_ranked_by_score_and_ties_keep_their_order(qwen: str):
    reranker = UniMEReranker.from_pretrained(qwen, dtype="float32")
    repeated = [CANDIDATES[0], CANDIDATES[1], CANDIDATES[0], CANDIDATES[4]]
    scores, ranked = reranker.scores(QUERY, repeated), reranker.rank(QUERY, repeated)
    assert [candidate.score for candidate in ranked] == sorted(scores, reverse=True)
    assert [candidate.index for candidate in ranked if candidate.index in (0, 2)] == [0, 2]
    assert reranker.rank(QUERY, repeated, top_n=2) == ranked[:2]
    assert reranker.rank(QUERY, []) == []
    listwise = UniMEReranker(reranker.model, reranker.processor, "listwise")
    assert listwise.scores(QUERY, CANDIDATES[:1]) == [1.0]


def test_what_cannot_be_ranked_is_refused(qwen: str):
    model, processor = load_reranker(qwen, dtype="float32")
    with pytest.raises(ValueError, match="method must be 'pointwise' or 'listwise', got 'pairs'"):
        UniMEReranker(model, processor, "pairs")
    model.config.get_text_config().max_position_embeddings = 100
    with pytest.raises(ValueError, match=r"the list of 11 candidates has \d+ tokens, but the model reads 100"):
        UniMEReranker(model, processor, "listwise").scores(QUERY, CANDIDATES)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "llava-next", "llava-onevision", "idefics3"])
def test_an_answer_ends_as_in_the_chat_template_of_the_family(tiny_model: Callable[[str], Path], name: str):
    processor = load_reranker(str(tiny_model(name)))[1]
    ends = {"qwen2.5-vl": "<|im_end|>", "llava-next": "</s>", "llava-onevision": "<|im_end|>"}
    expected = ends.get(name, "<end_of_utterance>")
    assert processor.tokenizer.decode(answer_end(processor)).strip() == expected


@pytest.mark.parametrize("name", ["qwen2.5-vl", "tiny-backbone"])
def test_sentence_transformers_loads_a_saved_reranker_with_the_same_scores(
    name: str, tiny_model: Callable[[str], Path], tmp_path: Path
):
    committed = Path(__file__).resolve().parents[1] / "checkpoints" / name
    model, processor = load_reranker(str(committed if committed.is_dir() else tiny_model(name)), dtype="float32")
    save_reranker(model, processor, tmp_path)
    encoder = CrossEncoder(str(tmp_path), model_kwargs={"dtype": "float32"})
    red = Image.new("RGB", (24, 24), (200, 60, 60))
    queries = ["a red one <|im_end|>", red, {"image": red, "text": "which one is it?"}]
    candidates = ["red", red, {"image": red, "text": "a red one"}]
    reranker = UniMEReranker(model, processor)
    for query in queries:
        predicted = [float(encoder.predict([(query, candidate)])[0]) for candidate in candidates]
        assert predicted == pytest.approx(reranker.scores(query, candidates), abs=1e-5)
    again, saved = load_reranker(str(tmp_path), dtype="float32")
    assert answer_end(saved) == answer_end(processor)
    assert UniMEReranker(again, saved).scores(queries[2], candidates) == pytest.approx(predicted, abs=1e-5)
    assert pair_template(saved) == saved.chat_template


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["both", "ranking"])
def test_a_trained_reranker_puts_the_positives_of_its_rows_first(qwen: str, tmp_path: Path, objective: str):
    # Pointwise: this model is too small to learn in minutes at which place of a list the positive stands.
    options = {"max_steps": 150, "save_strategy": "no", "num_candidates": 5, "learning_rate": 2e-2}
    trainer = make_trainer(qwen, tmp_path, 8, objective=objective, **options)
    trainer.train()
    reranker = UniMEReranker(trainer.model.eval().merge_and_unload(), trainer.processing_class)
    hits = 0
    for number, row in enumerate(rerank_rows()):
        candidates = list(row["negatives"])
        candidates.insert(number % 5, row["positive"])
        hits += reranker.rank(row["query"], candidates)[0].index == number % 5
    assert hits == 8
