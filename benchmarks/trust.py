"""Run the robustness tests and count their cases; writes `benchmarks/trust.json`.

    python benchmarks/trust.py

Every test case in `tests/trust/test_bad_*.py` is one bad input, handled if the test passes. Other tests report counts
with pytest's `record_property`: `kills`, `requests` and how many of them got the `right` answer, and `examples` of
random input. Some tests that kill processes are outside `tests/trust`.
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
    "tests/data/test_prepared.py",
    "tests/recipes/test_embed_corpus.py",
    "tests/recipes/test_resume.py",
    "tests/recipes/test_several_nodes.py",
    "tests/trainers/test_launcher_matrix.py",
    "tests/index/test_killed.py",
]


@dataclass
class ScriptArguments:
    """Settings of the run."""

    processes: int = field(default=2, metadata={"help": "Number of pytest processes."})
    load_seconds: int = field(default=300, metadata={"help": "Duration of each load test in seconds."})
    output: str = field(default="benchmarks/trust.json", metadata={"help": "Output file."})


def counts(cases: list[ElementTree.Element]) -> dict[str, dict[str, int]]:
    """Count the cases of pytest's JUnit report, in total and in passed tests."""
    totals = {name: Counter() for name in ("bad inputs", "kills", "requests", "random examples", "other tests")}
    for case in cases:
        if case.find("skipped") is not None:
            continue
        passed = case.find("failure") is None and case.find("error") is None
        recorded = {item.get("name"): int(item.get("value")) for item in case.iterfind("properties/property")}
        if case.get("classname").split(".")[-1].startswith("test_bad_"):
            totals["bad inputs"].update(tried=1, handled=passed)
        elif recorded.keys().isdisjoint({"kills", "requests", "examples"}):
            totals["other tests"].update(run=1, passed=passed)
        if "kills" in recorded:
            totals["kills"].update(tried=recorded["kills"], survived=passed * recorded["kills"])
        if "requests" in recorded:
            totals["requests"].update(sent=recorded["requests"], right=recorded["right"])
        if "examples" in recorded:
            totals["random examples"].update(run=recorded["examples"], tests_failed=not passed)
    return {name: dict(counter) for name, counter in totals.items()}


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
            raise SystemExit(f"pytest exited with status {status} before writing its report: see its output above")
        results = counts(list(ElementTree.parse(report).iter("testcase")))
    libraries = {name: version(name) for name in ("torch", "transformers", "pillow", "hypothesis")}
    results = {"command": " ".join(["python", *sys.argv]), "machine": platform.machine(), **libraries, **results}
    Path(script.output).write_text(dumps(results, indent=2) + "\n")
    print(dumps(results, indent=2))
    return status


if __name__ == "__main__":
    sys.exit(main(*TrlParser(ScriptArguments).parse_args_and_config()))
