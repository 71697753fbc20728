"""Which models there are, with which bounds they are explored, and where each rule's absence shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.model.applier import Applier, ApplierRule
from tests.model.checker import Model, Rule
from tests.model.clash import Clash, ClashRule
from tests.model.controllers import ControllerRule, Controllers
from tests.model.flip import Flip, FlipRule
from tests.model.homes import HomeRule, Homes
from tests.model.load import Load, LoadRule
from tests.model.strays import StrayRule, Strays
from tests.model.tickets import TicketRule, Tickets

Build = Callable[[frozenset[Rule]], Model[Any]]
"""Makes the model without these rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """``worlds``: the small ones, explored in seconds; ``large``: what ``make model`` explores instead.

    ``shown``: the small world in which a rule is missed; the first one, if it is not named. ``together``: a rule that
    nobody misses as long as this other one is there.
    """

    rules: type[Rule]
    worlds: Mapping[str, Build]
    large: Mapping[str, Build]
    shown: Mapping[Rule, str] = field(default_factory=dict)
    together: Mapping[Rule, Rule] = field(default_factory=dict)

    def world_of(self, rule: Rule) -> str:
        return self.shown.get(rule, next(iter(self.worlds)))

    def missed(self, rule: Rule) -> frozenset[Rule]:
        """What has to go, so that something goes wrong: the rule, and what would make up for it."""
        return frozenset({rule, self.together.get(rule, rule)})


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
    "flip": Subject(
        rules=FlipRule,
        worlds={
            "two writes": partial(Flip, rollbacks=1),
            "a retried write": partial(Flip, retries=1, batch_job=True),
            "two replayers": partial(Flip, replayers=2, rollbacks=1),
            "a batch job": partial(Flip, second=False, batch_job=True, appliers=2, doubts=1, rollbacks=1),
        },
        large={
            "a retried write and a batch job": partial(Flip, retries=1, batch_job=True, appliers=2, rollbacks=1),
            "two replayers": partial(Flip, retries=1, batch_job=True, replayers=2, rollbacks=1),
            "everything but a rollback": partial(Flip, retries=1, batch_job=True, appliers=2, doubts=1),
            "there and back, and there": partial(Flip, retries=1, flips=2, rollbacks=1),
        },
        shown={
            FlipRule.NOBODY: "a batch job",
            FlipRule.FENCE_WAITS: "a batch job",
            FlipRule.COPIERS_HOLD_THE_FENCE: "a batch job",
            FlipRule.KEYS_TRAVEL: "a retried write",
            FlipRule.ENTRIES_KEPT: "a batch job",
            FlipRule.SWITCH_CHECKS: "a batch job",
        },
    ),
    "controllers": Subject(
        rules=ControllerRule,
        worlds={
            "an abort, a lost order": partial(Controllers, aborts=1, losses=1),
            "aborted, and begun again": partial(Controllers, flips=2, aborts=1),
            "there and back": partial(Controllers, rollbacks=1),
        },
        large={
            "everything": partial(Controllers, writes=2, flips=2, rollbacks=1, aborts=2, losses=1),
        },
        shown={
            ControllerRule.STEP_COMPARED: "aborted, and begun again",
            ControllerRule.EPOCH_COMPARED: "aborted, and begun again",
            ControllerRule.ATTEMPT_COMPARED: "aborted, and begun again",
            ControllerRule.EPOCHS_RISE: "aborted, and begun again",
            ControllerRule.PROOFS_BOUND: "aborted, and begun again",
            ControllerRule.ROLLBACK_FROM_LIVE: "there and back",
            ControllerRule.ONE_OPEN: "aborted, and begun again",
        },
        together={
            ControllerRule.EPOCH_COMPARED: ControllerRule.ATTEMPT_COMPARED,
            ControllerRule.ATTEMPT_COMPARED: ControllerRule.EPOCH_COMPARED,
        },
    ),
    "homes": Subject(
        rules=HomeRule,
        worlds={
            "one customer": Homes,
            "new in the source": partial(Homes, begin=("not copied",)),
            "complete": partial(Homes, begin=("copied", "not copied"), births=0, completions=2),
        },
        large={
            "more of everything": partial(Homes, flips=2, moves=2, children=2, deletes=2, births=2),
            "complete": partial(Homes, moves=2, children=2, completions=2),
        },
        shown={
            HomeRule.HOME_IN_BOTH: "new in the source",
            HomeRule.HOMES_UNTIL_ALL_COMPLETE: "complete",
        },
    ),
    "strays": Subject(
        rules=StrayRule,
        worlds={
            "an item that goes to and fro": Strays,
            "a line that comes again": partial(Strays, lines=2),
            "there and back": partial(Strays, flips=2),
        },
        large={
            "there and back": partial(Strays, flips=2, moves=3, lines=2),
            "more of everything": partial(Strays, moves=4, lines=3, deletes=2),
        },
        shown={
            StrayRule.WHOSE_NOWHERE: "a line that comes again",
            StrayRule.UNTIL_COPIED: "there and back",
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
