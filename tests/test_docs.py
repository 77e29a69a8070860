"""Pages for people name files that are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PATH = re.compile(r"(?<![\w/.-])(?:compiler|passes|runtimes|tests)/[\w./*-]*\w/?")
NAME = re.compile(r"`(?:[\w./-]*/)?(\w+\.(?:py|c|h))`")
LINK = re.compile(r"\]\(([^)#:]+)[)#]")
NAMES = {path.name for folder in ("compiler", "passes", "runtimes", "tests") for path in (ROOT / folder).rglob("*.*")}
PATTERNS = {"verb_noun.py"}
"""Names that stand for many."""


def missing(text: str, folder: Path) -> Iterator[str]:
    """What a page in ``folder`` names and nobody finds."""
    yield from (path for path in PATH.findall(text) if not list(ROOT.glob(path.rstrip("/"))))
    yield from (name for name in NAME.findall(text) if name not in NAMES | PATTERNS)
    yield from (link for link in LINK.findall(text) if not (folder / link).exists())


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_files_that_are_named_exist(page: Path) -> None:
    lost = sorted(set(missing(page.read_text(encoding="utf-8"), page.parent)))
    assert not lost, f"{page.relative_to(ROOT)} names {lost}"


def test_what_is_lost_is_found_out() -> None:
    text = (
        "`compiler/driver.py` was moved, compiler/driver/*.py and `passes/runner.py` are there, so is `runner.py`; "
        "`nobody.py` never was, [this](README.md) is, [that](docs/gone.md#part) is not; a.org/tests/x is theirs"
    )
    assert list(missing(text, ROOT)) == ["compiler/driver.py", "nobody.py", "docs/gone.md"]
