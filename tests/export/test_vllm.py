"""vLLM serves the plain export of every family: `make test-vllm` builds its environment and runs this file."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import tiny_architectures
import tiny_models

from unime import load_model
from unime.export.plain import export_plain


ROOT = Path(__file__).resolve().parents[2]
VLLM = ROOT / ".venv-vllm" / "bin" / "vllm"
HEADS_OF_64 = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
START_SECONDS = 600
DIFFERENT = {
    # vLLM tiles each of several images, transformers only an image that is alone.
    "llava-onevision": {"several images"},
    # The tokens of an image attend to all tokens of that image in transformers only.
    "gemma3": {"image", "image, instruction", "both", "both, instruction", "several images"},
}
# vLLM's matrix products for CPUs refuse the features of a ResNet, which are not contiguous: texts only.
WITHOUT_IMAGES = {"unime-tiny"}
OTHER_SIZES = {"hidden_size": 128, "out_hidden_size": 128, "num_attention_heads": 2, "num_heads": 2}
OTHER_SIZES |= {"num_key_value_heads": 1, "head_dim": 64}
NEWLINES = ["\n" * count for count in range(1, 5)]  # vLLM looks Gemma's up in the vocabulary
OTHER_FAMILIES = ["gemma3", "internvl"]
FAMILIES = [name for name in tiny_models.TINY_MODELS if name != "phi3-v"]  # vLLM expects its published configuration

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM.exists(), reason="needs an environment of its own: make test-vllm"),
]


@contextmanager
def serve(folder: Path, log: Path) -> Iterator[str]:
    """Start vLLM on a CPU and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(VLLM), "serve", str(folder), "--runner", "pooling", "--convert", "embed", "--dtype", "float32"]
    command += ["--enforce-eager", "--port", port]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT) as server,
    ):
        try:
            for _ in range(START_SECONDS):
                try:
                    urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except URLError:
                    assert server.poll() is None, log.read_text()[-4000:]
                    time.sleep(1)
            else:
                pytest.fail(log.read_text()[-4000:])
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def parity(script: Callable[[Path], ModuleType]) -> ModuleType:
    """Return the script that compares a server with a checkpoint."""
    return script(ROOT / "recipes" / "parity.py")


@pytest.mark.parametrize("name", ["unime-tiny", *FAMILIES, *OTHER_FAMILIES])
def test_vllm_returns_the_same_embeddings(
    name: str, parity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "unime-tiny":
        checkpoint = ROOT / "checkpoints" / "unime-tiny"
    else:  # vLLM's attention on a CPU refuses heads of 8 dimensions
        arguments = tiny_models.text_config_arguments
        monkeypatch.setattr(tiny_models, "text_config_arguments", lambda tokenizer: arguments(tokenizer) | HEADS_OF_64)
        monkeypatch.setattr(tiny_architectures, "SIZES", tiny_architectures.SIZES | OTHER_SIZES)
        if name == "gemma3":
            monkeypatch.setattr(tiny_architectures, "SPECIAL", [*tiny_architectures.SPECIAL, *NEWLINES])
        checkpoint = tiny_models.make_tiny_model(name, tmp_path / name)
    export_plain(*load_model(str(checkpoint), dtype="float32"), tmp_path / "plain")
    with serve(tmp_path / "plain", tmp_path / "log") as url:
        form = "rendered" if name in WITHOUT_IMAGES else "chat"
        result = parity.compare(parity.ScriptArguments(url, str(checkpoint), form=form))
    print(name, parity.table(result), sep="\n", file=sys.stderr)
    different = {row for row, values in result["rows"].items() if not values["least"] > 1 - 1e-5}
    assert different == DIFFERENT.get(name, set()), result["rows"]
