from __future__ import annotations

import pytest

from llmc.runtimes.lint.tables.record_traps import NOT_THERE, plain_message


@pytest.mark.parametrize(
    "message",
    [
        "false",
        'Assertion failed: creator && "Plugin not found, are the plugin name, version, and namespace correct?"',
        "FrontEnd API failed with OpConversionFailure: Model wasn't fully converted. Summary: -- No conversion rule "
        "found for operations: TensorScatter-24 To facilitate the conversion of unsupported operations, refer to x",
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for TensorScatter(24) node",
    ],
)
def test_an_operator_that_is_not_there(message: str) -> None:
    assert plain_message(message) == NOT_THERE


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        (
            'softcap == 0.0 && "Setting softcap is not supported in TensorRT Attention."',
            "Setting softcap is not supported in TensorRT Attention",
        ),
        (
            "Exception from src/core.cpp:105: FrontEnd API failed with OpConversionFailure: Model wasn't fully "
            "converted. Failed operations detailed log: -- com.microsoft.GroupQueryAttention with a message: While "
            "validating ONNX node '<Node(GroupQueryAttention): gqa>': GroupQueryAttention: softcap is not supported "
            "Summary: -- x",
            "GroupQueryAttention: softcap is not supported",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 3: API Usage Error (scatter: The cache tensor must be a "
            "network input.",
            "The cache tensor must be a network input",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Exception: onnxruntime::Gru<T>::Gru(const onnxruntime::Info&) Batchwise "
            "is not supported",
            "Batchwise is not supported",
        ),
    ],
)
def test_where_in_the_source_it_was_said_is_left_out(message: str, plain: str) -> None:
    assert plain_message(message) == plain
