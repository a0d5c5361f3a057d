"""The description of a checkpoint for mteb."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from without_package import BLOCK_UNIME


pytest.importorskip("mteb")

from mteb.models import ModelMeta  # noqa: E402
from mteb.models.model_meta import ScoringFunction  # noqa: E402

from unime import UniMEModel  # noqa: E402
from unime.eval.encoders import mteb_encoder  # noqa: E402
from unime.eval.encoders.mteb_encoder import UniMEEncoder, model_meta  # noqa: E402


ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = ROOT / "checkpoints" / "unime-tiny"
NAME = "unime/unime-tiny"


@pytest.fixture(scope="module")
def model() -> UniMEModel:
    return UniMEModel.from_pretrained(CHECKPOINT)


def test_the_meta_describes_the_checkpoint(model: UniMEModel) -> None:
    meta = model_meta(str(CHECKPOINT), NAME, "1", release_date="2026-01-01", training_datasets=set())
    assert (meta.name, meta.revision, meta.license) == (NAME, "1", "apache-2.0")
    assert meta.n_parameters == sum(weight.numel() for weight in model.state_dict().values())  # as on the Hub
    assert meta.n_embedding_parameters == 4096 * 192  # words x dimensions
    assert meta.memory_usage_mb == round(2 * meta.n_parameters / 2**20)  # half precision
    assert (meta.embed_dim, meta.max_tokens, meta.modalities[:2]) == (192, 1024, ["image", "text"])
    assert meta.similarity_fn_name is ScoringFunction.COSINE and meta.open_weights and meta.use_instructions
    # The printed source gives the same description, without the local path.
    names = {"ModelMeta": ModelMeta, "ScoringFunction": ScoringFunction, "UniMEEncoder": UniMEEncoder}
    assert str(CHECKPOINT) not in meta.to_python()
    assert eval(meta.to_python(), names) == meta.model_copy(update={"loader": UniMEEncoder})


def test_the_meta_of_a_hub_model_has_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "0123abcd").symlink_to(CHECKPOINT)
    monkeypatch.setattr(mteb_encoder, "snapshot_download", lambda path, revision: str(tmp_path / "0123abcd"))
    meta = model_meta(NAME)
    assert (meta.name, meta.revision) == (NAME, "0123abcd")


def test_a_backbone_or_a_folder_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="has model_type 'llava' and is not a UniME checkpoint"):
        model_meta(str(ROOT / "checkpoints" / "tiny-backbone"), "unime/tiny-backbone")
    for name in (None, "unime-tiny"):
        with pytest.raises(ValueError, match="needs a name for mteb; pass name='organization/model'"):
            model_meta(str(CHECKPOINT), name)


SUBMITTED = """
from pathlib import Path

import numpy as np
from PIL import Image
from unime_models import UniMEEncoder  # the copied part, which is a file of mteb there

encoder = UniMEEncoder("unime/unime-tiny", path={checkpoint!r}, device="cpu", trust_remote_code=True, dtype="float32")
image = Image.open({image!r})
batch = {{"text": ["a cat", "a dog"], "image": [image, image]}}
metadata = type("Metadata", (), {{"name": "Any", "prompt": None, "type": "STS"}})()
encoder.instruction = lambda task, side: None
np.save({output!r}, encoder.encode([batch], task_metadata=metadata, hf_split="test", hf_subset="default"))
try:
    UniMEEncoder("unime/unime-tiny", path={checkpoint!r})
except ImportError as error:
    print(type(error).__name__)
"""


@pytest.mark.slow  # a process that imports mteb
def test_the_part_above_model_meta_runs_without_the_package(tmp_path: Path) -> None:
    source = Path(mteb_encoder.__file__).read_text()
    submitted, separator, _ = source.partition("\ndef model_meta(")
    assert separator
    (tmp_path / "unime_models.py").write_text(submitted)
    image, output = tmp_path / "image.png", tmp_path / "embeddings.npy"
    Image.new("RGB", (40, 30), "green").save(image)
    script = BLOCK_UNIME + SUBMITTED.format(checkpoint=str(CHECKPOINT), image=str(image), output=str(output))
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    model = UniMEModel.from_pretrained(CHECKPOINT, dtype="float32")
    expected = model.encode([{"text": text, "image": Image.open(image)} for text in ("a cat", "a dog")])
    np.testing.assert_allclose(np.load(output), expected, atol=1e-5)
    assert done.stdout.split()[-1] == "ModuleNotFoundError"


def test_the_part_above_model_meta_imports_nothing_of_the_package_at_the_top() -> None:
    tree = ast.parse(Path(mteb_encoder.__file__).read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom | ast.Import)]
    assert imports and not any(getattr(node, "level", 0) for node in imports)
    assert not any("unime" in alias.name for node in imports for alias in node.names)
