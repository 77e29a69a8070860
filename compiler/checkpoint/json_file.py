"""JSON files of a checkpoint.

In: a path. Out: its JSON object, or an error that names the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmc.compiler.base.errors import CheckpointError, first_line


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object that ``path`` holds.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); see to it, or fetch it again.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a JSON object ({first_line(error)}); fetch it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object but a {type(content).__name__}; fetch it again.")
    return content
