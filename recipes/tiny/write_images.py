"""Write the OpenMoji drawings as a sample image folder: 3,773 PNG files and their metadata.

    python recipes/tiny/write_images.py runs/images

`metadata.jsonl` lists the name, category, subcategory and skin tone of each file, as in Hugging Face image folders:

    unime embed runs/images runs/vectors
    datasets.load_dataset("imagefolder", data_dir="runs/images")
"""

import argparse
import json
from pathlib import Path

from unime.corpus.corpus import open_corpus


def write_images(folder: Path) -> int:
    """Write the images (96 x 96, on white) and `metadata.jsonl`; return the number of images."""
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
    parser.add_argument("folder", type=Path, help="output folder")
    folder = parser.parse_args().folder
    print(f"{write_images(folder)} images in {folder}")
