"""What a session can do is asked of it, never of its class."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]


def asked_for(text: str) -> list[str]:
    """Classes of sessions that a source compares with."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and len(node.args) == 2]
    checks = [call for call in calls if ast.unparse(call.func) in {"isinstance", "issubclass"}]
    return [name for call in checks if (name := ast.unparse(call.args[1])).split(".")[-1].endswith("Session")]


def test_nobody_asks_for_the_class_of_a_session() -> None:
    paths = [path for folder in ("compiler", "passes", "runtimes") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 100
    assert not {str(path): names for path in paths if (names := asked_for(path.read_text(encoding="utf-8")))}
    assert asked_for("if isinstance(session, device.DeviceSession): pass") == ["device.DeviceSession"]
