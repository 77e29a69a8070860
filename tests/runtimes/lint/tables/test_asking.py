"""A runtime's process: what it is asked, what comes back, and that another one takes its place when it ended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.lint.tables import asking
from llmc.runtimes.lint.tables.asking import Asker

SCRIPT = """
import base64, json, os, sys, time
print(json.dumps({"version": sys.argv[1] + " 1.2", "kernels": [["k"]], "schemas": [["s"]]}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    model = base64.b64decode(request["model"]).decode()
    if model == "end":
        sys.exit(3)
    if model == "hang":
        time.sleep(5)
    answer = {"taken": model != "refuse", "message": f"{model} {request['optimize']} {os.getpid()}"}
    if request["inputs"]:
        answer |= {"outputs": [request["inputs"]["x"], None], "unread": ["a", "b"], "graph": request["model"]}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def asker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asker]:
    script = tmp_path / "ask.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(asking, "SCRIPT", script)
    with Asker("tool") as made:
        yield made


def process(asker: Asker) -> str:
    """The id of the process that answers."""
    return asker.ask(b"who").message.split()[-1]


def test_what_a_runtime_says_of_itself_and_of_models(asker: Asker) -> None:
    assert (asker.version, asker.kernels, asker.schemas) == ("tool 1.2", [["k"]], [["s"]])
    answer = asker.ask(b"model", {"x": np.array([[1, 2]], np.int8)}, optimize=True)
    assert answer.taken
    assert answer.message.startswith("model True ")
    assert (answer.unread, answer.graph, answer.crashed) == (("a", "b"), b"model", False)
    assert answer.outputs is not None
    first, second = answer.outputs
    assert first is not None
    assert (first.tolist(), first.dtype, second) == ([[1, 2]], np.int8, None)


def test_a_model_that_is_only_opened(asker: Asker) -> None:
    answer = asker.ask(b"refuse")
    assert not answer.taken
    assert answer.message.startswith("refuse False ")
    assert (answer.unread, answer.outputs, answer.graph, answer.crashed) == ((), None, b"", False)


@pytest.mark.parametrize("model", [b"end", b"hang"])
def test_a_process_that_ends_or_does_not_come_to_an_end(
    asker: Asker, monkeypatch: pytest.MonkeyPatch, model: bytes
) -> None:
    monkeypatch.setattr(asking, "PATIENCE_S", 0.3 if model == b"hang" else 20.0)
    before = process(asker)
    answer = asker.ask(model)
    assert (answer.taken, answer.crashed) == (False, True)
    assert "ended the process, or did not come to an end" in answer.message
    monkeypatch.setattr(asking, "PATIENCE_S", 20.0)
    assert process(asker) not in (before, "")


def test_a_restart_is_another_process(asker: Asker) -> None:
    before = process(asker)
    assert process(asker) == before
    first = asker._process
    asker.restart()
    assert first is not None
    assert first.poll() is not None
    assert process(asker) != before


def test_an_interpreter_without_the_runtime_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ask.py"
    script.write_text("raise SystemExit(1)")
    monkeypatch.setattr(asking, "SCRIPT", script)
    with pytest.raises(EngineError, match="does not start; name a Python in which the runtime is installed"):
        Asker("tool", sys.executable).__enter__()
