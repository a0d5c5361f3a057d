"""Tests of the counters of `hardware_limit.py` against manual calculations."""

import pytest
import torch
from baselines import add_instruction
from hardware_limit import ForwardStatistics, bare_products, flops, seen_before
from models import checkpoint

from unime import cpu_prepacking_unime, load_model


@pytest.mark.parametrize(
    ("sequences", "count"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 3),
        ([[1, 2], [2, 1]], 0),  # after other tokens, the same token has another state
        ([[5, 1], [5, 2], [5, 2, 7]], 3),
    ],
)
def test_a_token_counts_as_seen_with_the_same_prefix_only(sequences: list[list[int]], count: int):
    assert seen_before(sequences) == count


def test_statistics_are_collected_without_changing_the_model(tmp_path):
    model, processor = load_model(str(checkpoint("unime-tiny", tmp_path)), dtype="float32")
    items = add_instruction(["pizza", "a cat on a blue tile"], None)
    expected = model.encode(items, processor)
    statistics = ForwardStatistics(model)
    with statistics.collecting():
        embeddings = model.encode(items, processor)
    counted = statistics.positions
    assert (embeddings == expected).all()
    assert (model.encode(items, processor) == expected).all() and statistics.positions == counted
    lengths = [len(ids) for ids in processor.tokenizer(_rendered(items, processor))["input_ids"]]
    assert statistics.positions - statistics.padding == sum(lengths)
    assert statistics.seconds > 0 and bare_products(statistics.products) > 0
    # Every decoder layer has seven matrix products.
    assert len(statistics.products) % (7 * model.config.get_text_config().num_hidden_layers) == 0
    weights = {id(weight) for weight, _ in statistics.products}
    assert weights <= {id(weight) for weight in model.parameters()} and torch.is_tensor(statistics.products[0][0])


def test_prepacking_does_not_change_the_counted_work(tmp_path, monkeypatch: pytest.MonkeyPatch):
    model, processor = load_model(str(checkpoint("unime-tiny", tmp_path)), dtype="float32")
    items = add_instruction([f"{count} pizzas beside a cat on a blue tile" for count in range(200)], None)
    counted = flops(model, processor, items)
    monkeypatch.setattr(cpu_prepacking_unime, "can_prepack", lambda model: False)
    assert counted == flops(model, processor, items) > 0


def _rendered(items: list[dict], processor) -> list[str]:
    from unime.processing_unime import to_item_dict, to_messages

    return processor.apply_chat_template([to_messages(to_item_dict(item)) for item in items], tokenize=False)
