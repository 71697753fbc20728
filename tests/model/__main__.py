"""``python -m tests.model``: explore the models, then each again without one of its rules, and tell what goes wrong."""

from __future__ import annotations

import argparse
import sys

from tests.model.catalog import SUBJECTS, Subject
from tests.model.checker import Rule, check


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join(SUBJECTS)} (all)")
    parser.add_argument("--without", metavar="RULE", help="only this: one model without this rule, such as chunk_row")
    parser.add_argument("--large", action="store_true", help="explore the larger worlds, which takes minutes")
    options = parser.parse_args()
    unknown = set(options.models) - SUBJECTS.keys()
    if unknown:
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    subjects = {name: subject for name, subject in SUBJECTS.items() if name in (options.models or SUBJECTS)}
    if options.without:
        wanted = options.without.upper().replace("-", "_")
        found = [(subject, rule) for subject in subjects.values() for rule in subject.rules if rule.name == wanted]
        if not found:
            rules = ", ".join(rule.name.lower() for subject in subjects.values() for rule in subject.rules)
            parser.error(f"no rule {options.without}; there are {rules}")
        shown = [_without(subject, rule) for subject, rule in found]
        return 0 if all(shown) else 1
    well = [_explore(name, subject, large=options.large) for name, subject in subjects.items()]
    return 0 if all(well) else 1


def _explore(name: str, subject: Subject, *, large: bool) -> bool:
    """Whether the model holds, and does not without any of its rules."""
    well = True
    for world, build in (subject.large if large else subject.worlds).items():
        outcome = check(build(frozenset()))
        print(f"{name}, {world}, all rules: {outcome}\n", flush=True)
        well &= outcome.wrong is None
    shown = [_without(subject, rule) for rule in subject.rules]
    return well and all(shown)


def _without(subject: Subject, rule: Rule) -> bool:
    """Print what happens without this rule. Returns whether something does, as it should."""
    world = subject.world_of(rule)
    outcome = check(subject.worlds[world](subject.missed(rule)))
    others = "".join(f" and {other.name.lower()}" for other in subject.missed(rule) - {rule})
    print(f"without {rule.name.lower()}{others} ({rule.value}), {world}:\n{outcome}\n", flush=True)
    return outcome.wrong is not None


if __name__ == "__main__":
    sys.exit(main())
