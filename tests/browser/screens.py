"""Pictures of a report as phones and desks show it, light and dark, and on paper.

In: an HTML file, a folder. Out: PNG files and a PDF there, and what does not look right: a page that scrolls
sideways, texts of a chart that lie over each other or outside of it, text without contrast.

    python -m tests.browser.screens REPORT.html FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from tests.browser.chromium import open_page

WIDTHS = {"phone": 390, "desk": 1280}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

FAULTS = (Path(__file__).parent / "faults.js").read_text(encoding="utf-8")
"""An expression for the page: sentences."""


def take(report: Path, folder: Path) -> list[str]:
    """Write the pictures; what does not look right, each with its screen."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[str] = []
    for screen, width in WIDTHS.items():
        for scheme in SCHEMES:
            with open_page() as page:
                page.show(report, width, scheme, mobile=screen == "phone")
                faults: list[Any] = page.evaluate(FAULTS)
                found += [f"{screen}, {scheme}: {fault}" for fault in faults]
                (folder / f"{screen}-{scheme}.png").write_bytes(page.picture())
                if (screen, scheme) == ("desk", "light"):
                    (folder / "paper.pdf").write_bytes(page.print())
    return found


def main(arguments: list[str]) -> int:
    """Take the pictures of one report."""
    report, folder = map(Path, arguments)
    faults = take(report, folder)
    print(*faults, f"{len(faults)} faults; pictures lie in {folder}", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
