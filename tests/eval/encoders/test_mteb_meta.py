"""The description of a checkpoint for mteb."""

from pathlib import Path

import pytest


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
    assert meta.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert meta.n_embedding_parameters == 4096 * 192  # words x dimensions
    assert meta.memory_usage_mb == round(2 * meta.n_parameters / 2**20)  # half precision
    assert (meta.embed_dim, meta.max_tokens, meta.modalities) == (192, 1024, ["image", "text"])
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
