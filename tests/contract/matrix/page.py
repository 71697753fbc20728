"""docs/types.md, written by the matrix."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "types.md"
WORDS = {"sqlite": "SQLite", "mysql": "MySQL", "mariadb": "MariaDB", "oracle": "Oracle (wire emulator)"}
HEAD = """# Types: what goes where

`make types` writes this page: it moves the values at the edges of every type below into every type of every
store, by the bulk load and by the applier, and compares what plain drivers read at both ends. So does `make scenario`;
`make test` takes three of the sixteen pairs of stores, Oracle to MySQL among them.

- **values**: how many of them the source type took. Of those that are too large for a target some are tried, and of
  those that the load refused every fourth is given to the applier, too.
- **exact**: every value that was tried arrived as it is.
- **checked per value**: a value that the target cannot hold exactly becomes a reject that names the column; all
  others arrived as they are. *Why not* says what was found.
- A type that a line does not name is **refused** by preflight for the whole column: the two have no values in common,
  or one of them cannot be carried. `types:` in the migration file may give another meaning; `drop:` leaves it out.

Never is a value changed without a word. Three things that stores write differently are one value: with an Oracle end
`''` (and an empty LOB) and NULL; the padding of CHAR; and the way that numbers, JSON, UUIDs and times are spelled.
Times with a zone arrive as the moment that they are, in UTC. The columns for Oracle come from the wire emulator of the
tests, not from an Oracle; it keeps microseconds and no NUL in a text, so that neither a seventh digit nor a NUL was
tried from or into one. Types that are not here were not tried.
"""


def title(origin: str, destination: str) -> str:
    return f"## {WORDS[origin]} → {WORDS[destination]}"


def section(origin: str, destination: str, lines: list[str]) -> str:
    head = "| source type | values | exact into | checked per value into | why not |\n|---|---|---|---|---|"
    return "\n".join([title(origin, destination), "", head, *lines, ""])


def sections() -> dict[str, str]:
    """The page's sections by title."""
    if not PAGE.exists():
        return {}
    found = re.split(r"^(?=## )", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    return {part.split("\n", 1)[0]: part.rstrip("\n") + "\n" for part in found}


def write(origin: str, destination: str, text: str) -> None:
    """Put one section in its place; the others stay."""
    order = [title(one, other) for one in WORDS for other in WORDS]
    parts = {**sections(), title(origin, destination): text}
    body = "\n".join(parts[name] for name in order if name in parts)
    PAGE.write_text(f"{HEAD}\n{body}", encoding="utf-8")
