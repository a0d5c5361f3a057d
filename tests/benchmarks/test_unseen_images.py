"""The sets of images of the benchmark of unseen images."""

from pathlib import Path

import numpy as np
import unseen_images
from PIL import Image

from unime.openmoji.catalogue import catalogue


def test_a_stamp_has_its_english_description_and_a_white_background(tmp_path: Path):
    def stamp(name: str, description: str | None) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGBA", (4, 4)).save(tmp_path / f"{name}.png")
        if description is not None:
            (tmp_path / f"{name}.txt").write_text(description)

    stamp("animals/frog", "A frog.\nde.utf8=Ein Frosch.\n")
    stamp("animals/frog-1", "A frog!")  # the second with this description
    stamp("food/pear", "Pear")
    stamp("food/unnamed", None)
    images, texts = unseen_images.stamps(tmp_path)
    assert sorted(texts) == ["a frog", "pear"]
    assert all(image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255) for image in images)


def test_dark_drawings_differ_in_the_background_only():
    pizza = next(entry.index for entry in catalogue() if entry.name == "pizza")
    (light,), (dark,) = (
        map(np.asarray, unseen_images.drawn_emoji([pizza], "openmoji", on_dark)) for on_dark in (False, True)
    )
    assert (light[0, 0] == 255).all() and dark[0, 0].max() < 80
    assert (light == dark).all(axis=-1).mean() > 0.2  # the opaque part
    task = unseen_images.task("pizzas", [Image.fromarray(light), Image.fromarray(dark)], ["light", "dark"])
    assert task.chance == 0.5 and task.positives == [[0], [1]]
