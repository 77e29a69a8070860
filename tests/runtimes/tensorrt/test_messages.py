"""What TensorRT-RTX 1.7 said, word for word, and what is made of it."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from llmc.runtimes.tensorrt.messages import Messages, explain, make_logger, parser_reasons

from .fake_tensorrt import ILogger

DRIVER = "CUDA driver version is insufficient for CUDA runtime version"
SAID = [
    (
        "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (In ScopedCudaStream at "
        f"/_src/common/dispatch/cudaResources.cpp:25 (cudaError 35: {DRIVER}))",
        f"CUDA failed: {DRIVER}; there is no NVIDIA driver here, or one that is too old",
    ),
    (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: attachExceptionMsgToGraph] "
        "MyelinCheckException: graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS) failed.  In compileGraph at "
        "/_src/optimizer/myelin/codeGenerator.cpp:2012)",
        "CHECK(status == CUDA_SUCCESS) failed; this build compiles kernels, which needs a GPU of the kind it is "
        "meant for",
    ),
    (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: run_passes] Cannot compile for "
        "target(s) sm80, because the model contains HW-specific datatypes: fp8_e4m3. In compileGraph at "
        "/_src/optimizer/myelin/codeGenerator.cpp:2012)",
        "Cannot compile for target(s) sm80, because the model contains HW-specific datatypes: fp8_e4m3; fp8 weights "
        "need a GPU of compute capability 8.9 or later: build for such GPUs alone",
    ),
]


@pytest.mark.parametrize(("message", "words"), SAID)
def test_a_message_in_words_and_what_to_do(message: str, words: str) -> None:
    assert explain(message) == words


def test_the_first_error_is_the_reason() -> None:
    messages = Messages()
    assert messages.reason() == "it gives no reason"
    messages.add("only a warning", is_error=False)
    messages.add("IExecutionContext::enqueueV3: Error Code 3: API Usage Error (no such tensor)", is_error=True)
    messages.add("what follows from it", is_error=True)
    assert messages.reason() == "API Usage Error (no such tensor)"
    messages.clear()
    assert messages.errors == []


def test_errors_are_kept_whatever_their_kind(caplog: pytest.LogCaptureFixture) -> None:
    """TensorRT's own class for them; what it says beside is left out."""
    messages = Messages()
    logger = make_logger(SimpleNamespace(ILogger=ILogger), messages)
    with caplog.at_level(logging.INFO, "llmc"):
        logger.log(ILogger.INFO, "by the way")
        logger.log(ILogger.WARNING, "odd")
        logger.log(ILogger.INTERNAL_ERROR, "broken inside")
        logger.log(ILogger.ERROR, "refused")
    assert messages.errors == ["broken inside", "refused"]
    assert caplog.messages == ["TensorRT: odd"]


def test_warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "llmc"):
        Messages().add("odd", is_error=False)
    assert [record.getMessage() for record in caplog.records] == ["TensorRT: odd"]


def test_the_parser_names_the_node() -> None:
    desc = 'softcap == 0.0 && "Setting softcap is not supported in TensorRT Attention."'
    error = SimpleNamespace(
        node_operator=lambda: "Attention", node_name=lambda: "layers.0/attention", desc=lambda: desc
    )
    nameless = SimpleNamespace(node_operator=lambda: "", node_name=lambda: "", desc=lambda: "")
    parser = SimpleNamespace(num_errors=2, get_error=[error, nameless].__getitem__)
    assert list(parser_reasons(parser)) == [
        "Attention layers.0/attention: Setting softcap is not supported in TensorRT Attention",
        "it gives no reason",
    ]
