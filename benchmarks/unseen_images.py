"""What a model scores on images that it was not trained on: photographs, and the emoji of other artists.

    make styles && pip install scikit-image   # the drawings of four artists from npm, and photographs
    python benchmarks/unseen_images.py        # unime-tiny
    python benchmarks/unseen_images.py --model org/UniME

Each caption retrieves its image among those of its set: twenty photographs that scikit-image and scikit-learn ship,
with captions of ours, and 400 emoji of each style, drawn by lot, with their names. OpenMoji is the style that
unime-tiny was trained on. Writes benchmarks/results/unseen_images.json.
"""

import argparse
import random
from importlib.resources import files
from pathlib import Path

import numpy as np
import result_files
from PIL import Image

from unime.eval.encoders.loading import load_encoder
from unime.eval.tasks import RetrievalTask, evaluate
from unime.openmoji.catalogue import catalogue, drawings
from unime.openmoji.styles import PACKAGES, has_drawing, style_drawings
from unime.processing_unime import to_rgb


ROOT = Path(__file__).resolve().parents[1]
EMOJI_PER_STYLE = 400
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


def emoji(style: str) -> tuple[list[Image.Image], list[str]]:
    """Return emoji of a style on white, with different names, and their names; the same emoji for every style."""
    drawn = np.logical_and.reduce([has_drawing(other) for other in PACKAGES])
    pixels = drawings() if style == "openmoji" else style_drawings(style)
    by_name = {entry.name: entry.index for entry in catalogue() if drawn[entry.index]}
    names = random.Random(0).sample(sorted(by_name), EMOJI_PER_STYLE)
    return [to_rgb(Image.fromarray(pixels[by_name[name]])) for name in names], names


def task(name: str, images: list[Image.Image], captions: list[str]) -> RetrievalTask:
    """Return the task to find the image of each caption."""
    queries = [{"text": caption, "instruction": QUERY} for caption in captions]
    candidates = [{"image": image, "instruction": CANDIDATE} for image in images]
    return RetrievalTask(name, "retrieval", queries, candidates, [[index] for index in range(len(images))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "unime-tiny"))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "unseen_images.json")
    args = parser.parse_args()
    tasks = [task(style, *emoji(style)) for style in ("openmoji", *PACKAGES)] + [task("photographs", *photographs())]
    encode = load_encoder(args.model).encode
    scores = evaluate(encode, tasks, model=Path(args.model).name, benchmark="unseen images")[0]["tasks"]
    rows = [
        {"images": name, "candidates": of_set["candidates"], "chance": 1 / of_set["candidates"]}
        | {metric: of_set[metric] for metric in ("hit@1", "R@10")}
        for name, of_set in scores.items()
    ]
    result_files.write(args.output, {"model": Path(args.model).name, "seed": 0}, rows)
    print(result_files.table(rows))


if __name__ == "__main__":
    main()
