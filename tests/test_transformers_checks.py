"""UniME's model, configuration and processors pass the checks that transformers runs on each of its own models."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers


CHECKS = Path(__file__).with_name("transformers_checks.py")
PARAMETERIZED = "parameterized==0.9.0"  # what the files import beside pytest
FETCH_SECONDS, CHECK_SECONDS = 120, 900


@pytest.fixture(scope="module")
def checks_folder(pytestconfig: pytest.Config) -> Path:
    """Return a folder with the package `transformers_tests`, which is a part of transformers' source distribution."""
    folder = Path(pytestconfig.cache.mkdir(f"transformers-{transformers.__version__}"))
    if not (folder / "complete").exists():
        pip = [sys.executable, "-m", "pip", "--no-input"]
        source = ["download", "--no-deps", "--no-binary", ":all:", "--dest", folder]
        for command in (
            [*source, f"transformers=={transformers.__version__}"],
            ["install", "--no-deps", "--target", folder, PARAMETERIZED],
        ):
            run = subprocess.run([*pip, *command], capture_output=True, text=True, timeout=FETCH_SECONDS)
            if "Could not find a version" in run.stderr:  # as without a connection
                pytest.skip(f"the package index cannot be reached: {run.stderr[-500:]}")
            assert run.returncode == 0, run.stderr[-2000:]
        with tarfile.open(folder / f"transformers-{transformers.__version__}.tar.gz") as archive:
            for member in archive.getmembers():
                _, _, path = member.name.partition("/")
                if path.startswith("tests/"):
                    member.name = f"transformers_{path}"
                    archive.extract(member, folder, filter="data")
        (folder / "transformers_tests" / "__init__.py").touch()
        (folder / "complete").touch()
    return folder


@pytest.mark.slow
def test_all_checks_of_transformers_pass(checks_folder: Path) -> None:
    paths = [str(checks_folder), str(CHECKS.parent), *sys.path]  # the package as this process imports it
    variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pytest", CHECKS, "--quiet", "--tb=short", "--import-mode=importlib"]
    command += ["-p", "no:cacheprovider", "-W", "ignore", "-c", os.devnull, "--rootdir", checks_folder]
    run = subprocess.run(
        command, cwd=checks_folder, env=os.environ | variables, capture_output=True, text=True, timeout=CHECK_SECONDS
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
