"""What is said where OpenVINO is missing or older than the engine; how its plugin is told to compile."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from llmc.compiler.base.errors import EngineError, MissingDependencyError
from llmc.compiler.base.options import CompileOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model
from llmc.runtimes.openvino.library import last_line, load_openvino, plugin_options, require_reads, version_of


class Core:
    """OpenVINO's, on a processor with the given types."""

    def __init__(self, *capabilities: str) -> None:
        self._capabilities = list(capabilities)

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self._capabilities


@pytest.fixture
def installed() -> ModuleType:
    module = ModuleType("openvino")
    module.__version__ = "2026.4.1-22982-e213a147257-releases/2026/4"  # type: ignore[attr-defined]
    return module


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llmc-toolchain\[openvino\]'"):
        load_openvino()


def test_a_missing_library_is_said_before_a_model_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match="OpenVINO is not installed"):
        compile_model("no/such/model", tmp_path / "out", CompileOptions(optimize=OptimizeOptions(target="openvino")))


def test_the_release(installed: ModuleType) -> None:
    assert version_of(installed) == "2026.4.1"


@pytest.mark.parametrize("built_by", ["2026.4.1", "2026.4.9", "2025.3.0", "2025.10.0"])
def test_what_older_releases_and_patches_wrote_is_read(installed: ModuleType, built_by: str) -> None:
    require_reads(installed, built_by)


@pytest.mark.parametrize(
    ("built_by", "message"),
    [
        ("2026.10.0", "built by OpenVINO 2026.10.0"),
        ("2026.5.0", "built by OpenVINO 2026.5.0, and 2026.4.1 is installed; install that or a newer"),
        ("2027.0.0", "built by OpenVINO 2027.0.0"),
        (None, "names no release of OpenVINO"),
        ("new", "names no release of OpenVINO"),
    ],
)
def test_an_older_library_is_refused(installed: ModuleType, built_by: object, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        require_reads(installed, built_by)


def test_float32_stays_float32() -> None:
    options = plugin_options(Core("FP32", "BF16", "INT8"), "fp32", 3)
    assert options["INFERENCE_PRECISION_HINT"] == options["KV_CACHE_PRECISION"] == "f32"
    assert options["INFERENCE_NUM_THREADS"] == 3
    assert options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_one_request_is_computed_at_a_time(precision: str) -> None:
    options = plugin_options(Core("FP32", "BF16"), precision, 2)
    assert (options["PERFORMANCE_HINT"], options["NUM_STREAMS"]) == ("LATENCY", "1")
    assert options["INFERENCE_NUM_THREADS"] == 2


def test_small_weights_leave_the_cache_to_the_plugin() -> None:
    options = plugin_options(Core("FP32", "BF16"), "int4", 2)
    assert not {"KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE"} & options.keys()


def test_small_weights_are_computed_in_bfloat16_where_the_processor_has_it() -> None:
    for precision in ("int4", "int8"):
        assert plugin_options(Core("FP32", "BF16"), precision, 1)["INFERENCE_PRECISION_HINT"] == "bf16"
        assert plugin_options(Core("FP32"), precision, 1)["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.parametrize(
    ("message", "expected"),
    [("first\n last \n\n", "last"), ("one", "one"), (" \n", "no reason given"), ("", "no reason given")],
)
def test_the_last_line_says_the_most(message: str, expected: str) -> None:
    assert last_line(message) == expected
