"""Token ids that a processor gives items."""

from transformers import ProcessorMixin

from unime import micro_batches


def token_ids(processor: ProcessorMixin, items: list, **options) -> list[list[int]]:
    """Return the token ids of each item without padding, in the order of the items.

    Args:
        processor: UniME's processor.
        items: The items.
        options: Passed to `micro_batches`.
    """
    ids = {}
    for indices, tensors in micro_batches(processor, items, **options):
        for index, row, mask in zip(indices, tensors["input_ids"], tensors["attention_mask"], strict=True):
            ids[index] = row[mask.bool()].tolist()
    return [ids[index] for index in range(len(items))]
