"""Parity of all interfaces: embed the same items with each and compare with `UniMEModel.encode`.

    python benchmarks/encode_parity.py          # needs `unime[all,slow]`; --skip Ray

120 ordinary items, OpenMoji scenes and captions, and 10 of each kind that libraries treat differently: texts beyond
the maximum length, several images, empty and URL-like texts, images with 16 bits, a wide gamut or transparency.
Interfaces that do not need the package run in an interpreter that cannot import `unime`; vLLM runs if `make test-vllm`
has built its environment. Writes benchmarks/results/encode_parity.json; exits with status 1 if an interface differs
for ordinary items.
"""

import argparse
import base64
import json
import os
import struct
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
from PIL import Image, ImageCms

from unime import load_model
from unime.openmoji.dataset import openmoji_rows


ROOT = Path(__file__).resolve().parents[1]
VLLM = ROOT / ".venv-vllm" / "bin" / "vllm"
MAX_DIFFERENCE = 1e-5  # of a component, for ordinary items
ORDINARY, HARD = (
    ("text", "image", "both"),
    (
        "several images",
        "long text",
        "long text, image",
        "empty text",
        "URL as text",
        "16 bits",
        "wide gamut",
        "transparent",
    ),
)
ORDINARY_ITEMS, HARD_ITEMS = 40, 10  # of each kind
URLS = (
    "https://example.com/cat.png",
    "data:image/png;base64,iVBORw0KGgo=",
    "cat.jpg",
    "http://example.com",
    "/etc/hosts",
)
# Colorants of Display P3, XYZ in the connection space of ICC profiles (D50); ICC writes them in units of 1/65536.
DISPLAY_P3 = {
    b"rXYZ": (0.51512, 0.2412, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.1571, 0.06657, 0.78407),
}
INTERFACES = (
    "AutoModel, remote code",
    "SentenceTransformer, remote code",
    "SentenceTransformer, native",
    "unime embed",
    "unime serve",
    "vLLM",
    "Ray",
)
# Arguments: folder of the model, loader, file of the items, output file. Writes embeddings by kind, or an error.
WITHOUT_THE_PACKAGE = """
import io, sys
import numpy as np
import pyarrow.parquet
from PIL import Image

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "unime":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
folder, loader, items, output = sys.argv[1:]
if loader == "AutoModel":
    from transformers import AutoModel
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype="float32")
else:
    from sentence_transformers import SentenceTransformer
    trusted = {"trust_remote_code": True} if loader == "remote" else {}
    model = SentenceTransformer(folder, model_kwargs={"dtype": "float32"}, **trusted)
kinds = {}
for row in pyarrow.parquet.read_table(items).to_pylist():
    images = [Image.open(io.BytesIO(encoded)) for encoded in row["images"]]
    item = {"text": row["text"]} if row["text"] is not None else {}
    if images:
        item["image"] = images[0] if len(images) == 1 else images
    kinds.setdefault(row["kind"], []).append(item)
results = {}
for kind, items in kinds.items():
    try:
        results[kind] = model.encode(items)
    except Exception as error:  # whatever the other library raises is its result
        results[kind] = np.array(f"{type(error).__name__}: {error}"[:300])
np.savez(output, **results)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "unime-tiny", help="UniME checkpoint")
    parser.add_argument("--skip", nargs="*", default=[], choices=INTERFACES, help="interfaces to leave out")
    default = ROOT / "benchmarks" / "results" / "encode_parity.json"
    parser.add_argument("--output", type=Path, default=default, help="output file")
    script = parser.parse_args()
    interfaces = [name for name in INTERFACES if name not in script.skip and (name != "vLLM" or VLLM.exists())]
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_items(Path(folder) / "items.parquet")
        stored = pa.parquet.read_table(corpus).to_pylist()
        model, processor = load_model(str(script.model), dtype="float32")
        embeddings = model.encode([to_item(row) for row in stored], processor)
        expected = dict(zip((row["id"] for row in stored), embeddings, strict=True))
        cosines, differences = {}, {}
        for interface in interfaces:
            print(f"{interface} ...", file=sys.stderr, flush=True)
            results = embed(interface, script.model.resolve(), corpus, stored, Path(folder))
            cosines[interface] = least_cosines(results, expected, stored)
            ordinary = [row["id"] for row in stored if row["kind"] in ORDINARY]
            differences[interface] = max(float(np.abs(results[key] - expected[key]).max()) for key in ordinary)
    script.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"model": script.model.name, "items": len(stored)}
    record |= {"largest difference, ordinary items": differences, "least cosine": cosines}
    script.output.write_text(json.dumps(record, indent=2) + "\n")
    print(table(differences, cosines))
    raise SystemExit(any(difference > MAX_DIFFERENCE for name, difference in differences.items() if name != "vLLM"))


def least_cosines(
    results: dict[str, np.ndarray | str], expected: dict[str, np.ndarray], stored: list[dict]
) -> dict[str, float | str]:
    """Return the least cosine of each kind, or why an item was refused; kinds that were not sent are left out."""
    least: dict[str, float | str] = {}
    for row in stored:
        result, before = results.get(row["id"]), least.get(row["kind"], 1.0)
        if isinstance(result, str) or isinstance(before, str):
            least[row["kind"]] = result if isinstance(result, str) else before
        elif result is not None:
            cosine = float(result @ expected[row["id"]] / np.linalg.norm(result))
            least[row["kind"]] = min(before, cosine)
    return least


def table(differences: dict[str, float], cosines: dict[str, dict[str, float | str]]) -> str:
    """Return the results as a Markdown table; "refused" stands for an error, a dash for what cannot be sent."""
    lines = [f"| interface | {', '.join(ORDINARY)}: largest difference | {' | '.join(HARD)} |"]
    lines.append("| --- |" + " ---: |" * (len(HARD) + 1))
    for interface, difference in differences.items():
        results = [cosines[interface].get(kind, "-") for kind in HARD]
        cells = [
            f"{min(cell, 1):.6f}" if isinstance(cell, float) else "-" if cell == "-" else "refused" for cell in results
        ]
        lines.append(f"| {interface} | {difference:.1e} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_items(file: Path) -> Path:
    """Write 40 items of each ordinary kind and 10 of each other, from rows of scenes."""
    kinds = [*ORDINARY * ORDINARY_ITEMS, *(kind for kind in HARD for _ in range(HARD_ITEMS))]
    items = []
    for position, (kind, row) in enumerate(
        zip(kinds, openmoji_rows("test", len(kinds), tasks=["scene_t2i"]), strict=True)
    ):
        caption, image = row["query"]["text"], row["positive"]["image"].convert("RGB")
        texts = {
            "long text": caption * 100,
            "long text, image": caption * 100,
            "empty text": ("", " ")[position % 2],
            "URL as text": URLS[position % len(URLS)],
            "text": caption,
            "both": caption,
            "several images": caption,
        }
        images = [] if kind in ("text", "long text", "empty text", "URL as text") else [encoded(image, kind)]
        if kind == "several images":
            images.append(encoded(image.rotate(90), kind))
        items.append({"id": f"{position:06}", "kind": kind, "text": texts.get(kind), "images": images})
    names = {"id": pa.string(), "kind": pa.string(), "text": pa.string(), "images": pa.list_(pa.binary())}
    pa.parquet.write_table(pa.Table.from_pylist(items, schema=pa.schema(names)), file)
    return file


def encoded(image: Image.Image, kind: str) -> bytes:
    """Return an image as PNG: with 16 bits, another color space or transparency if the kind says so."""
    file, options = BytesIO(), {}
    if kind == "16 bits":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif kind == "wide gamut":
        options["icc_profile"] = display_p3()
    elif kind == "transparent":
        mask = Image.linear_gradient("L").resize(image.size)
        image.putalpha(mask)
    image.save(file, "png", **options)
    return file.getvalue()


def display_p3() -> bytes:
    """Return an ICC profile of Display P3: that of sRGB with other colorants."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132])
    for name, offset, _ in struct.iter_unpack(">4sII", bytes(profile[132 : 132 + 12 * count])):
        if name in DISPLAY_P3:
            values = [round(value * 65536) for value in DISPLAY_P3[name]]
            struct.pack_into(">3i", profile, offset + 8, *values)  # after the type and four reserved bytes
    return bytes(profile)


def to_item(row: dict) -> dict:
    item = {"text": row["text"]} if row["text"] is not None else {}
    images = [Image.open(BytesIO(image)) for image in row["images"]]
    return item | ({"image": images[0] if len(images) == 1 else images} if images else {})


def embed(interface: str, model: Path, corpus: Path, stored: list[dict], folder: Path) -> dict[str, np.ndarray | str]:
    """Embed the items with one interface; return embeddings or errors by id."""
    if interface in ("unime serve", "vLLM"):
        return embed_over_http(interface, model, stored, folder)
    if interface in ("unime embed", "Ray"):
        rows = [
            {"id": row["id"], "text": row["text"], "image": row["images"][0] if row["images"] else None}
            for row in stored
            if row["kind"] not in ("several images", "empty text")  # a table has one image, and no empty text
        ]
        names = {"id": pa.string(), "text": pa.string(), "image": pa.binary()}
        pa.parquet.write_table(pa.Table.from_pylist(rows, schema=pa.schema(names)), folder / "table.parquet")
    if interface == "unime embed":
        output, prompt = folder / "embed", ("--prompt", "document")
        run("-m", "unime.cli", "embed", folder / "table.parquet", output, "--model", model, *prompt)
        return read_embeddings(output)
    if interface == "Ray":
        settings = ("--output_dir", folder / "ray", "--model", model, "--instruction", "")
        run(ROOT / "recipes" / "embed_corpus.py", "--source", folder / "table.parquet", *settings)
        return read_embeddings(folder / "ray" / "vectors")
    loader = "AutoModel" if interface.startswith("AutoModel") else interface.split()[1]
    run("-c", WITHOUT_THE_PACKAGE, model, loader, corpus, folder / "vectors.npz")
    results = dict(np.load(folder / "vectors.npz"))
    by_kind = {
        kind: iter([str(rows)] * HARD_ITEMS if rows.dtype.kind == "U" else rows) for kind, rows in results.items()
    }
    return {row["id"]: next(by_kind[row["kind"]]) for row in stored}


def run(*words: object) -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, *map(str, words)], env=os.environ | quiet, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words[0]} failed:\n{done.stderr[-3000:]}")


def read_embeddings(folder: Path) -> dict[str, np.ndarray | str]:
    rows = pa.dataset.dataset(folder, format="parquet").to_table(columns=["id", "embedding"])
    return {row["id"]: np.array(row["embedding"], np.float32) for row in rows.to_pylist()}


def embed_over_http(interface: str, model: Path, stored: list[dict], folder: Path) -> dict[str, np.ndarray | str]:
    with (folder / "log").open("w") as log:
        if interface == "vLLM":
            address = "http://127.0.0.1:8791/v1"
            command = [str(VLLM), "serve", str(model), *"--runner pooling --convert embed --dtype float32".split()]
            command += "--enforce-eager --port 8791".split()
            variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
            server = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log, text=True)
        else:
            command = [sys.executable, "-m", "unime.cli", "serve", "--model", str(model), "--port", "0"]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            address = next(line for line in server.stdout or () if "/v1" in line).split()[-1]
        with server:
            try:
                with httpx2.Client(timeout=120) as client:
                    wait_until_healthy(client, address)
                    return {row["id"]: post(client, address, row) for row in stored}
            finally:
                server.terminate()


def post(client: httpx2.Client, address: str, row: dict) -> np.ndarray | str:
    answer = client.post(f"{address}/embeddings", json=conversation(row))
    if answer.status_code == 400:
        return answer.text[:300]
    return np.array(answer.raise_for_status().json()["data"][0]["embedding"], np.float32)


def wait_until_healthy(client: httpx2.Client, address: str) -> None:
    for _ in range(3000):
        try:
            client.get(address.removesuffix("/v1") + "/health").raise_for_status()
            return
        except httpx2.TransportError:  # the server refuses connections until the model is loaded
            time.sleep(0.1)
    raise SystemExit("the server was not ready within five minutes")


def conversation(row: dict) -> dict:
    parts = [{"type": "text", "text": row["text"]}] if row["text"] is not None else []
    for image in row["images"]:
        url = "data:image/png;base64," + base64.b64encode(image).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    truncated = {"truncate_prompt_tokens": -1} if row["kind"].startswith("long") else {}
    return {"messages": [{"role": "user", "content": parts}]} | truncated


if __name__ == "__main__":
    main()
