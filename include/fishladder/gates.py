"""Gates: what an attempt must have behind it, judged from the ledger alone (design §12).

They fail closed: evidence that is missing, older than allowed or not what was recorded opens nothing, and each gate
says what is missing and what to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from fishladder import monitors, reports
from fishladder.cells import HOMELESS
from fishladder.flip import wave_needs
from fishladder.ledger import MACHINE, Attempt, Ledger, verify
from fishladder.ledger.approvals import OBSERVED, subject
from fishladder.spec import Migration
from fishladder.spec_parts import Gates, duration_text, identity
from fishladder.verdict import at_work, tables_of

REHEARSED = "rehearsal"
"""The kind of evidence that a rehearsal leaves, about the migration by its name."""
EDITED = "its evidence is not what was recorded"
FOREVER = datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """``found``, in words; ``remedy``: what would open it."""

    name: str
    open: bool
    found: str
    remedy: str


def evaluate(
    spec: Migration,
    ledger: Ledger,
    attempt: Attempt,
    now: datetime,
    *,
    contradictions: Sequence[str] | None,
    fenced: bool = False,
) -> list[Gate]:
    """Every gate of an attempt. ``fenced``: writes wait by now, and the drain asks what is still to be copied.

    ``contradictions``: what the stores' fences say against the ledger; None: they were not asked, and nobody may go by
    the answer.
    """
    asked = _Asked(spec, ledger, attempt, now)
    found = [asked.rejects(), asked.mismatches(), asked.audit(fenced), asked.approvals()]
    if contradictions is not None:
        found.append(asked.fences(contradictions))
    if not fenced:
        found.append(asked.applier())
    if attempt.kind != "rollback":
        found += [asked.passes(), asked.reports(), asked.monitors()]
        found.append(asked.observed())
    if attempt.kind == "flip":
        found.append(asked.rehearsals())
    return found


def closed(gates: Sequence[Gate]) -> list[str]:
    """What keeps an attempt from going on, and what to do about it, a line each."""
    return [f"{gate.name}: {gate.found}; {gate.remedy}" for gate in gates if not gate.open]


def person_of(gates: Gates, account: str) -> str:
    """Whose account it is: a person's of the migration file, or else one of its own."""
    people = {identity(name): person for person, names in gates.people.items() for name in (person, *names)}
    return people.get(identity(account), account)


class _Asked:
    """The gates, one by one."""

    def __init__(self, spec: Migration, ledger: Ledger, attempt: Attempt, now: datetime) -> None:
        self.spec = spec
        self.ledger = ledger
        self.attempt = attempt
        self.now = now

    def rejects(self) -> Gate:
        count = sum(self.ledger.count_rejects(cohort=cohort) for cohort in (self.attempt.cohort, HOMELESS))
        remedy = "see python -m fishladder rejects, mend why, and retry them"
        return Gate(name="no rejects", open=not count, found=f"{count} open", remedy=remedy)

    def mismatches(self) -> Gate:
        count = self.ledger.count_mismatches(self.attempt.cohort)
        remedy = f"leave {self.spec.migration}_replicate on, then run {self.spec.migration}_reconcile"
        return Gate(name="no mismatches", open=not count, found=f"{count} open", remedy=remedy)

    def audit(self, fenced: bool) -> Gate:
        """The whole chain, which may be years long; while writes wait, the part that the attempt's own yeses are in."""
        since = (self.ledger.asked(self.attempt) if fenced else None) or 1
        problems = verify(self.ledger.engine, self.spec.migration, since=since)
        found = f"{len(problems)} problems: {problems[0]}" if problems else "intact"
        remedy = "somebody wrote into the ledger: see python -m fishladder audit verify"
        return Gate(name="audit chain", open=not problems, found=found, remedy=remedy)

    def fences(self, contradictions: Sequence[str]) -> Gate:
        found = f"{len(contradictions)} problems: {contradictions[0]}" if contradictions else "as the ledger has them"
        remedy = "nothing moves until somebody has looked: see docs/disaster-recovery.md"
        return Gate(name="fences", open=not contradictions, found=found, remedy=remedy)

    def applier(self) -> Gate:
        last, most = self.ledger.status("applier"), self.spec.gates.max_lag
        remedy = f"switch {self.spec.migration}_replicate on and wait until it has caught up"
        if last is None or not at_work(last, self.now):
            return Gate(name="caught up", open=False, found="no applier is at work", remedy=remedy)
        lag = float(last.data["lag"] or 0)
        found = f"{lag:.1f} s behind, at most {duration_text(most)} are allowed"
        return Gate(name="caught up", open=timedelta(seconds=lag) <= most, found=found, remedy=remedy)

    def passes(self) -> Gate:
        wanted, oldest = self.spec.gates.clean_passes, self.now - self.spec.gates.max_age
        wrong, streaks = [], self.ledger.streaks()
        for table in tables_of(self.spec):
            streak = streaks.get(table)
            if streak is None or streak.count < wanted:
                wrong.append(f"{table} has {streak.count if streak else 0} in a row")
            elif not oldest <= streak.began <= self.now:
                wrong.append(f"the newest of {table} began at {streak.began:%Y-%m-%d %H:%M} UTC")
        found = "; ".join(wrong) or f"every table has {wanted}, the newest within {duration_text(self._max_age)}"
        remedy = f"run {self.spec.migration}_reconcile until it has found nothing {wanted} times in a row"
        return Gate(name="clean passes", open=not wrong, found=found, remedy=remedy)

    def reports(self) -> Gate:
        cohorts = reports.cohorts_of(self.ledger.routes(), self.attempt.cohort)
        wrong = [line for name in self.spec.reports for one in cohorts if (line := self._unequal(name, one))]
        found = "; ".join(wrong) or f"{len(self.spec.reports)} equal"
        remedy = f"run {self.spec.migration}_reconcile and see what its task report says"
        return Gate(name="reports", open=not wrong, found=found, remedy=remedy)

    def _unequal(self, name: str, cohort: str) -> str | None:
        def failed(body: Mapping[str, Any]) -> str:
            return reports.result_of(name, cohort, body).in_short()

        return self._doubt("report", f"{name} {cohort}", self._max_age, failed, reports.whole(self.spec.reports[name]))

    def monitors(self) -> Gate:
        age = self.spec.gates.monitor_age
        wrong = [
            line
            for name, asked in self.spec.monitors.items()
            if (line := self._doubt("monitor", name, age, lambda _: "is not quiet", monitors.whole(asked)))
        ]
        found = "; ".join(wrong) or f"{len(self.spec.monitors)} quiet"
        remedy = f"switch {self.spec.migration}_monitor on and see what its task says"
        return Gate(name="monitors", open=not wrong, found=found, remedy=remedy)

    def observed(self) -> Gate:
        """Cohorts of earlier waves, before a flip; the cohort itself before its way back ends."""
        routes, own = self.ledger.routes(), self.attempt.cohort
        needs = wave_needs(self.spec, own, "flip", routes) if self.attempt.kind == "flip" else {own: ("live",)}
        moves = {found.cohort: found for found in reversed(self.ledger.attempts()) if found.outcome == "done"}
        wrong = []
        for cohort, stages in needs.items():
            move, stage = moves.get(cohort), routes[cohort].stage
            if stage not in stages:
                wrong.append(f"{cohort} is {stage}")
            elif stage == "complete":
                continue
            elif not (move and move.kind == "flip" and self.ledger.latest_evidence(OBSERVED, subject(move.id))):
                wrong.append(f"{cohort} was not observed to the end")
            elif line := self._doubt(OBSERVED, subject(move.id), None, lambda _: "was not quiet"):
                wrong.append(f"{cohort}: {line}")
        found = "; ".join(wrong) or "nothing comes before it"
        if needs and not wrong:
            found = f"{len(needs)} observed for {duration_text(self.spec.gates.observe)}"
        remedy = f"wait for the task observe of its {self.spec.migration}_flip, or mend what it found and clear it"
        return Gate(name="observed", open=not wrong, found=found, remedy=remedy)

    def approvals(self) -> Gate:
        wanted, asked = self.spec.gates.approvals, self.attempt.approvals
        machine = self.attempt.kind == "rollback" and self.attempt.actor == MACHINE
        remedy = "it was asked for under an earlier migration file: give it up, and ask again"
        return Gate(
            name="people", open=machine or asked >= wanted, found=f"{asked} of {wanted} are asked", remedy=remedy
        )

    def rehearsals(self) -> Gate:
        """So many days in a row, up to today or yesterday (UTC), whose last rehearsal was clean."""
        wanted, today = self.spec.gates.rehearsal_days, self.now.astimezone(UTC).date()
        remedy = f"switch {self.spec.migration}_rehearse on and see what its task says"
        if not wanted:
            return Gate(name="rehearsals", open=True, found="no clean days are asked for", remedy=remedy)
        days = self._rehearsed(today - timedelta(days=wanted))
        day, count = today if today in days else today - timedelta(days=1), 0
        while count < wanted and day in days and days[day] is None:
            day, count = day - timedelta(days=1), count + 1
        ahead = max(days, default=today) > today
        why = "a rehearsal lies in the future" if ahead else f"{day}: {days.get(day, 'no rehearsal')}"
        is_open = count == wanted and not ahead
        found = f"{count} of {wanted} clean days" + ("" if is_open else f"; {why}")
        return Gate(name="rehearsals", open=is_open, found=found, remedy=remedy)

    def _rehearsed(self, since: date) -> dict[date, str | None]:
        """By day, why it is not clean. Later than now is a day of its own."""
        begin = datetime.combine(since, time(), UTC)
        found = self.ledger.evidence_between(REHEARSED, self.spec.migration, begin, FOREVER, edited=True)
        days: dict[date, str | None] = {}
        for one in found:  # the last one of a day counts, and whatever was edited
            day = one.began.astimezone(UTC).date() if one.began <= self.now else date.max
            if not one.genuine or days.get(day) == EDITED:
                days[day] = EDITED
            else:
                days[day] = None if one.passed else " ".join(str(one.body.get("problem")).split())
        return days

    @property
    def _max_age(self) -> timedelta:
        return self.spec.gates.max_age

    def _doubt(
        self,
        kind: str,
        subject: str,
        age: timedelta | None,
        failed: Callable[[Mapping[str, Any]], str],
        asked: str | None = None,
    ) -> str | None:
        """What is wrong with the newest evidence about something.

        ``failed``: what the body of one that did not pass says. ``asked``: the digest of what the file asks.
        """
        newest = self.ledger.latest_evidence(kind, subject)
        if newest is None:
            return f"{subject}: nothing is known"
        if not newest.genuine:
            return f"{subject}: its evidence is not what was recorded"
        if asked is not None and newest.body.get(kind) != asked:
            return f"{subject}: what is known is of another {kind} than the migration file has now"
        if not newest.passed:
            return f"{subject} {failed(newest.body)}"
        if newest.began > self.now or (age is not None and newest.began < self.now - age):
            within = f"within {duration_text(age)}" if age is not None else "before now"
            return f"{subject}: as of {newest.began:%Y-%m-%d %H:%M} UTC, which is not {within}"
        return None
