"""`unime index` of a folder of clip art: images per second, time until Ctrl-C is answered, and size of the log.

    python benchmarks/clip_art.py --output benchmarks/results/clip_art.json
    python benchmarks/clip_art.py --quick

Writes drawings of 48 to 512 pixels as PNG with transparency, PNG with a palette, GIF, JPEG (one in ten with damaged
EXIF, about which Pillow warns) and WebP, and embeds them with unime-tiny. `decoder` opens the files and converts them
to RGB with as many threads as an index has readers, and does nothing else; `unime index` includes its start.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from result_files import table, write

from unime.index.entry_embedding import READER_THREADS
from unime.index.index import Index
from unime.processing_unime import to_rgb


TINY = str(Path(__file__).resolve().parents[1] / "checkpoints" / "unime-tiny")
DAMAGED_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01"
DRAWN_SHAPES = 12


def write_drawing(folder: Path, number: int) -> None:
    """Write drawing `number`, whose shapes, size and format follow from it."""
    choice = random.Random(number)
    size = choice.randint(48, 512), choice.randint(48, 512)
    image = Image.new("RGBA", size, (255, 255, 255, 0))
    draw = ImageDraw.Draw(image)
    for shape in range(DRAWN_SHAPES):
        points = [(choice.randint(0, size[0]), choice.randint(0, size[1])) for _ in range(3 + shape % 3)]
        draw.polygon(points, fill=(*choice.randbytes(3), 255), outline="black")
    formats = {
        0: lambda: image.save(folder / f"{number}.png", compress_level=1),
        1: lambda: image.quantize(32).save(folder / f"{number}.png", compress_level=1),
        2: lambda: image.quantize(32).save(folder / f"{number}.gif"),
        3: lambda: image.convert("RGB").save(folder / f"{number}.jpg", exif=DAMAGED_EXIF if number % 10 == 3 else b""),
        4: lambda: image.save(folder / f"{number}.webp", method=0),
    }
    formats[number % 5]()


def decode(path: Path) -> None:
    """Read an image and nothing else."""
    with Image.open(path) as image:
        to_rgb(image)


def start_index(source: Path, output: Path) -> subprocess.Popen:
    """Start `unime index`."""
    command = [sys.executable, "-m", "unime.cli", "index", str(source), str(output), "--model", TINY]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def interrupt(source: Path, output: Path, after_entries: int) -> tuple[float, int]:
    """Return the seconds from Ctrl-C to the end of the process, and the entries that the index keeps."""
    process = start_index(source, output)
    while not (output / "entries.lance").is_dir() or len(Index.open(output)) < after_entries:
        if process.poll() is not None:
            raise RuntimeError("the index was finished before it could be interrupted: take more images")
        time.sleep(0.05)
    started = time.perf_counter()
    process.send_signal(signal.SIGINT)
    process.communicate()
    return time.perf_counter() - started, len(Index.open(output))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--quick", action="store_true", help="20 images, without Ctrl-C")
    options = parser.parse_args(arguments)
    count = 20 if options.quick else options.images
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "drawings")
        source.mkdir()
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda number: write_drawing(source, number), range(count)))
        paths = sorted(source.iterdir())
        started = time.perf_counter()
        with ThreadPoolExecutor(READER_THREADS) as threads:
            list(threads.map(decode, paths))
        decoder_seconds = time.perf_counter() - started
        started = time.perf_counter()
        process = start_index(source, Path(folder, "index"))
        _, log = process.communicate()
        index_seconds = time.perf_counter() - started
        if process.returncode:
            raise RuntimeError(f"unime index failed: {log.decode()[-2000:]}")
        row: dict[str, Any] = {
            "images": len(Index.open(Path(folder, "index"))),
            "decoder, images per second": count / decoder_seconds,
            "unime index, images per second": count / index_seconds,
            "bytes of the log": len(log),
            "lines of the log": log.count(b"\n"),
        }
        if not options.quick:
            row["seconds to answer Ctrl-C"], row["images kept"] = interrupt(
                source, Path(folder, "interrupted"), count // 4
            )
    print(table([row]))
    if options.output:
        write(options.output, {"images": count}, [row])


if __name__ == "__main__":
    main()
