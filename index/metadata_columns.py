"""Metadata as columns of an index: which keys become columns, of which types, and which values do not fit.

Numbers are doubles, so that 3 and 3.5 fit into one column. A value that does not fit its column is left out, and so is
a key that cannot be the name of a column: neither stops an index.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ..corpus.entry import Entry


RESERVED_COLUMNS = ("id", "text", "image", "thumbnail", "content_hash", "details_hash", "vector")
# LanceDB reads a dot as a struct's field, a backtick as a quote, and names with an underscore as its own.
NOT_IN_NAMES = (".", "`", "\0")
MAX_NESTED = 8  # levels of lists and objects in a value
MAX_WHOLE_NUMBER = 2**53  # larger ones are not doubles: they are stored as texts


def extend_schema(entries: Sequence[Entry], schema: pa.Schema, fixed: pa.Schema) -> tuple[pa.Schema, Counter[str]]:
    """Add the columns that the metadata of entries needs.

    Args:
        entries (`Sequence[Entry]`): The entries.
        schema (`pa.Schema`): Columns so far.
        fixed (`pa.Schema`): Those of them that a table has, whose types cannot change.

    Returns:
        `tuple[pa.Schema, Counter]`: The columns, and the number of values that are left out, by key.
    """
    left_out: Counter[str] = Counter()
    for name in dict.fromkeys(name for entry in entries for name in entry.metadata):
        values = [entry.metadata.get(name) for entry in entries]
        if not _can_be_column(name):
            left_out[name] += sum(value is not None for value in values)
            continue
        position = schema.get_field_index(name)
        kind = schema.field(position).type if position >= 0 else None
        if name not in fixed.names:
            kind = _wider_type(kind, values)
            if kind is not None:
                field = pa.field(name, kind)
                schema = schema.append(field) if position < 0 else schema.set(position, field)
        _, missing = metadata_array(values, kind)
        if missing:
            left_out[name] += missing
    return schema, left_out


def metadata_array(values: Sequence[Any], kind: pa.DataType | None) -> tuple[pa.Array, int]:
    """Return metadata values as a column, and how many do not fit; these are null in the column.

    Args:
        values (`Sequence`): JSON values.
        kind (`pa.DataType`, *optional*): Type of the column; `None` if there is none, as no value has a type yet.
    """
    stored = [_to_stored(value) for value in values]
    missing = sum(kept is None and not _is_empty(value) for value, kept in zip(values, stored, strict=True))
    if kind is None:
        return pa.nulls(len(stored)), missing
    if _type_of(stored) not in (kind, pa.null()):
        unfit = [index for index, value in enumerate(stored) if value is not None and not _fits(value, kind)]
        missing += len(unfit)
        for index in unfit:
            stored[index] = None
    return pa.array(stored, kind), missing


def from_stored(value: Any) -> Any:
    """Return the JSON value of a stored one: whole numbers without a fraction, and objects without their nulls."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_WHOLE_NUMBER:
        return int(value)
    if isinstance(value, dict):
        return {key: from_stored(entry) for key, entry in value.items() if entry is not None}
    return [from_stored(entry) for entry in value] if isinstance(value, list) else value


def _can_be_column(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return bool(name) and name not in (*RESERVED_COLUMNS, "*") and name[0] != "_" and not set(NOT_IN_NAMES) & set(name)


def _to_stored(value: Any) -> Any:
    """Return a value with its numbers as doubles, or `None` for one that is empty or nested too deeply."""
    return None if _is_deep(value, MAX_NESTED) else _converted(value)


def _is_deep(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    entries = value.values() if isinstance(value, dict) else value
    return not levels or any(_is_deep(entry, levels - 1) for entry in entries)


def _converted(value: Any) -> Any:
    if isinstance(value, dict):
        entries = {key: _converted(entry) for key, entry in value.items()}
        return {key: entry for key, entry in entries.items() if entry is not None} or None
    if isinstance(value, list):
        return [_converted(entry) for entry in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) <= MAX_WHOLE_NUMBER else str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_empty(value: Any) -> bool:
    """Return whether a value is stored as null without a loss."""
    if isinstance(value, dict):
        return not _is_deep(value, MAX_NESTED) and all(map(_is_empty, value.values()))
    return value is None or isinstance(value, float) and not math.isfinite(value)


def _type_of(stored: Sequence[Any]) -> pa.DataType | None:
    """Return the type of a column of values, or `None` if they have no type in common."""
    try:
        return pa.array(stored).type
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def _wider_type(kind: pa.DataType | None, values: Sequence[Any]) -> pa.DataType | None:
    """Return the type of a column for further values: that of the first value, with the fields of others."""
    stored = [_to_stored(value) for value in values]
    common = _type_of(stored)
    for candidate in [common] if common is not None else (_type_of([value]) for value in stored):
        if candidate is None or not _is_complete(candidate):
            continue
        try:
            kind = candidate if kind is None else _unified(kind, candidate)
        except pa.ArrowException:  # the values are left out
            continue
    return kind


def _unified(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    schemas = [pa.schema({"x": first}), pa.schema({"x": second})]
    return pa.unify_schemas(schemas, promote_options="permissive").field("x").type


def _is_complete(kind: pa.DataType) -> bool:
    """Return whether a type says what its values are: an empty list does not, for one."""
    if pa.types.is_list(kind):
        return _is_complete(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_is_complete(kind.field(index).type) for index in range(kind.num_fields))
    return not pa.types.is_null(kind)


def _fits(stored: Any, kind: pa.DataType) -> bool:
    try:
        return from_stored(pa.array([stored], kind).to_pylist()[0]) == from_stored(stored)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
