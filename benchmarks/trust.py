"""What the tests of trust tried and how much of it was handled: runs them, writes `benchmarks/trust.json`.

    python benchmarks/trust.py

Every case of `tests/trust/test_bad_*.py` is one bad input, handled if the test passed. The others say how much they
did by pytest's `record_property`: `kills`, `requests` and the `right` ones among them, `examples` of random input.
Some kills stand beside the tests of what they kill, outside of `tests/trust`.
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from json import dumps
from pathlib import Path
from xml.etree import ElementTree

from trl import TrlParser


ROOT = Path(__file__).resolve().parents[1]
TESTS = [
    "tests/trust",
    "tests/cli/test_embed.py::test_a_killed_run_goes_on_and_nothing_is_lost_or_doubled",
    "tests/recipes/test_embed_corpus.py",
    "tests/recipes/test_resume.py",
    "tests/index/test_killed.py",
]


@dataclass
class ScriptArguments:
    """What to run."""

    processes: int = field(default=2, metadata={"help": "Processes that run tests."})
    load_seconds: int = field(default=300, metadata={"help": "Length of each load test."})
    output: str = field(default="benchmarks/trust.json", metadata={"help": "Where the figures are written."})


def counts(cases: list[ElementTree.Element]) -> dict[str, dict[str, int]]:
    """Sum up the cases of pytest's JUnit report: what was tried, and how much of it by tests that passed."""
    figures = {name: Counter() for name in ("bad inputs", "kills", "requests", "random examples", "other tests")}
    for case in cases:
        if case.find("skipped") is not None:
            continue
        passed = case.find("failure") is None and case.find("error") is None
        done = {one.get("name"): int(one.get("value")) for one in case.iterfind("properties/property")}
        if case.get("classname").split(".")[-1].startswith("test_bad_"):
            figures["bad inputs"].update(tried=1, handled=passed)
        elif done.keys().isdisjoint({"kills", "requests", "examples"}):
            figures["other tests"].update(run=1, passed=passed)
        if "kills" in done:
            figures["kills"].update(tried=done["kills"], survived=passed * done["kills"])
        if "requests" in done:
            figures["requests"].update(sent=done["requests"], right=done["right"])
        if "examples" in done:
            figures["random examples"].update(run=done["examples"], tests_failed=not passed)
    return {name: dict(found) for name, found in figures.items()}


def main(script: ScriptArguments) -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "slow or not slow", "--numprocesses", str(script.processes)]
        status = subprocess.run(
            [*command, "--dist", "loadfile", f"--junitxml={report}", *TESTS],
            cwd=ROOT,
            env=os.environ | {"LOAD_SECONDS": str(script.load_seconds)},
        ).returncode
        if not report.exists():
            raise SystemExit(f"pytest ended with status {status} before it wrote its report: see above")
        figures = counts(list(ElementTree.parse(report).iter("testcase")))
    libraries = {name: version(name) for name in ("torch", "transformers", "pillow", "hypothesis")}
    figures = {"command": " ".join(["python", *sys.argv]), "machine": platform.machine(), **libraries, **figures}
    Path(script.output).write_text(dumps(figures, indent=2) + "\n")
    print(dumps(figures, indent=2))
    return status


if __name__ == "__main__":
    sys.exit(main(*TrlParser(ScriptArguments).parse_args_and_config()))
