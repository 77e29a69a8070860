"""JUnit XML: valid, and it says what the suite says."""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from llmc.compiler.ci.junit import junit_text
from llmc.compiler.ci.suite import Suite, Verdict

from .junit_schema import complaints
from .suites import SUITE

NOW = datetime(2026, 11, 30, 12, 0, 5, 123, UTC)


def read(suite: Suite) -> ElementTree.Element:
    return ElementTree.fromstring(junit_text(suite, now=NOW).encode())


def test_it_is_valid() -> None:
    assert list(complaints(read(SUITE))) == []
    assert list(complaints(read(Suite("llmc lint", "x", (Verdict("only", "passed"),))))) == []
    assert junit_text(SUITE).startswith('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>\n')


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (' id="0"', "", "testsuite has"),
        ('time="12.500"', 'time="fast"', "testsuite: time='fast'"),
        ("<properties>", "<system-err></system-err><properties>", "testsuite holds"),
        ("T12:00:05", " 12:00:05", "testsuite: timestamp"),
        ("failure", "failed", "testcase holds failed"),
    ],
)
def test_the_check_notices(old: str, new: str, complaint: str) -> None:
    text = junit_text(SUITE, now=NOW)
    assert old in text
    assert any(complaint in found for found in complaints(ElementTree.fromstring(text.replace(old, new))))


def test_counts_and_cases() -> None:
    (suite,) = read(SUITE)
    counts = {name: suite.get(name) for name in ("name", "package", "tests", "failures", "errors", "skipped", "time")}
    assert counts == {
        "name": "llmc verify",
        "package": "llmc.verify",
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
        "time": "12.500",
    }
    assert suite.get("timestamp") == "2026-11-30T12:00:05"
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [verdict.name for verdict in SUITE.verdicts]
    assert {case.get("classname") for case in cases} == {"llmc.verify.out/engine"}
    assert sum(float(case.get("time", 0)) for case in cases) == pytest.approx(12.5)
    assert [[child.tag for child in case] for case in cases] == [[], ["failure"], ["skipped"], [], ["error"]]
    assert cases[1][0].get("message") == "compile it again"
    assert cases[1][0].text == "failed: mean KL divergence; 0.2; limit ≤ 0.1; compile it again"
    assert cases[2][0].get("message") == "the intervals hold the limit still"


def test_facts_and_warnings_are_there() -> None:
    (suite,) = read(SUITE)
    assert [(each.get("name"), each.get("value")) for each in suite.iter("property")] == [
        ("subject", "out/engine"),
        ("operators", "ONNX Runtime's"),
    ]
    assert "warned: head; int8 loses less" in (suite.findtext("system-out") or "")


def test_characters_that_xml_has_not() -> None:
    error = read(SUITE)[0].findall("testcase")[4][0]
    assert error.get("message", "").startswith('a|b <i>"c"</i> & `d`: 100 %, \ufffd[31mred\ufffd\ufffd')
    assert error.get("message", "").endswith("next line]]>")
