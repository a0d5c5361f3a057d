"""A page with the result of judging: queries, positives, and candidates with their scores; it opens offline."""

from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from ..processing_unime import Item, to_item_dict, to_rgb
from .html_pages import data_url, templates
from .judged import Choice


MAX_IMAGE_PIXELS = 240  # longest side of an image on the page
MAX_TEXT_CHARACTERS = 400
MAX_REJECTED = 100
BINS = 5


def write_judge_page(
    settings: Mapping[str, Any],
    report: Mapping[str, Any],
    examples: Sequence[tuple[Mapping[str, Any], Sequence[float], Choice]],
    rejected: Mapping[int, str],
) -> str:
    """Return the HTML of the page.

    Args:
        settings (`Mapping`): Settings of the judge and of the filter.
        report (`Mapping`): Counts over all rows.
        examples (`Sequence`): Rows with `query`, `positives`, `negatives`, `mined`, `task` and `where`, the scores of
            their candidates in this order, and the choice among the mined ones.
        rejected (`Mapping[int, str]`): The reason for each row that was not judged.
    """
    shown = [_example(*example) for example in examples]
    histogram = {
        "positives": _histogram([entry["score"] for example in shown for entry in example["positives"]]),
        "candidates": _histogram(
            [entry["score"] for example in shown for kind in ("kept", "dropped", "unused") for entry in example[kind]]
        ),
    }
    template = templates(__package__).get_template("judge_page.html.jinja")
    return template.render(
        settings=settings,
        report=report,
        histogram=histogram,
        examples=shown,
        rejected=sorted(rejected.items())[:MAX_REJECTED],
    )


def _histogram(scores: Sequence[float]) -> list[int]:
    counts = Counter(min(int(score * BINS), BINS - 1) for score in scores)
    return [counts[place] for place in range(BINS)]


def _example(row: Mapping[str, Any], scores: Sequence[float], choice: Choice) -> dict[str, Any]:
    def entries(kind: str, title: str, items: Sequence[Item], of_items: Sequence[float]) -> list[dict[str, Any]]:
        pairs = zip(items, of_items, strict=True)
        return [{"kind": kind, "title": title, "item": _shown(item), "score": score} for item, score in pairs]

    num_positives, num_explicit = len(row["positives"]), len(row["negatives"])
    of_mined = scores[num_positives + num_explicit :]
    times = Counter(choice.negatives)
    kept = entries("explicit", "explicit", row["negatives"], scores[num_positives : num_positives + num_explicit])
    for index, count in times.items():
        title = f"rank {index + 1}" + (f", {count} times" if count > 1 else "")
        kept += entries("chosen", title, [row["mined"][index]], [of_mined[index]])
    rest = {
        kind: [
            entry
            for index in indices
            for entry in entries(kind, f"rank {index + 1}", [row["mined"][index]], [of_mined[index]])
        ]
        for kind, indices in (
            ("dropped", choice.dropped),
            ("unused", [n for n in range(len(of_mined)) if n not in times and n not in set(choice.dropped)]),
        )
    }
    return rest | {
        "where": row["where"],
        "task": row["task"],
        "query": _shown(row["query"]),
        "positives": entries("positive", "positive", row["positives"], scores[:num_positives]),
        "kept": kept,
        "unfiltered": choice.unfiltered,
    }


def _shown(item: Item) -> list[dict[str, Any]]:
    """Return the parts of an item, with small images."""
    parts = to_item_dict(item)
    instruction = parts["instruction"]
    shown: list[dict[str, Any]] = [{"kind": "instruction", "value": instruction}] if instruction else []
    for part in parts["content"]:
        if isinstance(part, str):
            cut = part if len(part) <= MAX_TEXT_CHARACTERS else part[:MAX_TEXT_CHARACTERS] + " …"
            shown.append({"kind": "text", "value": cut})
        else:
            image = to_rgb(parts["images"][part])
            small = image.copy()
            small.thumbnail((MAX_IMAGE_PIXELS, MAX_IMAGE_PIXELS), Image.Resampling.LANCZOS)
            file = BytesIO()
            small.save(file, format="WEBP", quality=80)
            size = f"{image.width} x {image.height} pixels"
            shown.append({"kind": "image", "value": data_url(file.getvalue()), "size": size})
    return shown
