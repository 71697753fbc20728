"""Which models there are, with which bounds they are explored, and where each rule's absence shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.model.applier import Applier, ApplierRule
from tests.model.checker import Model, Rule
from tests.model.clash import Clash, ClashRule
from tests.model.load import Load, LoadRule
from tests.model.tickets import TicketRule, Tickets

Build = Callable[[frozenset[Rule]], Model[Any]]
"""Makes the model without these rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """``worlds``: the small ones, explored in seconds; ``large``: what ``make model`` explores instead.

    ``shown``: the small world in which a rule is missed; the first one, if it is not named.
    """

    rules: type[Rule]
    worlds: Mapping[str, Build]
    large: Mapping[str, Build]
    shown: Mapping[Rule, str] = field(default_factory=dict)

    def world_of(self, rule: Rule) -> str:
        return self.shown.get(rule, next(iter(self.worlds)))


SUBJECTS: dict[str, Subject] = {
    "applier": Subject(
        rules=ApplierRule,
        worlds={
            "moves": partial(Applier, world="moves", changes=2),
            "rejects": partial(Applier, world="rejects", changes=2),
            "lost": partial(Applier, world="lost", changes=1),
            "flip": partial(Applier, world="flip", changes=1),
        },
        large={
            "everything": partial(Applier, world="all", changes=1),
            **{world: partial(Applier, world=world, changes=3) for world in ("moves", "rejects", "lost", "flip")},
        },
        shown={
            ApplierRule.FENCE_IN_TRANSACTION: "flip",
            ApplierRule.RECORD_BEFORE_COMMIT: "rejects",
            ApplierRule.DOUBT_UNTIL_COMMIT: "rejects",
            ApplierRule.VERDICT_UNDER_LOCKS: "lost",
        },
    ),
    "clash": Subject(
        rules=ClashRule,
        worlds={"two changes": partial(Clash, changes=2)},
        large={"three changes": partial(Clash, changes=3)},
    ),
    "load": Subject(
        rules=LoadRule,
        worlds={
            "one load": partial(Load, changes=1, restarts=0),
            "a restart": partial(Load, changes=0, restarts=1),
            "a restart, repeated": partial(Load, changes=0, restarts=2),
        },
        large={
            "changes and restarts": partial(Load, changes=1, restarts=2),
            "changes and a restart": partial(Load, changes=2, restarts=1),
        },
        shown={
            LoadRule.LOAD_ROW_IN_CHUNK: "a restart",
            LoadRule.GENERATION_IN_CHUNK: "a restart",
            LoadRule.CHUNK_ROW: "a restart",
            LoadRule.TOKENS_GO_ON: "a restart",
            LoadRule.CLAIM_AFTER_CLEANING: "a restart",
            LoadRule.GENERATION_IN_CLEANING: "a restart, repeated",
        },
    ),
    "tickets": Subject(
        rules=TicketRule,
        worlds={"two changes": partial(Tickets, versions=2, tickets=3)},
        large={
            "three changes": partial(Tickets, versions=3, tickets=3),
            "more": partial(Tickets, versions=2, tickets=4),
        },
    ),
}
