"""CPU time to prepare images for the model, beside decoding and the processor's own call.

    python benchmarks/preprocessing.py --output benchmarks/results/preprocessing.json
    python benchmarks/preprocessing.py --quick

Needs no weights: the processors have the image settings of the real checkpoints. One process, one thread of PyTorch;
the three ways alternate in rotation, and medians count, of the times and of the ratio in each round. Where page faults
are slow, as on virtual machines, they take half of the time and blur the ratios. glibc then has to keep freed memory:
set MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ to 1000000000. The ways are:

- `processor`: decode the JPEG and call the processor with the rendered text.
- `unime`: what `encode` does before the forward pass: decode, hash, count the tokens, preprocess.
- `blank images`: the same, but tokens are counted by preprocessing a blank image, as before version 0.2.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from result_files import write
from transformers import ProcessorMixin

from unime import processor_from_backbone
from unime.batching_unime import plan_micro_batches
from unime.image_tokens_unime import _preprocess_blank_images
from unime.processing_unime import normalize_item, to_messages
from unime.windows_unime import read_windows


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for the tiny models

from tiny_models import TINY_MODELS  # noqa: E402


TILE = 336
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [3 * TILE, TILE], [TILE, 3 * TILE]]
ONEVISION = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
# The settings of the published checkpoints, set on the processors of the tiny models.
SETTINGS: dict[str, tuple[dict, dict]] = {
    "qwen2-vl": ({"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 12845056}}, {}),
    "llava-next": (
        {
            "size": {"shortest_edge": TILE},
            "crop_size": {"height": TILE, "width": TILE},
            "image_grid_pinpoints": PINPOINTS,
        },
        {"patch_size": 14},
    ),
    "llava-onevision": (
        {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": ONEVISION},
        {"num_image_tokens": 729},
    ),
    "smolvlm": ({"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}}, {"image_seq_len": 81}),
}
SIZES = {"640x480": (640, 480), "12 MP": (4000, 3000)}


def write_photograph(path: Path, size: tuple[int, int], seed: int) -> None:
    """Write a smooth JPEG of about 2 bits per pixel."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    smooth = coarse.resize(size, Image.Resampling.BICUBIC)
    noise = random.integers(-12, 13, (size[1], size[0], 1))
    Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)).save(path, quality=85)


def load_processor(family: str, folder: Path) -> ProcessorMixin:
    """Return a family's processor with UniME's template and the image settings of a published checkpoint."""
    model, processor = TINY_MODELS[family]()
    image_settings, settings = SETTINGS[family]
    for target, values in ((processor.image_processor, image_settings), (processor, settings)):
        for name, value in values.items():
            setattr(target, name, value)
    processor.save_pretrained(folder / family)
    model.config.save_pretrained(folder / family)
    return processor_from_backbone(str(folder / family))


def ways(processor: ProcessorMixin) -> dict[str, Callable[[Path], None]]:
    """Return the ways to prepare an image file."""

    def with_processor(path: Path) -> None:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        item = normalize_item("", 0) | {"images": [rgb], "content": [0]}
        text = processor.apply_chat_template([to_messages(item)], tokenize=False)
        processor(text=text, images=[[rgb]], padding=True, return_tensors="pt")

    def with_unime(path: Path) -> None:
        (((_, item),),) = read_windows([Image.open(path)], max_items=1)
        (batch,) = plan_micro_batches(processor, {0: item}, max_length=10**6)
        batch.tensors()

    def with_blank_images(path: Path) -> None:
        with_unime(path)
        with Image.open(path) as image:
            _preprocess_blank_images(processor, [image.size])

    return {"processor": with_processor, "unime": with_unime, "blank images": with_blank_images}


def measure(family: str, folder: Path, sizes: dict[str, tuple[int, int]], repetitions: int) -> list[dict]:
    """Return the CPU milliseconds per image of each way, for each size."""
    processor = load_processor(family, folder)
    rows = []
    for name, size in sizes.items():
        path = folder / f"{name}.jpg"
        if not path.exists():
            write_photograph(path, size, seed=len(name))
        times: dict[str, list[float]] = {}
        for repetition in range(repetitions + 1):
            order = list(ways(processor).items())
            # Rotated, as what a way frees and the next one allocates costs time as well.
            for way, prepare in order[repetition % 3 :] + order[: repetition % 3]:
                started = time.process_time()
                prepare(path)
                if repetition:  # the first one warms up
                    times.setdefault(way, []).append(1000 * (time.process_time() - started))
        milliseconds = {way: round(median(values), 1) for way, values in times.items()}
        ratios = [unime / processor for unime, processor in zip(times["unime"], times["processor"], strict=True)]
        rows.append(
            {
                "family": family,
                "size": name,
                "cpu_ms": milliseconds,
                "unime_over_processor": round(median(ratios), 3),
                "quartiles": [round(value, 3) for value in np.quantile(ratios, [0.25, 0.75])],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one small image and one family")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    families = ["qwen2-vl"] if options.quick else list(SETTINGS)
    sizes = {"64x48": (64, 48)} if options.quick else SIZES
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for family in families for row in measure(family, Path(folder), sizes, options.repetitions)]
    if options.output:
        malloc = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
        write(options.output, {"repetitions": options.repetitions, "quick": options.quick} | malloc, rows)


if __name__ == "__main__":
    main()
