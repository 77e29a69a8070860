"""push: what the library is asked for, and what a user sees of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock, create_autospec

import pytest
from typer.testing import Result

from llmc.compiler.artifact.reports import PushReport
from llmc.compiler.base.errors import HubError
from llmc.compiler.base.push_options import PushOptions
from llmc.compiler.driver import push as module

Run = Callable[..., Result]
CARD = "---\nlicense: mit\n---\n\n# [x] " + "y" * 300 + "\n"


@pytest.fixture
def push(monkeypatch: pytest.MonkeyPatch) -> Mock:
    fake: Mock = create_autospec(module.push)
    fake.return_value = PushReport("me/x", "main", "c0ffee", "https://hub/me/x", {"a": 3 << 20}, CARD)
    monkeypatch.setattr(module, "push", fake)
    return fake


def test_options(llmc: Run, push: Mock) -> None:
    words = ["--private", "--revision", "b", "--message", "m", "--bench", "r.json"]
    result = llmc("push", "out", "me/x", *words)
    assert result.exit_code == 0
    assert push.call_args.args == (Path("out"), "me/x", PushOptions(True, "b", "m", Path("r.json")))
    for text in ("pushed to me/x", "c0ffee", "https://hub/me/x", "2, 3.0 MiB"):
        assert text in result.stdout


def test_dry_run_prints_the_card_as_it_is(llmc: Run, push: Mock) -> None:
    push.return_value = PushReport("me/x", "main", None, None, {"a": 1}, CARD)
    assert llmc("push", "out", "me/x", "--dry-run").stdout == CARD
    assert push.call_args.args[2].dry_run


def test_json(llmc: Run, push: Mock) -> None:
    value = json.loads(llmc("push", "out", "me/x", "--json").stdout)
    assert (value["repository"], value["commit"], value["files"]) == ("me/x", "c0ffee", {"a": 3 << 20})


def test_refused(llmc: Run, push: Mock) -> None:
    push.side_effect = HubError("no.")
    result = llmc("push", "out", "me/x")
    assert (result.exit_code, result.stderr) == (11, "llmc: error: no.\n")
