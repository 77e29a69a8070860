"""Engines bound to a device, on a stand-in: what is read of an engine, how it comes and goes, what is said of one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.interface import Buffer, HostDevice
from llmc.runtimes.memory.capacity_plan import Bucket, CapacityPlan
from llmc.runtimes.tensorrt.bindings import BINDINGS, Library
from llmc.runtimes.tensorrt.decoder import DIAGNOSES, TensorRTDecoder, _diagnoses

from ..tiny_engine import CountingDevice
from .fake_tensorrt import DECODE, PREFILL, FakeEngine, FakeModule, write_engine

PLAN = CapacityPlan((Bucket(8, "engine_8.plan", 1), Bucket(16, "engine_16.plan", 1)), 2, 4, 16)
LAYERS = (10, 0, 2)


class Waiting(CountingDevice):
    """Tells when it was waited for, too."""

    def wait(self) -> None:
        self.events.append("wait")


def save_graph(folder: Path, kind: str) -> Path:
    """Caches that stay as they are; logits are the token times 1 to 5."""
    element = f"{kind}[batch, 2, slots, 4]"
    names = [f"{layer}.{part}" for layer in LAYERS for part in ("value", "key")]
    past = ", ".join(f'{element} "past_key_values.{name}"' for name in names)
    present = ", ".join(f'{element} "present.{name}"' for name in names)
    body = " ".join(f'"present.{name}" = Identity("past_key_values.{name}")' for name in names)
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
        m (int64[batch, sequence] input_ids, int64[batch] past_lengths, {past})
        => (float[batch, sequence, 5] logits, {present}) {{
        {body} ids = Cast<to=1>(input_ids) wide = Unsqueeze(ids, axis) logits = Mul(wide, slopes) }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.helper.make_tensor("axis", TensorProto.INT64, [1], [2]))
    model.graph.initializer.append(onnx.helper.make_tensor("slopes", TensorProto.FLOAT, [5], [1, 2, 3, 4, 5]))
    onnx.save_model(model, folder / "graph.onnx")
    return folder / "graph.onnx"


@pytest.fixture
def module() -> FakeModule:
    return FakeModule()


def open_decoder(
    folder: Path, module: FakeModule, device: HostDevice | None = None, kind: str = "float"
) -> TensorRTDecoder:
    graph = save_graph(folder, kind)
    for bucket in PLAN.buckets:
        write_engine(folder / bucket.file, graph, bucket.capacity, PLAN.max_batch, PLAN.chunk)
    library = Library(BINDINGS["tensorrt-rtx"], module)
    return TensorRTDecoder(library, folder, PLAN, device or HostDevice())


@pytest.mark.parametrize(
    ("kind", "number", "dtype"),
    [
        ("float", TensorProto.FLOAT, np.float32),
        ("float16", TensorProto.FLOAT16, np.float16),
        ("bfloat16", TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    ],
)
def test_the_caches_of_an_engine(tmp_path: Path, module: FakeModule, kind: str, number: int, dtype: Any) -> None:
    """By layer, 2 before 10, in the type in which they are kept."""
    decoder = open_decoder(tmp_path, module, kind=kind)
    names = [f"past_key_values.{layer}.{part}" for layer in sorted(LAYERS) for part in ("key", "value")]
    assert [tensor.past for tensor in decoder.cache] == names
    assert decoder.cache[-1].present == "present.10.value"
    assert {(tensor.element_type, tensor.dtype) for tensor in decoder.cache} == {(number, np.dtype(dtype))}
    assert decoder.cache[0].shape(2, 8) == (2, 2, 8, 4)
    assert (decoder.vocab_size, decoder.logits_type) == (5, np.float32)
    assert decoder._element_type("past_key_values.0.key")[1] == dtype
    decoder.close()


def test_how_it_wants_its_inputs(tmp_path: Path, module: FakeModule) -> None:
    traits = open_decoder(tmp_path, module).traits
    assert (traits.lengths, traits.lengths_type) == ("past_lengths", np.int64)
    assert (traits.ends_with_chunk, traits.ragged_chunks) == (False, True)
    assert (traits.capacities, traits.max_chunk) == ((8, 16), 4)


def test_one_engine_is_there_at_a_time(tmp_path: Path, module: FakeModule) -> None:
    """Whatever runs has ended before it goes, and its memory goes before the next one's comes."""
    device = Waiting()
    decoder = open_decoder(tmp_path, module, device)
    assert (module.alive, device.events) == ([8], ["allocate"])
    device.events.clear()
    decoder.load(8)
    assert device.events == []
    decoder.load(16)
    assert (module.alive, device.events) == ([16], ["wait", "free", "allocate"])
    device.events.clear()
    decoder.close()
    assert (module.alive, device.events, device.held) == ([], ["wait", "free"], {})
    decoder.close()
    with pytest.raises(EngineError, match="no engine is loaded: the session was closed"):
        decoder.run(None)  # type: ignore[arg-type]


def test_runs_of_one_token_have_kernels_of_their_own(tmp_path: Path, module: FakeModule) -> None:
    device = HostDevice()
    decoder = open_decoder(tmp_path, module, device)
    buffers: dict[str, Buffer] = {name: device.allocate(256) for name in ("input_ids", "past_lengths", "logits")}
    cache = {tensor.past: device.allocate(tensor.nbytes(2, 8)) for tensor in decoder.cache}

    def values(chunk: int) -> Any:
        shapes = {"input_ids": (2, chunk), "past_lengths": (2,), "logits": (2, chunk, 5), "last_rows": (2,)}
        return {name: (buffers.get(name, buffers["logits"]), shape) for name, shape in shapes.items()}

    device.upload(buffers["input_ids"], np.array([[1, 2, 3], [4, 5, 6]]))
    bound = decoder.bind(values(3), cache, 2, 8, 3)
    decoder.run(bound)
    expected = np.arange(1, 7)[:, None] * np.arange(1, 6)
    assert buffers["logits"].owner.view(np.float32)[:30].reshape(6, 5).tolist() == expected.tolist()
    device.upload(buffers["input_ids"], np.array([[7], [8]]))
    decoder.rebind(bound, values(1), 4)
    decoder.run(bound)
    assert buffers["logits"].owner.view(np.float32)[:2].tolist() == [7, 14]
    assert module.runs == [(8, PREFILL, (2, 3)), (8, DECODE, (2, 1))]
    with pytest.raises(EngineError, match=r"does not take input_ids of shape \[2, 5\]: .*outside profile 0"):
        decoder.run(decoder.bind(values(5), cache, 2, 8, 5))


@pytest.mark.parametrize("made", [(2, 2, 9, 4), (2, 2, 8), (2, 8, 2, 4)])
def test_an_engine_of_another_cache(
    tmp_path: Path, module: FakeModule, monkeypatch: pytest.MonkeyPatch, made: tuple[int, ...]
) -> None:
    monkeypatch.setattr(FakeEngine, "get_tensor_shape", lambda self, name: made)
    with pytest.raises(EngineError, match=r"past_key_values\.0\.key of shape .* is no cache of 8 slots; build again"):
        open_decoder(tmp_path, module)


def test_an_engine_of_another_type(tmp_path: Path, module: FakeModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "get_tensor_dtype", lambda self, name: "DataType.FP8")
    with pytest.raises(EngineError, match=r"past_key_values\.0\.key of type FP8 cannot be read"):
        open_decoder(tmp_path, module)


def test_a_file_that_is_missing_or_empty(tmp_path: Path, module: FakeModule) -> None:
    decoder = open_decoder(tmp_path, module)
    (tmp_path / "engine_16.plan").write_bytes(b"")
    with pytest.raises(EngineError, match=r"engine_16\.plan cannot be read: .*; build the engine again"):
        decoder.load(16)
    (tmp_path / "engine_8.plan").unlink()
    with pytest.raises(EngineError, match=r"engine_8\.plan cannot be read"):
        decoder.load(8)


def test_everything_that_is_wrong_with_an_engine_is_said() -> None:
    flags = SimpleNamespace(VERSION_MISMATCH=1, UNSUPPORTED_CC=2, OLD_CUDA_DRIVER=4, CUDA_ERROR=64)
    module = SimpleNamespace(EngineInvalidityDiagnostics=flags)
    assert list(_diagnoses(module, 0)) == []
    assert list(_diagnoses(module, 2)) == [DIAGNOSES["UNSUPPORTED_CC"]]
    assert list(_diagnoses(module, 1 | 4 | 64)) == [
        DIAGNOSES[name] for name in ("VERSION_MISMATCH", "OLD_CUDA_DRIVER", "CUDA_ERROR")
    ]
    assert list(_diagnoses(SimpleNamespace(), 3)) == []
