"""JSON that every parser reads."""

import json

import pytest

from unime.json_output import to_json


def strict(text: str) -> object:
    """Parse JSON as RFC 8259 defines it; `json.loads` accepts more."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_numbers_that_are_not_finite_become_null() -> None:
    value = {"a": [float("nan"), (1.5, float("inf"))], "b": {"c": -float("inf"), "d": "NaN"}, "e": True}
    assert strict(to_json(value, indent=2)) == {"a": [None, [1.5, None]], "b": {"c": None, "d": "NaN"}, "e": True}


def test_other_values_are_written_as_json_writes_them() -> None:
    value = {"a": [1, 1.5, None], "b": "ä"}
    assert to_json(value, indent=2, ensure_ascii=False) == json.dumps(value, indent=2, ensure_ascii=False)
    with pytest.raises(TypeError):
        to_json({1})
