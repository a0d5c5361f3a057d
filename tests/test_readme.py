"""The README's Python runs as it stands, against the committed checkpoints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_every_snippet_of_the_readme_runs(number: int, tmp_path: Path):
    for name in ("checkpoints", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", SNIPPETS[number]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_readme_has_its_three_snippets():
    assert len(SNIPPETS) == 3
