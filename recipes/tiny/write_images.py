"""Write the named images of the OpenMoji world as a folder to try things on: 3,773 PNG files and their metadata.

    python recipes/tiny/write_images.py runs/images

`metadata.jsonl` says of each file its name, category, subcategory and skin tone, as Hugging Face's image folders do:

    unime embed runs/images runs/vectors
    datasets.load_dataset("imagefolder", data_dir="runs/images")
"""

import argparse
import json
from pathlib import Path

from unime.corpus.corpus import open_corpus


def write_images(folder: Path) -> int:
    """Write the images (96 x 96, on white) and `metadata.jsonl`; returns their number."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for entry in open_corpus("openmoji"):
        name = f"{entry.metadata['code']}.png"
        (folder / name).write_bytes(entry.image)
        lines.append(json.dumps({"file_name": name, **entry.metadata}, ensure_ascii=False) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print(f"{write_images(folder)} images in {folder}")
