"""Client libraries against `unime serve`: `make test-clients` builds their environment and runs this file."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from server_process import started


SCRIPT = Path(__file__).with_name("client_libraries.py")
PYTHON = Path(__file__).resolve().parents[2] / ".venv-clients" / "bin" / "python"
TEXTS = ["a cat", "Здравствуйте", "a line\nand another", "a " * 150]
OFFLINE = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs an environment of its own: make test-clients"),
]


@pytest.fixture(scope="module")
def embedded() -> dict[str, dict[str, list]]:
    """Return the embeddings of each call of each library."""
    with started("--api-key", "key") as (_, address):
        run = subprocess.run([PYTHON, SCRIPT, address], env=os.environ | OFFLINE, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("library", ["openai", "litellm", "langchain", "llama-index"])
def test_every_call_gives_the_embeddings_of_encode(
    library: str, embedded: dict[str, dict[str, list]], expected: Callable[..., np.ndarray]
):
    # LlamaIndex replaces line feeds by spaces.
    texts = [text.replace("\n", " ") for text in TEXTS] if library == "llama-index" else TEXTS
    full, truncated = expected(texts), expected(texts, truncate_dim=48)
    calls = embedded[library]
    assert len(calls) >= 5
    for call, vectors in calls.items():
        right = {"one text": full[:1], "truncated": truncated, "dimensions": [192]}.get(call, full)
        np.testing.assert_allclose(vectors, right, atol=1e-5, err_msg=call)
