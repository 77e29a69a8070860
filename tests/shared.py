"""What is made once for all test files and for all processes that run them: exports, targets, engines, references."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

#: The folder; the process that starts the others sets it, and removes the folder in the end.
VARIABLE = "LLMC_TEST_SHARED"


class Shared:
    """A folder of artifacts that tests read and never change.

    Attributes:
        folder: The same for each process of one run of pytest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def current(cls) -> Shared:
        """Of this run of pytest."""
        return cls(Path(os.environ[VARIABLE]))

    def make(self, name: str, maker: Callable[[Path], object], **settings: Any) -> Path:
        """The path that ``maker`` made for these settings, in this process or in another.

        Args:
            name: What it is, with everything that decides about it that is not in ``settings``.
            maker: Called with the path to make, which does not exist.
            settings: What JSON can hold.
        """
        if settings:
            text = json.dumps(settings, sort_keys=True)
            name = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                partial = path.with_name(f"{path.name}.partial")
                maker(partial)
                partial.rename(path)
        return path
