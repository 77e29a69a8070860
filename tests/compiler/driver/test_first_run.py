"""An engine runs once before it is called done: a prompt and a step, of each graph, whose logits are numbers."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.contract import DATA
from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.driver import first_run, measured_artifact
from llmc.compiler.driver.first_run import run_once, two_tokens
from llmc.compiler.driver.measured_artifact import measure_and_record
from llmc.runtimes.session.engine import GraphRun
from llmc.runtimes.session.host_logits import HostLogits

from ...runtimes.conftest import INFO
from .machine_fake import engine, graph


class Session:
    """Notes the shapes of its calls; ``broken`` is what the call of that number does."""

    rows = chooser = None

    def __init__(self, *, context: int = 64, broken: dict[int, Any] | None = None) -> None:
        self.info = replace(INFO, vocab_size=4, max_context=context)
        self.calls: list[tuple[int, ...]] = []
        self.broken, self.capacity, self.closed = broken or {}, 0, 0
        self.lengths = np.zeros(1, np.int64)

    def reset(self, batch: int, capacity: int) -> None:
        assert capacity <= self.info.max_context
        self.lengths = np.zeros(batch, np.int64)

    def forward(self, input_ids: Any, lengths: Any = None) -> HostLogits:
        assert input_ids.max() < self.info.vocab_size
        fault = self.broken.get(len(self.calls))
        self.calls.append(input_ids.shape)
        self.lengths = self.lengths + input_ids.shape[1]
        if isinstance(fault, Exception):
            raise fault
        logits = np.zeros((1, 1, 4), np.float32) if fault is None else np.full((1, 1, 4), fault, np.float32)
        return HostLogits(logits, np.zeros(1, np.int64))

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("context", "calls"), [(64, [(1, 5), (1, 1)]), (4, [(1, 2), (1, 1)]), (2, [(1, 1)]), (1, [(1, 1)])]
)
def test_a_prompt_and_a_step_run_as_far_as_the_context_goes(context: int, calls: list[tuple[int, int]]) -> None:
    session: Any = Session(context=context)
    two_tokens(session)
    assert session.calls == calls


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, manifest: Manifest, *sessions: Any) -> None:
    (tmp_path / DATA).write_bytes(b"weights")
    runs = [GraphRun(f"{index}.onnx", "", session) for index, session in enumerate(sessions)]
    monkeypatch.setattr(first_run, "get_engine", lambda name: SimpleNamespace(open_each=lambda directory: iter(runs)))
    run_once(tmp_path, manifest, NO_PROGRESS)


def test_each_graph_that_runs_here_runs_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, manifest: Manifest
) -> None:
    first, second = Session(), Session()
    run(monkeypatch, tmp_path, manifest, first, None, second)
    assert [(session.calls, session.closed) for session in (first, second)] == [([(1, 5), (1, 1)], 1)] * 2


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("fault", [np.nan, np.inf, EngineError("head_size shall be a multiple of 16")])
def test_a_graph_that_does_not_run_is_no_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, manifest: Manifest, call: int, fault: Any
) -> None:
    session = Session(broken={call: fault})
    words = (
        r"the logits of 1\.onnx are not finite .*a setting of config\.json" if isinstance(fault, float) else "of 16"
    )
    with pytest.raises(EngineError, match=words) as error:
        run(monkeypatch, tmp_path, manifest, Session(), session)
    # The engine is not there to be looked at.
    assert "llmc verify" not in str(error.value)
    assert session.closed == 1


def test_without_memory_nothing_runs_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(first_run, "_available_memory", lambda: 9)
    session = Session()
    with caplog.at_level(logging.WARNING):
        run(monkeypatch, tmp_path, manifest, session)
    assert session.calls == []
    assert "the engine was not run: it needs about 0 GiB of memory" in caplog.text


def test_a_graph_without_weights_does_not_run(tmp_path: Path, manifest: Manifest) -> None:
    run_once(tmp_path, manifest, NO_PROGRESS)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_engine_without_golden_data_is_run_and_a_graph_is_not(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    manifest: Manifest,
    caplog: pytest.LogCaptureFixture,
    target: str,
) -> None:
    def refuse(directory: Path, made: Manifest, progress: Any) -> None:
        raise EngineError("no kernel")

    monkeypatch.setattr(measured_artifact, "cuda_devices", list)
    monkeypatch.setattr(measured_artifact, "run_once", refuse)
    assert measure_and_record(tmp_path, graph(manifest, target), NO_PROGRESS)[1] is None
    if target == "cpu":
        with pytest.raises(EngineError, match="no kernel"):
            measure_and_record(tmp_path, engine(manifest, target), NO_PROGRESS)
    else:
        measure_and_record(tmp_path, engine(manifest, target), NO_PROGRESS)
        assert "the engine was not run: there is no GPU here, and the CPU does not run it (no kernel)" in caplog.text
