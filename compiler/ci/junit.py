"""A suite as JUnit XML.

In: a :class:`~.suite.Suite`. Out: the text of a file that is valid by the two schemas in use: Ant's (``JUnit.xsd``,
whose elements and attributes are all there, in its order) and Jenkins' (``junit-10.xsd``).

    failed       failure
    error        error
    undecided    skipped
    warned       a passed case; its message is among the suite's output
"""

from __future__ import annotations

import re
import socket
from datetime import UTC, datetime
from xml.etree import ElementTree

from llmc.compiler.ci.suite import Suite, Verdict

_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold in any way."""


def junit_text(suite: Suite, *, now: datetime | None = None) -> str:
    """The file's text, UTF-8 by its declaration; ``now`` is when the command began."""
    suites = ElementTree.Element("testsuites")
    element = ElementTree.SubElement(
        suites,
        "testsuite",
        {
            "name": _clean(suite.name),
            "package": _clean(suite.name.replace(" ", ".")),
            "id": "0",
            "tests": str(len(suite.verdicts)),
            "failures": str(suite.count("failed")),
            "errors": str(suite.count("error")),
            "skipped": str(suite.count("undecided")),
            "time": f"{suite.seconds:.3f}",
            "timestamp": (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S"),
            "hostname": _clean(socket.gethostname()) or "localhost",
        },
    )
    properties = ElementTree.SubElement(element, "properties")
    for name, value in {"subject": suite.subject, **suite.facts}.items():
        ElementTree.SubElement(properties, "property", {"name": _clean(name), "value": _clean(value)})
    for verdict in suite.verdicts:
        _add_case(element, suite, verdict)
    lines = [_line(verdict) for verdict in suite.verdicts]
    ElementTree.SubElement(element, "system-out").text = _clean("\n".join(lines))
    ElementTree.SubElement(element, "system-err").text = ""
    ElementTree.indent(suites)
    body = ElementTree.tostring(suites, encoding="unicode", short_empty_elements=False)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _add_case(element: ElementTree.Element, suite: Suite, verdict: Verdict) -> None:
    share = suite.seconds / len(suite.verdicts)  # checks of one run have no time of their own; the sum is the run's
    group = f"{suite.name.replace(' ', '.')}.{suite.subject}"
    attributes = {"name": _clean(verdict.name), "classname": _clean(group), "time": f"{share:.3f}"}
    case = ElementTree.SubElement(element, "testcase", attributes)
    if verdict.outcome == "undecided":
        ElementTree.SubElement(case, "skipped", {"message": _clean(verdict.message)})
    elif verdict.outcome in ("failed", "error"):
        kind = "failure" if verdict.outcome == "failed" else "error"
        mark = {"message": _clean(verdict.message), "type": verdict.outcome}
        ElementTree.SubElement(case, kind, mark).text = _clean(_line(verdict))


def _line(verdict: Verdict) -> str:
    figures = [verdict.measured, f"limit {verdict.limit}" if verdict.limit else "", verdict.message]
    return f"{verdict.outcome}: {verdict.name}" + "".join(f"; {figure}" for figure in figures if figure)


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
