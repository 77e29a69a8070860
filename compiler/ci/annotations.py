"""A suite as GitHub's workflow commands, which mark a run with what is wrong.

In: a :class:`~.suite.Suite`. Out: lines as ``::error title=llmc verify: largest logit error::0.2, limit 0.1; …``.

Source of the form and of what is escaped: docs.github.com, "Workflow commands for GitHub Actions", and
``actions/toolkit``, packages/core/src/command.ts.
"""

from __future__ import annotations

from llmc.compiler.ci.suite import Suite, Verdict

LEVELS = {"error": "error", "failed": "error", "undecided": "warning", "warned": "warning"}
MOST = 10
"""GitHub shows no more of a level from one step."""


def annotation_lines(suite: Suite) -> list[str]:
    """A line for each verdict that is not simply passed; of more than ten of a level, the tenth says how many."""
    lines = []
    for level in ("error", "warning"):
        verdicts = [verdict for verdict in suite.verdicts if LEVELS.get(verdict.outcome) == level]
        shown = verdicts if len(verdicts) <= MOST else verdicts[: MOST - 1]
        lines += [_line(level, suite, verdict.name, _text(verdict)) for verdict in shown]
        if rest := len(verdicts) - len(shown):
            lines.append(_line(level, suite, "more", f"{rest} more; see the summary or the report"))
    return lines


def _line(level: str, suite: Suite, name: str, text: str) -> str:
    title = _escaped(f"{suite.name}: {name}").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={title}::{_escaped(f'{suite.subject}: {text}')}"


def _text(verdict: Verdict) -> str:
    limit = f"limit {verdict.limit}" if verdict.limit else ""
    figures = ", ".join(part for part in (verdict.measured, limit) if part)
    return "; ".join(part for part in (figures, verdict.message) if part) or verdict.outcome


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
