"""Look for known vulnerabilities in the pins: in the list beside this file, and with pip-audit where it has a source.

    python tests/trust/audit.py

Status 1 where there is one. `pip-audit` calls a package that it could not look up no error, so what it skipped is
counted here and said: out of reach of its source, the list is all that was looked at.
"""

import json
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


PINS = Path(__file__).resolve().parents[2] / "constraints.txt"
LIST = Path(__file__).with_name("advisories.json")


def pinned(text: str) -> dict[str, Version]:
    """The versions in a file of constraints, by name."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    found = {}
    for requirement in (Requirement(line) for line in lines if line):
        (exact,) = requirement.specifier
        if exact.operator != "==":
            raise ValueError(f"{requirement} is no pin: name one version with ==")
        found[canonicalize_name(requirement.name)] = Version(exact.version)
    return found


def listed(pins: dict[str, Version], fixed: dict[str, dict[str, str]]) -> list[str]:
    """A sentence for each pin that is older than the version in which a listed vulnerability was mended."""
    return [
        f"{name} {pins[name]} has {number}: take {version} or newer"
        for name, numbers in fixed.items()
        for number, version in numbers.items()
        if name in pins and pins[name] < Version(version)
    ]


def audited(report: str) -> tuple[list[str], int]:
    """What pip-audit found, a sentence each, and how many packages it could not look up."""
    packages = json.loads(report)["dependencies"]
    found = [
        f"{one['name']} {one['version']} has {flaw['id']}: take {' or '.join(flaw['fix_versions']) or 'another'}"
        for one in packages
        for flaw in one.get("vulns", [])
    ]
    return found, sum("skip_reason" in one for one in packages)


def main() -> int:
    advisories = json.loads(LIST.read_text())
    pins = pinned(PINS.read_text())
    found = listed(pins, advisories["fixed"])
    known = sum(map(len, advisories["fixed"].values()))
    written = f"written down from memory on {advisories['compiled']}, known until {advisories['knowledge']}"
    print(f"{known} advisories, {written}: {len(found)} hold for the pins")
    command = ["-m", "pip_audit", "--requirement", str(PINS), "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run([sys.executable, *command, "--progress-spinner", "off"], capture_output=True, text=True)
    if done.stdout.startswith("{"):
        more, skipped = audited(done.stdout)
        print(f"pip-audit: {len(pins) - skipped} of {len(pins)} packages looked up, {len(more)} vulnerabilities")
        found += more
    else:
        reason = done.stderr.strip().rpartition("\n")[2]
        print(f"pip-audit looked nothing up, only the list was looked at: {reason}")
    for sentence in found:
        print(sentence)
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
