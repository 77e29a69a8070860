"""A suite as Markdown, as GitHub shows it for a step.

In: a :class:`~.suite.Suite`. Out: a heading, a table with what is wrong first, and the facts.
"""

from __future__ import annotations

import re

from llmc.compiler.ci.suite import Outcome, Suite, Verdict

WORDS: dict[Outcome, str] = {
    "error": "**error**",
    "failed": "**FAILED**",
    "undecided": "*undecided*",
    "warned": "*warning*",
    "passed": "passed",
}
"""What stands in the table; worst first."""
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&]")


def summary_text(suite: Suite) -> str:
    """The text, ending with an empty line, so that another one may follow it."""
    counts = ((outcome, suite.count(outcome)) for outcome in WORDS)
    came_out = ", ".join(f"{number} {outcome}" for outcome, number in counts if number)
    lines = [
        f"### {_escaped(suite.name)}: {_escaped(suite.subject)}",
        "",
        f"{came_out}, in {suite.seconds:.0f} s.",
        "",
    ]
    lines += ["| outcome | check | measured | limit | |", "|---|---|---:|---:|---|"]
    lines += [_row(verdict) for outcome in WORDS for verdict in suite.verdicts if verdict.outcome == outcome]
    if suite.facts:
        lines += ["", *(f"- {_escaped(name)}: {_escaped(value)}" for name, value in suite.facts.items())]
    return "\n".join(lines) + "\n\n"


def _row(verdict: Verdict) -> str:
    cells = (verdict.name, verdict.measured, verdict.limit, verdict.message)
    return f"| {WORDS[verdict.outcome]} | {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """Text that stays as it is: no markup, no link, no row of its own."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))
