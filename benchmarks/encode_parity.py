"""Parity of all interfaces: embed the same items with each and compare with `UniMEModel.encode`.

    python benchmarks/encode_parity.py          # needs `unime[all,slow]`; --items 200, --skip Ray

The items are OpenMoji scenes: captions, images, and both together. Interfaces that do not need the package run in an
interpreter that cannot import `unime`. Writes benchmarks/results/encode_parity.json; exits with status 1 if an
interface differs.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
from PIL import Image

from unime import load_model
from unime.openmoji.dataset import openmoji_rows


ROOT = Path(__file__).resolve().parents[1]
MAX_DIFFERENCE = 1e-5
INTERFACES = (
    "AutoModel, remote code",
    "SentenceTransformer, remote code",
    "SentenceTransformer, plain export",
    "unime embed",
    "unime serve",
    "Ray",
)
# Arguments: folder of the model, loader, file of the items, output file.
WITHOUT_THE_PACKAGE = """
import io, json, sys
import numpy as np
import pyarrow.parquet
from PIL import Image

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "unime":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
folder, loader, items, output = sys.argv[1:]
image = lambda encoded: Image.open(io.BytesIO(encoded)).convert("RGB")
items = [
    {name: image(value) if name == "image" else value for name, value in row.items() if name != "id" and value}
    for row in pyarrow.parquet.read_table(items).to_pylist()
]
if loader == "AutoModel":
    from transformers import AutoModel
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype="float32")
else:
    from sentence_transformers import SentenceTransformer
    trusted = {"trust_remote_code": True} if loader == "remote" else {}
    model = SentenceTransformer(folder, model_kwargs={"dtype": "float32"}, **trusted)
np.save(output, model.encode(items))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "unime-tiny", help="UniME checkpoint")
    parser.add_argument("--items", type=int, default=200, help="number of items")
    parser.add_argument("--skip", nargs="*", default=[], choices=INTERFACES, help="interfaces to leave out")
    default = ROOT / "benchmarks" / "results" / "encode_parity.json"
    parser.add_argument("--output", type=Path, default=default, help="output file")
    script = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_items(script.items, Path(folder) / "items.parquet")
        stored = pa.parquet.read_table(corpus).to_pylist()
        model, processor = load_model(str(script.model), dtype="float32")
        expected = model.encode([to_item(row) for row in stored], processor)
        differences = {}
        for interface in (interface for interface in INTERFACES if interface not in script.skip):
            print(f"{interface} ...", file=sys.stderr, flush=True)
            embeddings = embed(interface, script.model.resolve(), corpus, stored, Path(folder))
            differences[interface] = float(np.abs(embeddings - expected).max())
    kinds = {"texts": 0, "images": 0, "both": 0}
    for row in stored:
        kinds["both" if row["text"] and row["image"] else "texts" if row["text"] else "images"] += 1
    script.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"model": script.model.name, "items": kinds, "largest difference": differences}
    script.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"| {len(stored)} items ({', '.join(f'{count} {kind}' for kind, count in kinds.items())}) | difference |")
    print("| --- | ---: |")
    for interface, difference in differences.items():
        print(f"| {interface} | {difference:.1e} |")
    raise SystemExit(any(difference > MAX_DIFFERENCE for difference in differences.values()))


def write_items(size: int, file: Path) -> Path:
    """Write captions, images, and both together in turn, from rows of scenes."""
    items = []
    for position, row in enumerate(openmoji_rows("test", size, tasks=["scene_t2i"])):
        text, encoded = row["query"]["text"], BytesIO()
        row["positive"]["image"].save(encoded, "png")
        kind = position % 3
        items.append(
            {
                "id": f"{position:06}",
                "text": None if kind == 1 else text,
                "image": None if kind == 0 else encoded.getvalue(),
            }
        )
    schema = pa.schema({"id": pa.string(), "text": pa.string(), "image": pa.binary()})
    pa.parquet.write_table(pa.Table.from_pylist(items, schema=schema), file)
    return file


def to_item(row: dict) -> dict:
    item = {"text": row["text"]} if row["text"] else {}
    return item | ({"image": Image.open(BytesIO(row["image"])).convert("RGB")} if row["image"] else {})


def embed(interface: str, model: Path, corpus: Path, stored: list[dict], folder: Path) -> np.ndarray:
    """Embed all items with one interface; `(items, dimensions)`."""
    if interface == "unime serve":
        return embed_over_http(model, stored)
    if interface == "unime embed":
        run("-m", "unime.cli", "embed", corpus, folder / "embed", "--model", model, "--prompt", "document")
        return read_embeddings(folder / "embed")
    if interface == "Ray":
        settings = ("--source", corpus, "--output_dir", folder / "ray", "--model", model, "--instruction", "")
        run(ROOT / "recipes" / "embed_corpus.py", *settings)
        return read_embeddings(folder / "ray" / "vectors")
    checkpoint, loader = model, "AutoModel" if interface.startswith("AutoModel") else "remote"
    if interface.endswith("plain export"):
        checkpoint, loader = folder / "plain", "plain"
        run("-m", "unime.cli", "export", "--format", "plain", "--model", model, "--output", checkpoint)
    run("-c", WITHOUT_THE_PACKAGE, checkpoint, loader, corpus, folder / "vectors.npy")
    return np.load(folder / "vectors.npy")


def run(*words: object) -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, *map(str, words)], env=os.environ | quiet, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words[0]} failed:\n{done.stderr[-3000:]}")


def read_embeddings(folder: Path) -> np.ndarray:
    table = pa.dataset.dataset(folder, format="parquet").to_table(columns=["id", "embedding"]).sort_by("id")
    return np.stack(table["embedding"].to_numpy())


def embed_over_http(model: Path, stored: list[dict]) -> np.ndarray:
    command = [sys.executable, "-m", "unime.cli", "serve", "--model", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(line for line in server.stdout if "/v1" in line).split()[-1]
            with httpx2.Client(timeout=120) as client:
                wait_until_healthy(client, address)
                answers = [
                    client.post(f"{address}/embeddings", json=conversation(row)).raise_for_status() for row in stored
                ]
        finally:
            server.terminate()
    return np.array([answer.json()["data"][0]["embedding"] for answer in answers], np.float32)


def wait_until_healthy(client: httpx2.Client, address: str) -> None:
    for _ in range(600):
        try:
            client.get(address.removesuffix("/v1") + "/health").raise_for_status()
            return
        except httpx2.TransportError:  # the server refuses connections until the model is loaded
            time.sleep(0.1)
    raise SystemExit("the server was not ready within a minute")


def conversation(row: dict) -> dict:
    parts = [{"type": "text", "text": row["text"]}] if row["text"] else []
    if row["image"]:
        url = "data:image/png;base64," + base64.b64encode(row["image"]).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"messages": [{"role": "user", "content": parts}]}


if __name__ == "__main__":
    main()
