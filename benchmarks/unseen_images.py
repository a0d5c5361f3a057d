"""What a model scores on images that it was not trained on: other artists, dark backgrounds, stamps, photographs.

    make styles && pip install scikit-image   # the drawings of four artists from npm, and photographs
    apt-get install tuxpaint-stamps-default   # stamps; or unpack its .deb and give --stamps
    python benchmarks/unseen_images.py        # unime-tiny
    python benchmarks/unseen_images.py --model org/UniME

Each caption retrieves its image among those of its set: 400 emoji without skin tones of each style, drawn by lot, with
their names; 400 stamps of Tux Paint with their English descriptions; and twenty photographs that scikit-image and
scikit-learn ship, with captions of ours. OpenMoji is the style that unime-tiny was trained on. `untrained` is the
baseline of the OpenMoji benchmark: gradient histograms and colours, compared with the mean of the other artists'
drawings. Writes benchmarks/results/unseen_images.json.
"""

import argparse
import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import result_files
from PIL import Image

from unime.eval.encoders.loading import load_encoder
from unime.eval.tasks import RetrievalTask, evaluate
from unime.openmoji.catalogue import catalogue
from unime.openmoji.dataset import draw_image, in_style
from unime.openmoji.drawing_features import class_mean_scores
from unime.openmoji.styles import OPENMOJI, PACKAGES, STYLES, has_drawing
from unime.openmoji.views import BACKGROUNDS, DARK_BACKGROUNDS, View
from unime.processing_unime import to_rgb


ROOT = Path(__file__).resolve().parents[1]
EMOJI_PER_STYLE = 400
STAMPS = 400
QUERY, CANDIDATE = "Find me an everyday image that matches the given caption:", "Represent the given image."
PHOTOGRAPHS = {
    "skimage/data/astronaut.png": "an astronaut in an orange space suit",
    "skimage/data/brick.png": "a brick wall",
    "skimage/data/camera.png": "a photographer with a camera on a tripod",
    "skimage/data/cell.png": "a cell under a microscope",
    "skimage/data/chelsea.png": "the face of a tabby cat",
    "skimage/data/clock_motion.png": "a blurred clock",
    "skimage/data/coffee.png": "a cup of coffee on a wooden table",
    "skimage/data/coins.png": "ancient coins",
    "skimage/data/grass.png": "grass",
    "skimage/data/gravel.png": "gravel",
    "skimage/data/horse.png": "the silhouette of a horse",
    "skimage/data/hubble_deep_field.jpg": "galaxies in deep space",
    "skimage/data/ihc.png": "stained tissue under a microscope",
    "skimage/data/moon.png": "the surface of the moon",
    "skimage/data/motorcycle_left.png": "a motorcycle in a garage",
    "skimage/data/page.png": "a page of printed text",
    "skimage/data/retina.jpg": "the retina of an eye",
    "skimage/data/rocket.jpg": "a rocket on its launch pad",
    "sklearn/datasets/images/china.jpg": "a Chinese temple",
    "sklearn/datasets/images/flower.jpg": "a pink flower",
}


def photographs() -> tuple[list[Image.Image], list[str]]:
    """Return the photographs and their captions."""
    images = []
    for path in PHOTOGRAPHS:
        package, _, name = path.partition("/")
        with (files(package) / name).open("rb") as file, Image.open(file) as image:
            images.append(to_rgb(image))
    return images, list(PHOTOGRAPHS.values())


def emoji() -> dict[str, int]:
    """Return names and catalogue indices of emoji without skin tones that every artist draws, drawn by lot."""
    drawn = np.logical_and.reduce([has_drawing(style) for style in PACKAGES])
    by_name = {entry.name: entry.index for entry in catalogue() if entry.tone is None and drawn[entry.index]}
    return {name: by_name[name] for name in random.Random(0).sample(sorted(by_name), EMOJI_PER_STYLE)}


def drawn_emoji(indices: Sequence[int], style: str, dark: bool = False) -> list[Image.Image]:
    """Return the drawings of a style on white, or on dark backgrounds."""
    backgrounds = [len(BACKGROUNDS) + index % len(DARK_BACKGROUNDS) if dark else 0 for index in indices]
    views = [View.whole(index, background) for index, background in zip(indices, backgrounds, strict=True)]
    return [draw_image(in_style(view.spec, style)) for view in views]


def stamps(folder: Path) -> tuple[list[Image.Image], list[str]]:
    """Return stamps stored as PNG with different descriptions, drawn by lot, on white."""
    by_text = {}
    for path in sorted(folder.rglob("*.png")):
        description = path.with_suffix(".txt")
        if description.exists():
            text = description.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip().rstrip(".!")
            by_text.setdefault(text.lower(), path)
    texts = random.Random(0).sample(sorted(by_text), min(STAMPS, len(by_text)))
    images = []
    for text in texts:
        with Image.open(by_text[text]) as image:
            images.append(to_rgb(image))
    return images, texts


def task(name: str, images: list[Image.Image], captions: list[str]) -> RetrievalTask:
    """Return the task to find the image of each caption."""
    queries = [{"text": caption, "instruction": QUERY} for caption in captions]
    candidates = [{"image": image, "instruction": CANDIDATE} for image in images]
    return RetrievalTask(name, "retrieval", queries, candidates, [[index] for index in range(len(images))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "unime-tiny"))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "unseen_images.json")
    parser.add_argument(
        "--stamps", type=Path, default=Path("/usr/share/tuxpaint/stamps"), help="Tux Paint's folder of stamps"
    )
    args = parser.parse_args()
    names = emoji()
    indices, texts = list(names.values()), list(names)
    baselines = {
        style: class_mean_scores(style, [[index] for index in indices], indices, range(len(indices)))[0]
        for style in STYLES
    }
    tasks = [task(style, drawn_emoji(indices, style), texts) for style in STYLES]
    tasks.insert(1, task("openmoji on dark", drawn_emoji(indices, OPENMOJI, dark=True), texts))
    if args.stamps.is_dir():
        tasks.append(task("stamps", *stamps(args.stamps)))
    else:
        print(f"Without stamps: {args.stamps} does not exist; install tuxpaint-stamps-default or give --stamps.")
    try:
        tasks.append(task("photographs", *photographs()))
    except ModuleNotFoundError as error:
        print(f"Without photographs: {error}; pip install scikit-image.")
    encode = load_encoder(args.model).encode
    scores = evaluate(encode, tasks, model=Path(args.model).name, benchmark="unseen images")[0]["tasks"]
    rows = [
        {"images": name, "candidates": of_set["candidates"], "chance": of_set["chance"]}
        | {"untrained": baselines.get(name, ""), "hit@1": of_set["hit@1"], "R@10": of_set["R@10"]}
        for name, of_set in scores.items()
    ]
    result_files.write(args.output, {"model": Path(args.model).name, "seed": 0}, rows)
    print(result_files.table(rows))


if __name__ == "__main__":
    main()
