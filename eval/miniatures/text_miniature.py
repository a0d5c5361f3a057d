"""Miniature text benchmarks: seven datasets of similarity with ten pairs each, and eight premises of AllNLI."""

from pathlib import Path

from ..benchmarks.text_similarity import STS
from .hub_files import write_hub_dataset


def write_miniature(folder: Path) -> dict[str, str]:
    """Write the datasets, and return the arguments that open them."""
    pairs = [
        {"sentence1": f"number {left}", "sentence2": f"the number {right}", "score": 5.0 - (right - left)}
        for left in range(4)
        for right in range(left, 4)
    ]
    for repository in STS.values():
        write_hub_dataset(folder / "mteb" / repository, {"default": pairs})
    triplets = [
        {"anchor": f"number {number}", "positive": f"the number {number}", "negative": f"the number {number + 10}"}
        for number in range(8)
    ]
    write_hub_dataset(folder / "all-nli", {"triplet": triplets})
    return {"sts_source": "mteb", "nli_source": "all-nli"}
