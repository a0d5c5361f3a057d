"""Pins with known vulnerabilities fail, and the list that says so is one that can be believed."""

import json
import re
import runpy
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version


AUDIT = runpy.run_path(str(Path(__file__).with_name("audit.py")))
ADVISORIES = json.loads(AUDIT["LIST"].read_text())


def test_no_pin_has_a_vulnerability_of_the_list():
    assert AUDIT["listed"](AUDIT["pinned"](AUDIT["PINS"].read_text()), ADVISORIES["fixed"]) == []


def test_a_pin_before_the_mended_version_is_named():
    pins = AUDIT["pinned"]("# a comment\nJinja2==3.1.5  # another\ntorch==2.8.0\n")
    assert AUDIT["listed"](pins, ADVISORIES["fixed"]) == ["jinja2 3.1.5 has CVE-2025-27516: take 3.1.6 or newer"]
    with pytest.raises(ValueError, match="^torch>=2 is no pin: name one version with =="):
        AUDIT["pinned"]("torch>=2")


def test_the_list_is_of_packages_that_are_pinned_each_with_numbers_and_versions():
    pins = AUDIT["pinned"](AUDIT["PINS"].read_text())
    for name, numbers in ADVISORIES["fixed"].items():
        assert name == canonicalize_name(name) and name in pins
        for number, version in numbers.items():
            assert re.fullmatch(r"CVE-20\d\d-\d{4,5}", number) and Version(version)


def test_what_pip_audit_finds_and_what_it_could_not_look_up_are_told_apart():
    flaw = {"id": "PYSEC-1", "fix_versions": ["2", "3"]}
    packages = [
        {"name": "a", "version": "1", "vulns": [flaw, flaw | {"id": "PYSEC-2", "fix_versions": []}]},
        {"name": "b", "version": "1", "vulns": []},
        {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited"},
    ]
    assert AUDIT["audited"](json.dumps({"dependencies": packages, "fixes": []})) == (
        ["a 1 has PYSEC-1: take 2 or 3", "a 1 has PYSEC-2: take another"],
        1,
    )
