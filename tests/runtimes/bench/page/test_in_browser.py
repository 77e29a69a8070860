"""What a browser makes of the page, where there is one: `make report-screens` installs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.browser.chromium import PROGRAM, Page, open_page
from tests.browser.screens import FAULTS, SCHEMES, WIDTHS

from .samples import CASES, benchmark, evaluation, page, spread

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here")
LONG = "another runtime Q4_K_M, with a variant that has a long name, and then some more of it"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with open_page() as opened:
        yield opened


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """All sections, and a name that is long."""
    document = benchmark()
    for it in (*document["subjects"], *document["results"], *document["comparisons"]):
        for key in ("label", "denominator"):
            it |= {key: it[key].replace("int8", LONG)} if key in it else {}
    points = [
        {"label": "int4", "tokens": tokens, "step_ms": spread(4.0 + tokens)} for tokens in (1, 2, 3, 4, 8, 16, 32)
    ]
    sweep = {"points": points, "remarks": ["a step of 16 is slow"]}
    kinds = {
        "products": 0.006,
        "attention": 0.002,
        "norms": 0.0002,
        "sampling": 0.0001,
        "rest": 0.0004,
        "between": 0.001,
    }
    times = [
        {"label": label, "case": CASES[0], "phase": phase, "kinds": kinds}
        for label, phase in (("int4", "decode"), (LONG, "decode"), ("int4", "prefill"))
    ]
    document |= {"operators": {"shares": times, "remarks": []}}
    costs = [{"label": "int4", "case": CASES[0], "per_million_in": 0.1, "per_million_out": 1.0}]
    document |= {"curve": sweep, "contexts": sweep, "costs": costs, "price": {"text": "1 EUR/h", "currency": "EUR"}}
    document["results"][0] |= {"joules_per_token": spread(0.3), "power_w": spread(60.0)}
    path = tmp_path / "report.html"
    path.write_text(page(document, evaluations=(evaluation(**{"int4": 0.05, LONG: 0.004}),)), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("screen", WIDTHS)
def test_it_looks_right(browser: Page, report: Path, screen: str, scheme: Literal["light", "dark"]) -> None:
    browser.show(report, WIDTHS[screen], scheme, mobile=screen == "phone")
    assert browser.evaluate("innerWidth") == WIDTHS[screen]
    assert browser.evaluate(FAULTS) == []
    assert browser.requests == [report.as_uri()]
    assert browser.complaints == []


def test_faults_are_seen(browser: Page, tmp_path: Path) -> None:
    """The check above would be worthless if it passed on everything."""
    path = tmp_path / "faulty.html"
    texts = "".join(f'<text x="{x}" y="20">overlap</text>' for x in (10, 20, 395))
    chart = f'<svg class="chart" aria-label="c" width="380" height="40" viewBox="0 0 380 40">{texts}</svg>'
    path.write_text(
        f'<html style="background:#fff"><main><p style="color:#aaa;width:900px">pale</p>{chart}</main></html>'
    )
    browser.show(path, 390, "light")
    faults = "\n".join(browser.evaluate(FAULTS))
    for words in ("wide on a screen", "beyond the screen", "lies over", "is cut", "contrast"):
        assert words in faults


def test_both_schemes_are_different_colours(browser: Page, report: Path) -> None:
    grounds = []
    for scheme in SCHEMES:
        browser.show(report, 390, scheme)
        grounds.append(browser.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(21, 24, 29)"]


def test_tables_open_by_keyboard(browser: Page, report: Path) -> None:
    browser.show(report, 390, "light")
    browser.evaluate("document.querySelector('summary').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13, text="\r")
    assert browser.evaluate("document.querySelector('details').open")
    assert browser.evaluate(FAULTS) == []


def test_paper(browser: Page, report: Path) -> None:
    browser.show(report, 1280, "dark")
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("document.querySelector('figure table').getBoundingClientRect().height") > 10
    assert browser.print().startswith(b"%PDF")
