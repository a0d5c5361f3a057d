"""What a processor makes of items, as token ids."""

from transformers import ProcessorMixin

from unime import micro_batches


def ids(processor: ProcessorMixin, items: list, **options) -> list[list[int]]:
    """Return the token ids of each item, without padding, in the items' order."""
    rows = {}
    for indices, tensors in micro_batches(processor, items, **options):
        for index, row, mask in zip(indices, tensors["input_ids"], tensors["attention_mask"], strict=True):
            rows[index] = row[mask.bool()].tolist()
    return [rows[index] for index in range(len(items))]
