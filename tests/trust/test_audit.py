"""Pins with known vulnerabilities fail, and the list of vulnerabilities is well formed."""

import json
import re
import runpy
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version


AUDIT = runpy.run_path(str(Path(__file__).with_name("audit.py")))
ADVISORIES = json.loads(AUDIT["ADVISORIES_FILE"].read_text())


def test_no_pin_has_a_listed_vulnerability() -> None:
    assert AUDIT["check_list"](AUDIT["parse_pins"](AUDIT["PINS_FILE"].read_text()), ADVISORIES["fixed"]) == []


def test_a_pin_older_than_the_fixed_version_is_reported() -> None:
    pins = AUDIT["parse_pins"]("# a comment\nJinja2==3.1.5  # another\ntorch==2.8.0\n")
    assert AUDIT["check_list"](pins, ADVISORIES["fixed"]) == ["jinja2 3.1.5 has CVE-2025-27516: use 3.1.6 or newer"]


def test_a_requirement_that_is_not_a_pin_is_refused() -> None:
    with pytest.raises(ValueError, match="^torch>=2 is not a pin: name one version with =="):
        AUDIT["parse_pins"]("torch>=2")


def test_the_list_contains_pinned_packages_with_cve_numbers_and_versions() -> None:
    pins = AUDIT["parse_pins"](AUDIT["PINS_FILE"].read_text())
    for name, versions in ADVISORIES["fixed"].items():
        assert name == canonicalize_name(name) and name in pins
        for cve, version in versions.items():
            assert re.fullmatch(r"CVE-20\d\d-\d{4,5}", cve) and Version(version)


def test_vulnerabilities_and_skipped_packages_of_pip_audit_are_counted_separately() -> None:
    vulnerability = {"id": "PYSEC-1", "fix_versions": ["2", "3"]}
    vulnerabilities = [vulnerability, vulnerability | {"id": "PYSEC-2", "fix_versions": []}]
    packages = [
        {"name": "a", "version": "1", "vulns": vulnerabilities},
        {"name": "b", "version": "1", "vulns": []},
        {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited"},
    ]
    assert AUDIT["parse_pip_audit"](json.dumps({"dependencies": packages, "fixes": []})) == (
        ["a 1 has PYSEC-1: use 2 or 3", "a 1 has PYSEC-2: use another package"],
        1,
    )
