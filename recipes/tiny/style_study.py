"""What makes a small vision tower recognise the drawings of an artist whom it was not trained on: short trainings.

    make styles
    python recipes/tiny/style_study.py                        # all variants, those without results only
    python recipes/tiny/style_study.py --variant "no colours"

Each variant trains a random tower to name 100 emoji that all artists draw, and differs from the reference in one
thing. It is then measured on drawings on white, hit@1 of the name among the 100: of OpenMoji, which it was trained on;
of OpenMoji on dark backgrounds; of Fluent, which only the variant with four styles was trained on; and of EmojiOne.
Fluent is for decisions, EmojiOne for the report only: it is the held-out artist of the benchmark.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from transformers import AutoModel, SegformerConfig
from vision import convolutional_tower, patch_tower

from unime.data.image_augmentation import IMAGE_AUGMENTATIONS, ImageAugmentation
from unime.openmoji.catalogue import catalogue
from unime.openmoji.dataset import draw_image, in_style
from unime.openmoji.styles import HELD_OUT_STYLE, PACKAGES, check_training_styles, has_drawing
from unime.openmoji.views import BACKGROUNDS, DARK_BACKGROUNDS, TRANSPARENT, View


RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "style_study.json"
NAMES = 100
BATCH = 32
LEARNING_RATE = 2e-3
VALIDATION_STYLE = "fluent"


def overlapping_tower() -> SegformerConfig:
    """Return the configuration of a tower of overlapping convolutions with one output per cell of a scene."""
    return SegformerConfig(
        hidden_sizes=[24, 48, 128, 256],  # on grids of 24, 12, 6 and 3
        hidden_size=256,  # where LLaVA's projector looks for it
        depths=[1, 1, 2, 2],
        num_attention_heads=[1, 2, 4, 8],
        mlp_ratios=[2, 2, 2, 2],
        sr_ratios=[8, 4, 2, 1],
        reshape_last_stage=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        drop_path_rate=0.0,
        initializer_range=0.06,  # the common 0.02 suits wider layers
    )


TOWERS = {"segformer": overlapping_tower, "siglip": patch_tower, "resnet": convolutional_tower}


@dataclass(frozen=True)
class Variant:
    """The tower, the artists and the augmentations of a training; the defaults are the reference."""

    tower: str = "segformer"
    styles: tuple[str, ...] = ("openmoji", "twemoji", "noto")
    augmentations: tuple[str, ...] = IMAGE_AUGMENTATIONS


REFERENCE = Variant()
VARIANTS = {
    "reference: segformer, 3 styles, all": REFERENCE,
    "no augmentation": replace(REFERENCE, augmentations=()),
    "1 style": replace(REFERENCE, styles=("openmoji",)),
    "4 styles": replace(REFERENCE, styles=(*REFERENCE.styles, VALIDATION_STYLE)),
    "siglip, patches of 32 pixels": replace(REFERENCE, tower="siglip"),
    "resnet, strided convolutions": replace(REFERENCE, tower="resnet"),
    "2 styles": replace(REFERENCE, styles=("openmoji", "twemoji")),
    **{
        f"no {kind}": replace(REFERENCE, augmentations=tuple(other for other in IMAGE_AUGMENTATIONS if other != kind))
        for kind in IMAGE_AUGMENTATIONS
    },
}


class NamedTower(nn.Module):
    """A tower with one learned vector per name, compared with the mean of the patches."""

    def __init__(self, tower: str):
        super().__init__()
        config = TOWERS[tower]()
        self.tower = AutoModel.from_config(config)
        self.names = nn.Linear(config.hidden_size, NAMES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the scores of the names, `(batch, NAMES)`, for `(batch, 3, 96, 96)` pixels from -1 to 1."""
        patches = self.tower(pixels).last_hidden_state  # (batch, patches, dimensions) or (batch, dimensions, 3, 3)
        return self.names(patches.mean(dim=1) if patches.ndim == 3 else patches.mean(dim=(2, 3)))


def named_emoji(seed: int) -> list[int]:
    """Return the indices of emoji without skin tones that all artists draw, with different names."""
    drawn = np.logical_and.reduce([has_drawing(style) for style in PACKAGES])
    by_name = {entry.name: entry.index for entry in catalogue() if entry.tone is None and drawn[entry.index]}
    return random.Random(seed).sample(list(by_name.values()), NAMES)


def pixels(images: Sequence) -> Tensor:
    """Return images as model input."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1


def train(variant: Variant, emoji: Sequence[int], steps: int, seed: int) -> NamedTower:
    """Train a variant from random weights."""
    check_training_styles(variant.styles)
    torch.manual_seed(seed)
    source = random.Random(seed)
    model, augmentation = NamedTower(variant.tower), ImageAugmentation(variant.augmentations, seed)
    optimizer = AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
    scheduler = OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1)
    for _ in range(steps):
        labels = [source.randrange(NAMES) for _ in range(BATCH)]
        images = []
        for label in labels:
            view = View.sample(emoji[label], source)
            background = TRANSPARENT if variant.augmentations else view.background
            spec = in_style(replace(view, background=background).spec, source.choice(variant.styles))
            images.append(augmentation.image(draw_image(spec), source))
        loss = cross_entropy(model(pixels(images)), torch.tensor(labels), label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model.eval()


@torch.inference_mode()
def hit_at_1(model: NamedTower, emoji: Sequence[int], style: str, dark: bool = False) -> float:
    """Return the share of drawings whose name has the highest score."""
    images = []
    for index in emoji:
        background = len(BACKGROUNDS) + index % len(DARK_BACKGROUNDS) if dark else 0
        images.append(draw_image(in_style(View.whole(index, background).spec, style)))
    scores = torch.cat([model(pixels(images[start : start + BATCH])) for start in range(0, len(images), BATCH)])
    return (scores.argmax(dim=1) == torch.arange(len(emoji))).float().mean().item()


def table(results: dict[str, dict]) -> str:
    """Return the results as a Markdown table in percent."""
    columns = ("openmoji", "openmoji, dark", VALIDATION_STYLE, HELD_OUT_STYLE)
    lines = [f"| hit@1 of {NAMES} names, % | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * result[column]:.1f}" for column in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, help="run this variant only, even if it has results")
    parser.add_argument("--steps", type=int, default=240, help=f"training steps of {BATCH} images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    saved = json.loads(options.output.read_text()) if options.output.exists() else {}
    key = {"steps": options.steps, "seed": options.seed, "names": NAMES, "batch": BATCH}
    results = saved.get("results", {}) if saved.get("settings") == key else {}
    emoji = named_emoji(options.seed)
    for name in [options.variant] if options.variant else [name for name in VARIANTS if name not in results]:
        start = time.process_time()
        model = train(VARIANTS[name], emoji, options.steps, options.seed)
        seconds = round(time.process_time() - start)
        results[name] = asdict(VARIANTS[name]) | {
            "parameters": sum(parameter.numel() for parameter in model.tower.parameters()),
            "CPU seconds": seconds,
            "openmoji": hit_at_1(model, emoji, "openmoji"),
            "openmoji, dark": hit_at_1(model, emoji, "openmoji", dark=True),
            **{style: hit_at_1(model, emoji, style) for style in (VALIDATION_STYLE, HELD_OUT_STYLE)},
        }
        ordered = {variant: results[variant] for variant in VARIANTS if variant in results}
        options.output.write_text(json.dumps({"settings": key, "results": ordered}, indent=1) + "\n")
        print(f"{table(ordered)}\n", flush=True)


if __name__ == "__main__":
    main()
