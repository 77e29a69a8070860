"""When the reference runs, on what, and what stands in golden data then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import CheckpointError, UsageError, VerificationError
from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.progress import NoProgress
from llmc.compiler.checkpoint.weights import ArrayWeights, TensorInfo
from llmc.compiler.driver import captured_model
from llmc.compiler.driver.captured_model import (
    Captured,
    write_golden,
)
from llmc.compiler.driver.golden_recording import PROMPTS
from llmc.runtimes.evaluation.texts import evaluation_text
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.reference import session as reference


class Shapes:
    """A weight source that knows shapes only."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.infos = {name: TensorInfo(name, ir.DataType.FLOAT16, shape, 0) for name, shape in shapes.items()}

    def tensors(self) -> dict[str, TensorInfo]:
        return self.infos


@pytest.fixture
def hollow(manifest: Manifest) -> Captured:
    """1000 parameters, 400 of them under two names, and 700 values that the model does not take."""
    weights: Any = Shapes(embed=(20, 20), other=(600,), surplus=(700,))
    names = {"embed.weight": "embed", "lm_head.weight": "embed", "other": "other"}
    checkpoint: Any = SimpleNamespace(config=SimpleNamespace(), path=Path())
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    return Captured(checkpoint, model, manifest, weights, names)


NEEDED = 5200
"""Bytes that the reference of the model above takes: 1000 float32 values and 3 tenths."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done in place of running a reference."""
    done: list[str] = []
    golden = SimpleNamespace(save=lambda directory: done.append(f"saved in {directory.name}"))

    def record(reference: Any, prompts: Any, text: list[int], reading: Any, steps: int) -> Any:
        assert len(text) == (reading.length if reading else 0)
        assert ([len(prompt) for prompt in prompts], steps) == ([6, 23, 14], 16)
        done.append("recorded" if reading is None else f"recorded with {reading.length} tokens")
        return golden

    monkeypatch.setattr(captured_model, "load_reference_model", lambda captured: done.append("loaded"))
    monkeypatch.setattr(
        reference, "TransformersSession", lambda _: SimpleNamespace(close=lambda: done.append("closed"))
    )
    monkeypatch.setattr(captured_model, "record_golden", record)
    return done


@pytest.mark.parametrize(("verify", "available"), [("auto", NEEDED), ("on", NEEDED), ("auto", NEEDED + 2**27)])
def test_the_reference_runs_where_it_fits(
    hollow: Captured,
    recorded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    verify: Any,
    available: int,
) -> None:
    """Tied weights are in memory once, and what the model does not take is not."""
    monkeypatch.setattr(captured_model, "_available_memory", lambda: available)
    assert write_golden(hollow, tmp_path, ExportOptions(verify=verify), NoProgress()) is None
    text = "" if available == NEEDED else " with 552 tokens"
    assert recorded == ["loaded", f"recorded{text}", "closed", f"saved in {tmp_path.name}"]


def test_a_reference_that_does_not_fit_is_left_out_unless_it_was_asked_for(
    hollow: Captured, recorded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED - 1)
    reason = write_golden(hollow, tmp_path, ExportOptions(verify="auto"), NoProgress())
    assert reason is not None
    assert reason.startswith("the float32 reference needs about 0 GiB of memory")
    with pytest.raises(UsageError, match=r"the float32 reference needs about .* use --verify off"):
        write_golden(hollow, tmp_path, ExportOptions(verify="on"), NoProgress())
    assert not recorded


def test_nobody_runs_a_reference_that_is_not_wanted(
    hollow: Captured, recorded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(captured_model, "_available_memory", lambda: 0)
    assert write_golden(hollow, tmp_path, ExportOptions(verify="off"), NoProgress()) == "--verify off"
    assert not recorded


def test_a_session_ends_when_recording_fails(
    hollow: Captured, recorded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED)

    def fail(*_: Any) -> None:
        raise ValueError("within")

    monkeypatch.setattr(captured_model, "record_golden", fail)
    with pytest.raises(ValueError, match="within"):
        write_golden(hollow, tmp_path, ExportOptions(verify="on"), NoProgress())
    assert recorded == ["loaded", "closed"]


@pytest.mark.parametrize("broken", [True, False])
def test_a_tensor_that_makes_the_reference_say_nothing_is_named(
    hollow: Captured, recorded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: bool
) -> None:
    """Where all tensors are numbers, it is the reference itself."""

    def fail(*_: Any) -> None:
        raise VerificationError("not finite numbers")

    values = {"embed": np.ones((20, 20), np.float32), "other": np.ones(600, np.float32)}
    values["other"][7] = np.nan if broken else 1.0
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED)
    monkeypatch.setattr(captured_model, "record_golden", fail)
    captured = replace(hollow, weights=ArrayWeights(values))
    with pytest.raises(
        CheckpointError if broken else VerificationError, match="^other holds NaN" if broken else "not"
    ):
        write_golden(captured, tmp_path, ExportOptions(verify="on"), NoProgress())
    assert recorded == ["loaded", "closed"]


def test_a_context_of_one_token_has_no_golden_data(
    hollow: Captured, recorded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED)
    short = replace(hollow.manifest, model=replace(hollow.manifest.model, max_position_embeddings=1))
    reason = write_golden(replace(hollow, manifest=short), tmp_path, ExportOptions(verify="auto"), NoProgress())
    assert reason == "a context of 1 holds no prompt and a token behind it"
    assert not recorded


def test_types_of_a_graph() -> None:
    assert captured_model.DTYPES == {
        "fp32": ir.DataType.FLOAT,
        "fp16": ir.DataType.FLOAT16,
        "bf16": ir.DataType.BFLOAT16,
    }


def test_golden_prompts_are_texts_where_there_is_a_tokenizer(
    hollow: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(TextTokenizer, "from_directory", lambda _: SimpleNamespace(encode=lambda text: [len(text)]))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert captured_model._texts(hollow, tmp_path, 0) == ([[len(text)] for text in PROMPTS], [])
    assert not caplog.records
    (tmp_path / "tokenizer.json").unlink()
    prompts, text = captured_model._texts(hollow, tmp_path, 99)
    assert all(0 <= token < hollow.manifest.model.vocab_size for row in (*prompts, text) for token in row)
    assert (len(prompts), len(text), len(set(text)) > 90) == (3, 99, True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("letters", [1, 7, 20])
def test_the_long_text_is_read_as_far_as_it_is_needed(
    hollow: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, letters: int
) -> None:
    """The evaluation text, whatever a token holds of it; on the other text engines may have been calibrated."""
    read: list[str] = []

    def encode(text: str) -> list[int]:
        read.append(text)
        return [ord(text[at]) for at in range(0, len(text), letters)]

    monkeypatch.setattr(TextTokenizer, "from_directory", lambda _: SimpleNamespace(encode=encode))
    (tmp_path / "tokenizer.json").write_text("{}")
    _, text = captured_model._texts(hollow, tmp_path, 300)
    assert text == [ord(letter) for letter in evaluation_text()[: 300 * letters : letters]]
    assert evaluation_text() in read if letters == 20 else max(map(len, read)) < 2500


def test_a_vocabulary_that_says_a_text_in_few_tokens(
    hollow: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The long text has as many tokens as are wanted, also of a tokenizer that joins all that it does not know."""
    monkeypatch.setattr(TextTokenizer, "from_directory", lambda _: SimpleNamespace(encode=lambda text: [0]))
    (tmp_path / "tokenizer.json").write_text("{}")
    _, text = captured_model._texts(hollow, tmp_path, 300)
    assert len(text) == 300
    assert all(0 <= token < hollow.manifest.model.vocab_size for token in text)


def test_a_text_for_which_the_reference_has_no_memory_is_shorter_and_said(
    hollow: Captured,
    recorded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = SimpleNamespace(rope={"original_max_position_embeddings": 700})
    captured = replace(hollow, checkpoint=SimpleNamespace(config=config, path=Path()))
    room = 4 * (3 * 9 * 600**2 + (4 * 576 + 3 * 1536) * 600) - 1000
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED + room)
    write_golden(captured, tmp_path, ExportOptions(), NoProgress())
    assert recorded[1] == "recorded with 599 tokens"
    said = [record.getMessage() for record in caplog.records if "attention" in record.getMessage()]
    assert said == [
        "there is no memory for the reference's attention over a text of 740 tokens: golden data end at 599, and "
        "nothing of what begins at 700 is compared"
    ]
    caplog.clear()
    monkeypatch.setattr(captured_model, "_available_memory", lambda: NEEDED + 2 * room)
    write_golden(captured, tmp_path, ExportOptions(), NoProgress())
    assert recorded[5] == "recorded with 740 tokens"
    assert "attention" not in caplog.text
