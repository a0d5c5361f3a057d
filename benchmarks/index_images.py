"""Images per second of `unime index` on one core and on all cores, beside sentence-transformers' `encode`.

    python benchmarks/index_images.py --output benchmarks/results/index_images.json
    python benchmarks/index_images.py --quick

Writes a folder of 12-megapixel JPEGs and embeds it with unime-tiny. Every measurement is a process of its own,
whose torch operators run in one thread, and includes its start and the loading of the model; the ways alternate, and
medians count.

- `1 core`: `unime index` on one core, where its threads cannot work in parallel.
- `all cores`: `unime index` on all cores; threads decode the images and make the tensors.
- `all cores, --draft-jpegs`: the same, decoding at a fraction of the size.
- `sentence-transformers`: `SentenceTransformer.encode` of the list of opened images, in steps of 32.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from preprocessing import write_photograph
from result_files import table, write


TINY = str(Path(__file__).resolve().parents[1] / "checkpoints" / "unime-tiny")
ONE_CORE = "1 core"
DISTINCT_IMAGES = 16  # the others are copies with a comment of their own, which indexing does not take for equal
SENTENCE_TRANSFORMER = """
import sys
from pathlib import Path
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[2], trust_remote_code=True, device="cpu", model_kwargs={"dtype": "float32"})
paths = sorted(Path(sys.argv[1]).iterdir())
for start in range(0, len(paths), 32):  # all at once would be decoded at once
    model.encode([Image.open(path) for path in paths[start : start + 32]], show_progress_bar=False)
"""


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write `count` JPEGs."""
    for number in range(count):
        path = folder / f"{number:04d}.jpg"
        if number < DISTINCT_IMAGES:
            write_photograph(path, size, number)
        else:
            original = (folder / f"{number % DISTINCT_IMAGES:04d}.jpg").read_bytes()
            path.write_bytes(original + number.to_bytes(4, "big"))


def commands(photographs: Path, output: Path) -> dict[str, list[str]]:
    """Return the command line of each way."""
    index = [sys.executable, "-m", "unime.cli", "index", str(photographs), str(output), "--model", TINY]
    return {
        ONE_CORE: index,
        "all cores": index,
        "all cores, --draft-jpegs": [*index, "--draft-jpegs"],
        "sentence-transformers": [sys.executable, "-c", SENTENCE_TRANSFORMER, str(photographs), TINY],
    }


def measure(photographs: Path, output: Path, way: str) -> float:
    """Return the seconds that one way takes."""
    command = commands(photographs, output)[way]
    shutil.rmtree(output, ignore_errors=True)
    cores = os.sched_getaffinity(0)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    try:
        if way == ONE_CORE:
            os.sched_setaffinity(0, {min(cores)})  # a process that is started inherits it
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    finally:
        os.sched_setaffinity(0, cores)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{way} failed: {errors.decode()[-2000:]}")
    return time.perf_counter() - started


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="four small images, once")
    options = parser.parse_args(arguments)
    count, repetitions = (4, 1) if options.quick else (options.images, options.repetitions)
    size = (64, 48) if options.quick else (4000, 3000)
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder, "photographs")
        photographs.mkdir()
        write_photographs(photographs, count, size)
        ways = list(commands(photographs, Path(folder)))
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for repetition in range(repetitions):
            turn = repetition % len(ways)
            for way in ways[turn:] + ways[:turn]:
                seconds[way].append(measure(photographs, Path(folder, "index"), way))
    rows = [
        {
            "way": way,
            "images per second": count / median(times),
            "speedup over 1 core": median(one / own for one, own in zip(seconds[ONE_CORE], times, strict=True)),
        }
        for way, times in seconds.items()
    ]
    print(table(rows))
    if options.output:
        write(options.output, {"images": count, "size": size, "repetitions": repetitions, "seconds": seconds}, rows)


if __name__ == "__main__":
    main()
