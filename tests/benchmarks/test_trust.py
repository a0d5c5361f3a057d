"""Tests of the robustness report."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree


ROOT = Path(__file__).resolve().parents[2]
REPORT = """
<testsuite>
  <testcase classname="tests.trust.test_bad_images" name="good" />
  <testcase classname="tests.trust.test_bad_texts" name="bad"><failure /></testcase>
  <testcase classname="tests.trust.test_bad_texts" name="left out"><skipped /></testcase>
  <testcase classname="tests.trust.test_kills" name="three">
    <properties><property name="kills" value="3" /></properties>
  </testcase>
  <testcase classname="tests.trust.test_kills" name="two">
    <properties><property name="kills" value="2" /></properties><failure />
  </testcase>
  <testcase classname="tests.trust.test_load" name="load">
    <properties><property name="requests" value="100" /><property name="right" value="99" /></properties>
  </testcase>
  <testcase classname="tests.trust.test_properties" name="texts">
    <properties><property name="examples" value="40" /></properties>
  </testcase>
  <testcase classname="tests.trust.test_storage" name="one" />
  <testcase classname="tests.trust.test_storage" name="other"><error /></testcase>
</testsuite>
"""


def test_attempts_and_successes_are_counted(script: Callable):
    trust = script(ROOT / "benchmarks" / "trust.py")
    assert trust.counts(list(ElementTree.fromstring(REPORT).iter("testcase"))) == {
        "bad inputs": {"tried": 2, "handled": 1},
        "kills": {"tried": 5, "survived": 3},
        "requests": {"sent": 100, "right": 99},
        "random examples": {"run": 40, "tests_failed": 0},
        "other tests": {"run": 2, "passed": 1},
    }


def test_the_report_runs_every_test_that_kills_processes(script: Callable):
    paths = [ROOT / name.partition("::")[0] for name in script(ROOT / "benchmarks" / "trust.py").TESTS]
    records_kills = re.compile(r'record_property\("kills"')
    killing = [path for path in (ROOT / "tests").rglob("test_*.py") if records_kills.search(path.read_text())]
    assert killing and all(any(path.is_relative_to(parent) for parent in paths) for path in killing)
