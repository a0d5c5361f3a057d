"""Miniature caption retrieval (Flickr30K to DCI), SugarCrepe and SugarCrepe++, of eight images each."""

import json
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value

from ..benchmarks import sugarcrepe_pp
from ..benchmarks.sugarcrepe import KINDS
from .hub_files import gray_tile, save_gray_tile, write_hub_dataset


IMAGES = 8


def write_short_captions(folder: Path, captions: Sequence[Sequence[str]]) -> Path:
    """Write a dataset with the columns of `royokong/flickr30k_test` and `royokong/coco_test`: `image` and `text`."""
    features = Features({"image": Image(), "text": List(Value("string"))})
    rows = {"image": [gray_tile(number) for number in range(len(captions))], "text": captions}
    return write_hub_dataset(folder, {"default": Dataset.from_dict(rows, features)})


def write_sharegpt4v(folder: Path, captions: Sequence[str]) -> Path:
    """Write the JSON file of ShareGPT4V and images beside it, one per caption, and return the file."""
    items = []
    for number, caption in enumerate(captions):
        image = f"coco/train2017/{number}.jpg"
        save_gray_tile(folder / image, number)
        turns = [{"from": "human", "value": "Describe.\n<image>"}, {"from": "gpt", "value": caption}]
        items.append({"id": str(number), "image": image, "conversations": turns})
    path = folder / "share-captioner_coco_lcs_sam_1246k_1107.json"
    path.write_text(json.dumps(items))
    return path


def write_urban1k(folder: Path, captions: dict[int, str]) -> None:
    """Write the content of a caption file for each number, and its image."""
    (folder / "caption").mkdir(parents=True, exist_ok=True)
    for number, caption in captions.items():
        save_gray_tile(folder / "image" / f"{number}.jpg", number)
        (folder / "caption" / f"{number}.txt").write_text(caption)


def write_docci(folder: Path, captions: Sequence[str]) -> None:
    """Write `docci_descriptions.jsonlines` and `images` with a test row per caption, after a row of train."""
    rows = [("train_00000", 0, "a row of another split")]
    rows += [(f"test_{number:05d}", number, caption) for number, caption in enumerate(captions)]
    lines = []
    for example_id, number, caption in rows:
        save_gray_tile(folder / "images" / f"{example_id}.jpg", number)
        row = {"example_id": example_id, "split": example_id.split("_")[0], "image_file": f"{example_id}.jpg"}
        lines.append(json.dumps(row | {"description": caption}))
    (folder / "docci_descriptions.jsonlines").write_text("\n".join(lines) + "\n")


def write_dci(folder: Path, captions: Sequence[tuple[str, str]]) -> None:
    """Write `densely_captioned_images`, given the short and the extra caption of each image."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    names = []
    for number, (short, extra) in enumerate(captions):
        save_gray_tile(folder / "photos" / f"sa_{number}.jpg", number)
        names.append(f"{number}-data.json")
        row = {"image": f"sa_{number}.jpg", "short_caption": short, "extra_caption": extra, "mask_data": {}}
        (folder / "annotations" / names[-1]).write_text(json.dumps(row | {"mask_keys": []}))
    (folder / "splits.json").write_text(json.dumps({"train": names[:-2], "valid": names[-2:-1], "test": names[-1:]}))


def write_sugarcrepe(folder: Path, image_root: Path, captions: dict[str, Sequence[tuple[str, str]]]) -> None:
    """Write SugarCrepe's files, given the true and the false caption of each row, and COCO's `val2017`."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, pairs in captions.items():
        rows = {}
        for number, (caption, negative) in enumerate(pairs):
            name = f"{number:012d}.jpg"
            save_gray_tile(image_root / name, number)
            rows[str(number)] = {"filename": name, "caption": caption, "negative_caption": negative}
        (folder / f"{kind}.json").write_text(json.dumps(rows))


def write_sugarcrepe_pp(folder: Path, image_root: Path, captions: dict[str, Sequence[tuple[str, str, str]]]) -> None:
    """Write SugarCrepe++'s files, given two true captions and the false one of each row, and COCO's `val2017`."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, texts in captions.items():
        rows = []
        for number, (caption, caption2, negative) in enumerate(texts):
            name = f"{number:012d}.jpg"
            save_gray_tile(image_root / name, number)
            captions_of_row = {"caption": caption, "caption2": caption2, "negative_caption": negative}
            rows.append({"id": number, "filename": name, **captions_of_row})
        (folder / f"{kind}.json").write_text(json.dumps(rows))


def write_miniature(folder: Path) -> dict[str, str]:
    """Write the eight datasets, and return the arguments that open them."""
    each = range(IMAGES)
    short = [[f"{word} number {number}" for word in ("a", "the", "one", "this", "that")] for number in each]
    for name in ("flickr30k_test", "coco_test"):
        write_short_captions(folder / name, short)
    sharegpt4v = write_sharegpt4v(folder / "sharegpt4v", [f"This is number {number}.\nIt is gray." for number in each])
    write_urban1k(folder / "Urban1k", {number: f"number {number} in a street\n" for number in each})
    write_docci(folder / "docci", [f"A gray tile of number {number}. It fills the image." for number in each])
    dci = [(f"A gray tile of number {number}", "It fills the image.\nNothing else is there.") for number in each]
    write_dci(folder / "densely_captioned_images", dci)
    pairs = [(f"a tile of number {number}", f"a tile of number {(number + 1) % IMAGES}") for number in each]
    write_sugarcrepe(folder / "sugar-crepe" / "data", folder / "val2017", dict.fromkeys(KINDS, pairs))
    triples = [(caption, f"a gray tile, number {row}", negative) for row, (caption, negative) in enumerate(pairs)]
    write_sugarcrepe_pp(folder / "scpp" / "data", folder / "val2017", dict.fromkeys(sugarcrepe_pp.KINDS, triples))
    return {
        "flickr30k_source": "flickr30k_test",
        "coco_source": "coco_test",
        "sharegpt4v_captions": f"sharegpt4v/{sharegpt4v.name}",
        "sharegpt4v_images": "sharegpt4v",
        "urban1k_folder": "Urban1k",
        "docci_captions": "docci/docci_descriptions.jsonlines",
        "docci_images": "docci/images",
        "dci_folder": "densely_captioned_images",
        "sugarcrepe_folder": "sugar-crepe/data",
        "sugarcrepe_pp_folder": "scpp/data",
        "sugarcrepe_images": "val2017",
    }
