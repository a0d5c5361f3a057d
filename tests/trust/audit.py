"""Look for known vulnerabilities in the pins: in the list beside this file, and with pip-audit if it is online.

    python tests/trust/audit.py

Exits with status 1 if there are any. pip-audit does not treat a package that it could not look up as an error, so this
script counts and reports such packages. Without access to an advisory database, only the list is checked.
"""

import json
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


PINS_FILE = Path(__file__).resolve().parents[2] / "constraints.txt"
ADVISORIES_FILE = Path(__file__).with_name("advisories.json")


def parse_pins(text: str) -> dict[str, Version]:
    """Return the version of each package in the text of a constraints file.

    Raises:
        ValueError: A line does not pin exactly one version.
    """
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pins = {}
    for requirement in (Requirement(line) for line in lines if line):
        (specifier,) = requirement.specifier
        if specifier.operator != "==":
            raise ValueError(f"{requirement} is not a pin: name one version with ==")
        pins[canonicalize_name(requirement.name)] = Version(specifier.version)
    return pins


def check_list(pins: dict[str, Version], fixed: dict[str, dict[str, str]]) -> list[str]:
    """Return a sentence for each pin that is older than the version that fixes a listed vulnerability.

    Args:
        pins: Versions by package.
        fixed: For each package, the first fixed version by CVE number.
    """
    return [
        f"{name} {pins[name]} has {cve}: use {version} or newer"
        for name, versions in fixed.items()
        for cve, version in versions.items()
        if name in pins and pins[name] < Version(version)
    ]


def parse_pip_audit(report: str) -> tuple[list[str], int]:
    """Return a sentence for each vulnerability in pip-audit's JSON report, and the number of skipped packages."""
    packages = json.loads(report)["dependencies"]
    vulnerabilities = [
        f"{package['name']} {package['version']} has {vulnerability['id']}: use "
        f"{' or '.join(vulnerability['fix_versions']) or 'another package'}"
        for package in packages
        for vulnerability in package.get("vulns", [])
    ]
    return vulnerabilities, sum("skip_reason" in package for package in packages)


def main() -> int:
    """Print the vulnerabilities and return the exit status."""
    advisories = json.loads(ADVISORIES_FILE.read_text())
    pins = parse_pins(PINS_FILE.read_text())
    vulnerabilities = check_list(pins, advisories["fixed"])
    count = sum(map(len, advisories["fixed"].values()))
    origin = f"listed from memory on {advisories['compiled']}, knowledge until {advisories['knowledge']}"
    print(f"{count} advisories ({origin}): {len(vulnerabilities)} apply to the pins")
    command = ["-m", "pip_audit", "--requirement", str(PINS_FILE), "--no-deps", "--disable-pip", "--format", "json"]
    result = subprocess.run([sys.executable, *command, "--progress-spinner", "off"], capture_output=True, text=True)
    if result.stdout.startswith("{"):
        reported, skipped = parse_pip_audit(result.stdout)
        print(f"pip-audit: looked up {len(pins) - skipped} of {len(pins)} packages, {len(reported)} vulnerabilities")
        vulnerabilities += reported
    else:
        reason = result.stderr.strip().rpartition("\n")[2]
        print(f"pip-audit could not look up any package, so only the list was checked: {reason}")
    for vulnerability in vulnerabilities:
        print(vulnerability)
    return int(bool(vulnerabilities))


if __name__ == "__main__":
    raise SystemExit(main())
