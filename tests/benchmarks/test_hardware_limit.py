"""What `limit.py` counts, worked out by hand."""

import pytest
import torch
from hardware_limit import Watch, bare_products, flops, seen_before
from models import checkpoint
from peers import instructed

from unime import cpu_prepacking_unime, load_model


@pytest.mark.parametrize(
    ("sequences", "count"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 3),
        ([[1, 2], [2, 1]], 0),  # behind other tokens, the same token has another state
        ([[5, 1], [5, 2], [5, 2, 7]], 3),
    ],
)
def test_a_token_was_seen_if_all_before_it_were(sequences: list[list[int]], count: int):
    assert seen_before(sequences) == count


def test_a_watched_model_is_counted_and_left_as_it_was(tmp_path):
    model, processor = load_model(str(checkpoint("unime-tiny", tmp_path)), dtype="float32")
    items = instructed(["pizza", "a cat on a blue tile"], None)
    expected = model.encode(items, processor)
    watch = Watch(model)
    with watch.watching():
        found = model.encode(items, processor)
    counted = watch.positions
    assert (found == expected).all()
    assert (model.encode(items, processor) == expected).all() and watch.positions == counted
    lengths = [len(ids) for ids in processor.tokenizer(_rendered(items, processor))["input_ids"]]
    assert watch.positions - watch.padding == sum(lengths)
    assert watch.seconds > 0 and bare_products(watch.products) > 0
    # Every layer of the decoder multiplies with seven matrices.
    assert len(watch.products) % (7 * model.config.get_text_config().num_hidden_layers) == 0
    weights = {id(weight) for weight, _ in watch.products}
    assert weights <= {id(weight) for weight in model.parameters()} and torch.is_tensor(watch.products[0][0])


def test_work_is_the_same_however_the_products_are_computed(tmp_path, monkeypatch: pytest.MonkeyPatch):
    model, processor = load_model(str(checkpoint("unime-tiny", tmp_path)), dtype="float32")
    items = instructed([f"{number} pizzas beside a cat on a blue tile" for number in range(200)], None)
    counted = flops(model, processor, items)
    monkeypatch.setattr(cpu_prepacking_unime, "can_prepack", lambda model: False)
    assert counted == flops(model, processor, items) > 0


def _rendered(items: list[dict], processor) -> list[str]:
    from unime.processing_unime import to_item_dict, to_messages

    return processor.apply_chat_template([to_messages(to_item_dict(item)) for item in items], tokenize=False)
