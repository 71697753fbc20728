"""Read the small part of YAML that a migration file needs, and remember the line of everything.

Every scalar is text: ``NO`` is a country and not false, ``01`` keeps its zero; the reader's types decide what a text
means. ``${NAME}`` and ``${NAME:-default}`` in values are taken from the environment. Whatever could make a file say
something else than it seems to (keys written twice, anchors, tags, a second document) is a problem, not a feature.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from fishladder.errors import SpecError

MAX_SIZE = 1 << 20
"""The largest file that is read, in bytes (and in characters)."""

MAX_DEPTH = 20
MAX_PROBLEMS = 50
"""How many problems of a file are told at once."""

Place = tuple[str, ...]
"""The way to a value: keys and list positions, such as ``("tables", "invoice", "entity")``."""

Value = str | list["Value"] | dict[str, "Value"] | None

_VARIABLE = re.compile(r"\$\{([^}]*)(\}?)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a file at one place of it."""

    place: Place
    text: str
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The file that something was read from, and the line of every place in it. All origins compare equal."""

    name: str = field(compare=False)
    lines: Mapping[Place, int] = field(default_factory=dict, compare=False)

    def line(self, place: Place) -> int | None:
        """The line (from 1) of ``place`` or of the nearest thing around it; None when no lines are known."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place)

    def where(self, path: str) -> str:
        """``file:line`` of a place that is written with dots; without the line when no lines are known."""
        lines = {".".join(place): line for place, line in self.lines.items()}
        while path and path not in lines:
            path = path.rpartition(".")[0]
        line = lines.get(path)
        return self.name if line is None else f"{self.name}:{line}"

    def error(self, problems: Iterable[Problem]) -> SpecError:
        """One error that lists the problems by line; of several at one place only the first, for it causes the rest."""
        first: dict[Place, tuple[int, Problem]] = {}
        for problem in problems:
            first.setdefault(problem.place, (problem.line or self.line(problem.place) or 0, problem))
        found = sorted(first.values(), key=lambda pair: pair[0])
        texts = [
            ": ".join(filter(None, (f"{self.name}:{line}" if line else self.name, dotted(problem.place), problem.text)))
            for line, problem in found[:MAX_PROBLEMS]
        ]
        if len(found) > MAX_PROBLEMS:
            texts.append(f"{self.name}: and more; repair these first")
        return SpecError("\n".join(texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file's value, its lines, and what was wrong with it as YAML (the value then holds stand-ins)."""

    value: dict[str, Value]
    origin: Origin
    problems: tuple[Problem, ...]


def dotted(place: Place) -> str:
    return ".".join(shown(part) for part in place)


def shown(text: str) -> str:
    """``text`` as it can stand in a message of one line."""
    text = text if len(text) <= 80 else f"{text[:80]}…"
    return text if text.isprintable() else ascii(text)


def read(text: str, *, name: str, environment: Mapping[str, str]) -> Document:
    """Read a file of one mapping. Raises SpecError when it is not YAML, or has another form than one mapping."""
    if len(text) > MAX_SIZE:
        raise SpecError(f"{name}:1: larger than {MAX_SIZE} characters; a migration file is a short list of facts")
    return _Reader(text, name, environment).read()


class _Reader:
    """Builds the value from YAML's events, where anchors and tags still show and no object is made."""

    def __init__(self, text: str, name: str, environment: Mapping[str, str]) -> None:
        self._text = text
        self._name = name
        self._environment = environment
        self._lines: dict[Place, int] = {(): 1}
        self._problems: list[Problem] = []

    def read(self) -> Document:
        events = self._events()
        for event in events:
            if isinstance(event, yaml.MappingStartEvent):
                break
            if isinstance(event, yaml.NodeEvent | yaml.StreamEndEvent):
                raise self._stop(_line(event), "must be a mapping that starts with 'migration: <name>'")
        self._refuse_extras(event, ())
        value = self._mapping(events, ())
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                raise self._stop(_line(event), "a second document starts here; write one migration in a file")
        origin = Origin(name=self._name, lines=self._lines)
        return Document(value=value, origin=origin, problems=tuple(self._problems))

    def _events(self) -> Iterator[yaml.Event]:
        line = 1
        try:
            for event in yaml.parse(self._text, Loader=yaml.SafeLoader):
                line = _line(event)
                yield event
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            text = (
                f"holds a character that YAML does not allow (U+{error.character:04X}); delete it, or save it as UTF-8"
            )
            raise self._stop(line, text) from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            # Between braces YAML takes the brace of ${NAME} for its own.
            hint = '; inside {} and [] write "${NAME}" with its quotes' if "${" in self._line_text(line) else ""
            problem = error.problem or error.context or ""
            if "\\t" in problem:
                hint = "; indent with spaces instead of tabs"
            raise self._stop(line, f"not YAML: {problem}{hint}") from error
        except (ValueError, OverflowError) as error:
            # PyYAML lets these through for an escape such as "\UFFFFFFFF" and for a directive with a huge number.
            raise self._stop(line, "not YAML: a number here or just after it is out of range") from error

    def _node(self, events: Iterator[yaml.Event], event: yaml.Event, place: Place) -> Value:
        line = _line(event)
        self._lines.setdefault(place, line)
        if len(place) > MAX_DEPTH:
            raise self._stop(line, f"nested deeper than {MAX_DEPTH} levels")
        self._refuse_extras(event, place)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event.value, place, line)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, place)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, place)
        return None

    def _sequence(self, events: Iterator[yaml.Event], place: Place) -> list[Value]:
        items: list[Value] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._node(events, event, (*place, str(len(items)))))
        return items

    def _mapping(self, events: Iterator[yaml.Event], place: Place) -> dict[str, Value]:
        value: dict[str, Value] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent) or not _encodable(event.value):
                raise self._stop(line, "a key must be a plain word")
            at = (*place, event.value)
            if event.value in value:
                text = f"written twice, first in line {self._lines[at]}; keep one of them"
                self._problem(at, line, text)
                self._node(events, next(events), at)
                continue
            self._refuse_extras(event, at)
            self._lines.setdefault(at, line)
            value[event.value] = self._node(events, next(events), at)
        return value

    def _scalar(self, text: str, place: Place, line: int) -> str:
        def from_environment(found: re.Match[str]) -> str:
            inside = _INSIDE.fullmatch(found[1])
            if not inside or not found[2]:
                self._problem(place, line, f"{shown(found[0])} is neither ${{NAME}} nor ${{NAME:-default}}")
                return found[0]
            # As in a shell, an empty variable counts as unset where there is a default.
            value = self._environment.get(inside[1])
            if inside[2] is not None:
                return value or inside[2]
            if value is None:
                self._problem(
                    place, line, f"{inside[1]} is not set in the environment; set it or write ${{{inside[1]}:-default}}"
                )
                return found[0]
            return value

        text = _VARIABLE.sub(from_environment, text)
        if not _encodable(text):
            self._problem(place, line, "holds a character that is not Unicode text")
            return ""
        return text

    def _refuse_extras(self, event: yaml.Event, place: Place) -> None:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            text = "anchors (&) and aliases (*) are not read; write it out, or quote a text"
            self._problem(place, _line(event), text)
        elif getattr(event, "tag", None) is not None:
            self._problem(place, _line(event), "tags (!) are not read; leave it out, or quote a text")

    def _problem(self, place: Place, line: int, text: str) -> None:
        self._problems.append(Problem(place=place, line=line, text=text))

    def _stop(self, line: int, text: str) -> SpecError:
        """What is wrong here hides the rest of the file: report it with what was found before."""
        problems = [*self._problems, Problem(place=(), line=line, text=text)]
        return Origin(name=self._name, lines=self._lines).error(problems)

    def _line_text(self, line: int) -> str:
        return "".join(self._text.splitlines()[line - 1 : line])


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _encodable(text: str) -> bool:
    """False for lone surrogates, which an escape or the environment can hold and no file or database takes."""
    return _SURROGATE.search(text) is None
