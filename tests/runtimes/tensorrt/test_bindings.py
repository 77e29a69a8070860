"""The differences between TensorRT and TensorRT-RTX are in one table, and what a stand-in is asked follows it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from llmc.compiler.base.errors import EngineError, MissingDependencyError
from llmc.compiler.base.targets import get_target
from llmc.runtimes.tensorrt.bindings import BINDINGS, Library, open_library

from .fake_tensorrt import ILogger


@pytest.fixture(params=list(BINDINGS))
def library(request: pytest.FixtureRequest) -> Library:
    flags = SimpleNamespace(STRIP_PLAN="strip")
    if request.param == "tensorrt-rtx":
        flags.REQUIRE_USER_ALLOCATION = "user"
    module = SimpleNamespace(
        __version__="9.9",
        ILogger=ILogger,
        BuilderFlag=flags,
        NetworkDefinitionCreationFlag=SimpleNamespace(),
        ComputeCapability=SimpleNamespace(SM89="sm89", SM120="sm120"),
    )
    return Library(BINDINGS[request.param], module)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, binding in BINDINGS.items():
        monkeypatch.setitem(sys.modules, binding.module, None)
        with pytest.raises(MissingDependencyError, match=f"{binding.title} is not installed; pip install") as raised:
            open_library(name)
        assert f"llmc-toolchain[{name}]" in str(raised.value)


def test_what_doctor_asks_for_is_what_is_imported() -> None:
    for name, binding in BINDINGS.items():
        known = get_target(name).requirement
        assert binding.module in known.modules
        assert known.builds_without_gpu == binding.builds_anywhere
        accepted = known.capabilities
        assert all(capability.startswith(accepted) for capability in binding.capabilities)
        assert bool(accepted) == bool(binding.capabilities)


def test_a_gpu_that_it_does_not_run_on() -> None:
    BINDINGS["tensorrt"].require_runs_on("9.0")
    BINDINGS["tensorrt-rtx"].require_runs_on("8.9")
    with pytest.raises(
        EngineError, match=r"TensorRT-RTX does not run on GPUs of compute capability 9\.0, only on 7\.5"
    ):
        BINDINGS["tensorrt-rtx"].require_runs_on("9.0")


def test_gpus_to_build_for(library: Library) -> None:
    config = Mock(num_compute_capabilities=0)
    library.choose_gpus(config, ())
    assert not config.mock_calls
    if not library.binding.builds_anywhere:
        with pytest.raises(EngineError, match="TensorRT builds for the GPU of the machine it builds on"):
            library.choose_gpus(config, ("8.9",))
        return
    library.choose_gpus(config, ("8.9", "12.0"))
    assert config.num_compute_capabilities == 2
    assert [call.args for call in config.set_compute_capability.call_args_list] == [("sm89", 0), ("sm120", 1)]
    with pytest.raises(EngineError, match=r"cannot build for compute capability 9\.0"):
        library.choose_gpus(config, ("9.0",))


def test_a_timing_cache_where_kernels_are_timed(library: Library) -> None:
    config = Mock()
    config.get_timing_cache.return_value.serialize.return_value = b"timings"
    library.use_timing_cache(config, b"earlier")
    if library.binding.timing_cache:
        config.create_timing_cache.assert_called_once_with(b"earlier")
        config.set_timing_cache.assert_called_once_with(config.create_timing_cache.return_value, False)
        assert library.timing_cache(config) == b"timings"
    else:
        assert library.timing_cache(config) == b""
        assert not config.mock_calls


@pytest.mark.parametrize("strip", [True, False])
def test_flags_of_a_build(library: Library, strip: bool) -> None:
    config = Mock()
    library.set_flags(config, strip_weights=strip)
    wanted = ["user"] if library.binding.runtime == "tensorrt-rtx" else []
    assert [call.args[0] for call in config.set_flag.call_args_list] == wanted + (["strip"] if strip else [])


def test_types_are_the_graphs() -> None:
    """TensorRT 11 has no flag for it."""
    builder = Mock()
    for flags, bits in ((SimpleNamespace(STRONGLY_TYPED=1), 2), (SimpleNamespace(), 0)):
        module: Any = SimpleNamespace(__version__="1", ILogger=ILogger, NetworkDefinitionCreationFlag=flags)
        Library(BINDINGS["tensorrt"], module).make_network(builder)
        assert builder.create_network.call_args.args == (bits,)


@pytest.mark.parametrize(("parsed", "put"), [(True, True), (False, True), (True, False)])
def test_weights_are_put_into_an_engine(library: Library, parsed: bool, put: bool) -> None:
    refitter = Mock()
    refitter.refit_cuda_engine.return_value = put
    refitter.get_missing_weights.return_value = ["layers.0.q", "layers.0.k"]
    parser = Mock()
    parser.refit_from_bytes.return_value = parsed
    library.module.Refitter = Mock(return_value=refitter)
    library.module.OnnxParserRefitter = Mock(return_value=parser)
    if parsed and put:
        library.put_weights("engine", b"model", "dir/engine.onnx")
        library.module.Refitter.assert_called_once_with("engine", library.logger)
        parser.refit_from_bytes.assert_called_once_with(b"model", "dir/engine.onnx")
        return
    with pytest.raises(EngineError, match=r"cannot put the weights .*; layers\.0\.q and 1 more are missing"):
        library.put_weights("engine", b"model", "dir/engine.onnx")
