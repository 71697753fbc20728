"""Cells: one exact text per value, the same from every store.

A row in flight is a tuple of cells, each UTF-8 ``bytes`` or ``None`` for NULL:

=============  ==========================================================================
integer        ``-12``; never ``-0``, never a leading zero
decimal        no exponent, exactly ``scale`` fraction digits (``0.71``); no scale: no trailing zeros
string         as it is, never padded
bytes          lower-case hex
boolean        ``0`` or ``1``
date           ``2026-01-31``
timestamp      ``2026-01-31 12:00:00.123456`` with exactly ``size`` fraction digits; timestamptz: in UTC
uuid           lower case with dashes
json           keys sorted, no blanks, numbers by value
float, double  shortest text that reads back to the same number (``float``: through double)
=============  ==========================================================================

Equality of values is equality of cells. Keys and entities travel as one text: per column its length in
bytes, ``:``, and the cell, so that ('a', 'bc') is not ('ab', 'c').
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, cast

from fishladder.errors import InputError

Cell = bytes | None
Row = tuple[Cell, ...]

NO_HOME = "*"
"""The cohort of entities whose cohort is NULL or unknown, and of rows without an entity: the source's for ever."""
HOMELESS = "?"
"""The cohort of rows whose entity has no home: the source's until the first flip, then nobody's until it gets one."""
SHARED = "shared"
"""The cohort of tables without an entity."""
OWN_COHORTS = (NO_HOME, HOMELESS, SHARED)
"""Which no root's own cohort may be called."""
SHARDS = 64
"""How many units of exclusion between copiers a migration has; fixed, because it is written in the stores."""

Kind = Literal[
    "integer",
    "decimal",
    "string",
    "bytes",
    "boolean",
    "date",
    "timestamp",
    "timestamptz",
    "uuid",
    "json",
    "float",
    "double",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalType:
    """What a field can hold, whatever the store.

    ``size``: digits in all (integer, decimal), characters (string), bytes (bytes) or fraction digits
    (timestamp); None is unbounded. ``scale``: fraction digits of a decimal; None is as many as the value has.
    """

    kind: Kind
    size: int | None = None
    scale: int | None = None

    def __str__(self) -> str:
        inside = [str(part) for part in (self.size, self.scale) if part is not None]
        return f"{self.kind}({','.join(inside)})" if inside else self.kind


_TYPE = re.compile(r"(?P<kind>[a-z]+)\s*(?:\(\s*(?P<size>[0-9]{1,9})\s*(?:,\s*(?P<scale>[0-9]{1,9})\s*)?\))?")
_SIZES = {"integer": 1, "decimal": 2, "string": 1, "bytes": 1, "timestamp": 1, "timestamptz": 1}
_KINDS = (
    "integer",
    "decimal",
    "string",
    "bytes",
    "boolean",
    "date",
    "timestamp",
    "timestamptz",
    "uuid",
    "json",
    "float",
    "double",
)


def parse_type(text: str) -> LogicalType:
    """The logical type that ``text`` names, for example ``decimal(12,2)``. Raises InputError."""
    found = _TYPE.fullmatch(text.strip().lower())
    kind = found["kind"] if found else ""
    if found is None or kind not in _KINDS:
        raise InputError(f"{text[:80]!r} is no type; write one of {', '.join(_KINDS)}, for example decimal(12,2)")
    size, scale = (int(found[name]) if found[name] else None for name in ("size", "scale"))
    given = sum(part is not None for part in (size, scale))
    if given > _SIZES.get(kind, 0) or (kind == "decimal" and given == 1):
        raise InputError(f"{text!r}: write {kind}{'(digits,fraction digits)' if kind == 'decimal' else ''}")
    if kind == "decimal" and size is not None and scale is not None and scale > size:
        raise InputError(f"{text!r} has more fraction digits than digits")
    return LogicalType(kind=cast(Kind, kind), size=size, scale=scale)


def _least(one: int | None, other: int | None) -> int | None:
    known = [size for size in (one, other) if size is not None]
    return min(known) if known else None


def _integer_digits(type_: LogicalType) -> int | None:
    return None if type_.size is None else type_.size - (type_.scale or 0)


def meet(one: LogicalType, other: LogicalType) -> LogicalType | None:
    """The values that both types can hold exactly; None if the two have no text in common."""
    kinds = {one.kind, other.kind}
    if kinds <= {"boolean", "integer"} and "boolean" in kinds:
        return LogicalType(kind="boolean")
    if kinds <= {"integer", "decimal"}:
        digits = _least(_integer_digits(one), _integer_digits(other))
        if "integer" in kinds:
            return LogicalType(kind="integer", size=digits)
        scale = _least(one.scale, other.scale)
        return LogicalType(kind="decimal", size=None if digits is None else digits + (scale or 0), scale=scale)
    if len(kinds) == 1:
        return LogicalType(kind=one.kind, size=_least(one.size, other.size))
    for pair, kind in (
        ({"float", "double"}, "float"),
        ({"date", "timestamp"}, "date"),
        ({"uuid", "string"}, "uuid"),
        ({"json", "string"}, "json"),
    ):
        if kinds == pair:
            return LogicalType(kind=cast(Kind, kind))
    return None


def holds(wide: LogicalType, narrow: LogicalType) -> bool:
    """Whether every value of ``narrow`` has its exact place in ``wide``, so that nothing need be checked."""
    return meet(wide, narrow) == narrow


_PATTERNS = {
    "integer": re.compile(rb"0|-?[1-9][0-9]*"),
    "boolean": re.compile(rb"[01]"),
    "bytes": re.compile(rb"(?:[0-9a-f]{2})*"),
    "date": re.compile(rb"\d{4}-\d\d-\d\d"),
    "uuid": re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
    "timestamp": re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.(?P<fraction>\d+))?"),
    "decimal": re.compile(rb"-?(?P<whole>0|[1-9][0-9]*)(?:\.(?P<fraction>[0-9]+))?"),
}


def _float_misfit(cell: bytes, kind: str) -> str | None:
    text = cell.decode(errors="replace")
    if _NUMBER.fullmatch(text) is None and text not in ("inf", "-inf", "nan"):
        return f"not a {kind}"
    return None if float_text(text, kind) == text else f"more digits than a {kind} can hold"


def misfit(cell: Cell, type_: LogicalType) -> str | None:
    """Why a field of this type cannot hold the cell exactly, in words without the value; None if it can."""
    if cell is None:
        return None
    kind, size = type_.kind, type_.size
    if kind == "string":
        if size is None or len(cell) <= size:
            return None
        try:
            return None if len(cell.decode()) <= size else f"longer than {size} characters"
        except UnicodeDecodeError:
            return "not UTF-8"
    if kind == "json":
        return None
    if kind in ("float", "double"):
        return _float_misfit(cell, kind)
    found = _PATTERNS["timestamp" if kind == "timestamptz" else kind].fullmatch(cell)
    if found is None:
        return f"not {'an' if kind == 'integer' else 'a'} {kind}"
    if kind == "bytes" and size is not None and len(cell) > 2 * size:
        return f"longer than {size} bytes"
    if kind == "integer" and size is not None and len(cell.lstrip(b"-")) > size:
        return f"a number of more than {size} digits"
    if kind in ("timestamp", "timestamptz") and size is not None and len(found["fraction"] or b"") != size:
        return f"a time without exactly {size} fraction digits"
    if kind == "decimal":
        whole = _integer_digits(type_)
        if whole is not None and len(found["whole"].lstrip(b"0")) > whole:
            return f"a number of more than {whole} digits before the point"
        if type_.scale is not None and len(found["fraction"] or b"") != type_.scale:
            return f"a number without exactly {type_.scale} fraction digits"
    return None


_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")


def decimal_text(value: object, scale: int | None) -> str:
    """The canonical text of a number: padded to ``scale`` fraction digits, never rounded to them.

    What is no number comes back as it is: it differs from every number, and no field takes it.
    A binary float stands for the shortest decimal that reads back to it.
    """
    written = repr(value) if isinstance(value, float) else str(value)
    if not _NUMBER.fullmatch(written):  # Decimal() also takes '1_000', other scripts' digits and 'NaN'
        return str(value)
    text = format(Decimal(written), "f")
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    if scale is not None:
        fraction = fraction.ljust(scale, "0")
    whole = whole.lstrip("-").lstrip("0") or "0"
    sign = "-" if text.startswith("-") and (whole != "0" or fraction.strip("0")) else ""
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


def timestamp_text(value: str, digits: int | None) -> str:
    """The canonical text of a timestamp written in any usual way: ``digits`` fraction digits, never rounded."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d)(:\d\d)?(?:\.(\d+))?)?", value)
    if found is None:
        return value
    date, minutes, seconds, fraction = found.groups()
    fraction = (fraction or "").rstrip("0")
    if digits is not None:
        fraction = fraction.ljust(digits, "0")
    return f"{date} {minutes or '00:00'}{seconds or ':00'}{'.' + fraction if fraction else ''}"


def json_text(value: str) -> str:
    """Keys sorted, no blanks, numbers by value; text that is no JSON comes back as it is.

    So does what has no single meaning: an object with the same key twice, half of a surrogate pair.
    """
    try:
        parsed = json.loads(value, parse_float=_number, parse_int=_number, object_pairs_hook=_object)
        text = _json(parsed)
        text.encode()
    except (ValueError, RecursionError):  # UnicodeEncodeError is a ValueError
        return value
    return text


class _Number(str):
    """The text of a JSON number, which is not to be quoted."""


def _number(text: str) -> _Number:
    found = decimal_text(text, None)
    return _Number("-0.0" if found == "0" and text.startswith("-") else found)  # "-0" would be read as an integer


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("the same key twice")
    return found


def _json(value: object) -> str:
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k, ensure_ascii=False)}:{_json(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def float_text(value: object, kind: str) -> str:
    """The shortest text that reads back to the same number; ``-0.0`` keeps its sign.

    ``kind``: ``float`` is rounded to single precision first, so give it only what a store holds in that precision.
    What is no number comes back as it is.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
        if kind == "float":
            number = struct.unpack("f", struct.pack("f", number))[0]
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return repr(number)


def key_text(cells: Iterable[bytes]) -> bytes:
    """One text for the cells of a key or an entity."""
    return b"".join(b"%d:%s" % (len(cell), cell) for cell in cells)


def key_cells(text: bytes) -> tuple[bytes, ...]:
    """The cells of a key text. Raises ValueError if it is none."""
    colon = text.index(b":") if text else 0
    if text and int(text[:colon]) == len(text) - colon - 1:  # most keys are one column
        return (text[colon + 1 :],)
    cells, at = [], 0
    while at < len(text):
        colon = text.index(b":", at)
        end = colon + 1 + int(text[at:colon])
        cells.append(text[colon + 1 : end])
        at = end
    if at != len(text):
        raise ValueError("a key text that ends too early")
    return tuple(cells)


def row_key(row: Row, positions: Sequence[int]) -> bytes:
    """The key text of a row whose key stands at these positions."""
    if len(positions) == 1:  # nothing is asked as often, and most keys are one column
        cell = cast(bytes, row[positions[0]])
        return b"%d:%s" % (len(cell), cell)
    return key_text(cast(bytes, row[position]) for position in positions)


def row_digest(row: Row) -> bytes:
    """16 bytes that stand for a row: length-prefixed, NULL distinct from every text (BLAKE2b, RFC 7693)."""
    digest = hashlib.blake2b(digest_size=16)
    for cell in row:
        digest.update(b"-" if cell is None else b"%d:" % len(cell) + cell)
    return digest.digest()


def shard(entity: bytes) -> int:
    """The unit of exclusion, 0 to 63, that an entity belongs to."""
    return zlib.crc32(entity) % SHARDS


def cohort_entity(cohort: str) -> bytes:
    """The entity under which a cohort keeps the keys of writes that have none: births, and writes of shared tables.

    No key text looks like it: those begin with a length.
    """
    return f"@{cohort}".encode()
