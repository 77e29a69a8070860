"""The two schemas that readers of JUnit XML go by, as tables: Ant's JUnit.xsd and Jenkins' junit-10.xsd.

What is in both is what a file may have. Sources: windyroad/JUnit-Schema, JUnit.xsd; jenkinsci/xunit-plugin,
src/main/resources/org/jenkinsci/plugins/xunit/types/model/xsd/junit-10.xsd.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

NUMBER = re.compile(r"\d+(\.\d+)?")
WHOLE = re.compile(r"\d+")
ATTRIBUTES: dict[str, dict[str, re.Pattern[str]]] = {
    "testsuites": {},
    "testsuite": {
        "name": re.compile(".+", re.S),
        "package": re.compile(".+", re.S),
        "id": WHOLE,
        "tests": WHOLE,
        "failures": WHOLE,
        "errors": WHOLE,
        "skipped": WHOLE,
        "time": NUMBER,
        "timestamp": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"),
        "hostname": re.compile(".+"),
    },
    "properties": {},
    "property": {"name": re.compile(".+", re.S), "value": re.compile(".*", re.S)},
    "testcase": {"name": re.compile(".*", re.S), "classname": re.compile(".*", re.S), "time": NUMBER},
    "failure": {"message": re.compile(".*", re.S), "type": re.compile(".+")},
    "error": {"message": re.compile(".*", re.S), "type": re.compile(".+")},
    "skipped": {"message": re.compile(".*", re.S)},
    "system-out": {},
    "system-err": {},
}
"""All that an element must have, and no other."""
CHILDREN = {
    "testsuites": re.compile("(testsuite )*"),
    "testsuite": re.compile("properties (testcase )*system-out system-err "),
    "properties": re.compile("(property )*"),
    "testcase": re.compile("(skipped |failure |error )?"),
}
"""Of the others there are none."""


def complaints(element: Element) -> Iterator[str]:
    """What is not as the schemas have it."""
    known = ATTRIBUTES.get(element.tag)
    if known is None:
        yield f"no element {element.tag}"
        return
    if set(element.attrib) != set(known):
        yield f"{element.tag} has {sorted(element.attrib)}"
    for name, pattern in known.items():
        if not pattern.fullmatch(element.get(name, "")):
            yield f"{element.tag}: {name}={element.get(name)!r}"
    children = "".join(f"{child.tag} " for child in element)
    if not CHILDREN.get(element.tag, re.compile("")).fullmatch(children):
        yield f"{element.tag} holds {children}"
    for child in element:
        yield from complaints(child)
