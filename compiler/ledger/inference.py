"""A graph between two passes on ONNX Runtime's CPU provider, as it stands: nothing is fused, nothing is packed.

In: a copy of a model, its weights in files (:mod:`~llmc.compiler.ledger.weight_files`). Out: an ``InferenceSession``;
inputs and outputs of the calls of one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.contract import ATTENTION_MASK, INPUT_IDS, PAST, POSITION_IDS, Contract
from llmc.compiler.base.errors import EngineError, MissingDependencyError, first_line
from llmc.runtimes.device.decoder import CacheTensor
from llmc.runtimes.device.graph_io import cache_tensor

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Array = npt.NDArray[Any]


def load_graph(model: ir.Model) -> InferenceSession:
    """The graph, loaded; its weights are mapped, so that it takes little memory of its own.

    Raises:
        EngineError: the provider has no kernel for one of its operators, or the graph is none by itself.
        MissingDependencyError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "passes are measured on ONNX Runtime, which is not installed; pip install 'llmc-toolchain[cpu]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    # Else what a call took stays taken, and the sessions of several graphs are open at once.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    # Weights lie in several folders, and a path that leads out of the model's own is refused.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/")
    try:
        content = ir.to_proto(model).SerializeToString()
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"ONNX Runtime's CPU provider refuses the graph: {first_line(error)}") from error


def run_graph(inference: InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs of one call, by name.

    Raises:
        EngineError: a kernel failed.
    """
    names = [item.name for item in inference.get_outputs()]
    try:
        return dict(zip(names, inference.run(names, dict(feeds)), strict=True))
    except Exception as error:
        raise EngineError(f"ONNX Runtime failed: {first_line(error)}") from error


def call_feeds(
    inference: InferenceSession, contract: Contract, tokens: Array, past: Mapping[str, Array]
) -> dict[str, Array]:
    """What one row of tokens is as a graph's inputs.

    Args:
        inference: The graph.
        contract: How it wants to be called.
        tokens: [sequence] int64.
        past: Name of a cache's input -> what the row holds, [1, heads, past, dim], or a state's own shape; empty
            before the first call.

    Raises:
        EngineError: the graph has inputs that one row of tokens does not say.
    """
    caches = _caches(inference)
    held = _slots(caches, past)
    total = held + len(tokens)
    known: dict[str, Array] = {
        INPUT_IDS: tokens[None],
        ATTENTION_MASK: np.ones((1, total), np.int64),
        POSITION_IDS: np.arange(held, total, dtype=np.int64)[None],
    }
    for tensor in caches:
        known[tensor.past] = np.zeros(tensor.shape(1, total if contract.cache == "shared" else held), tensor.dtype)
        if tensor.past in past:
            filled = tuple(slice(size) for size in past[tensor.past].shape)
            known[tensor.past][filled] = past[tensor.past]
    inputs = [item.name for item in inference.get_inputs()]
    if unknown := set(inputs) - known.keys():
        raise EngineError(f"nothing says what {min(unknown)} is in a call of one row")
    return {name: known[name] for name in inputs}


def held_after(
    inference: InferenceSession, past: Mapping[str, Array], count: int, values: Mapping[str, Array]
) -> dict[str, Array]:
    """What a row holds after a call of ``count`` tokens that gave ``values``: the next call's ``past``."""
    caches = _caches(inference)
    held = _slots(caches, past) + count
    return {
        tensor.past: values[tensor.present]
        if tensor.axis is None
        else np.ascontiguousarray(values[tensor.present].take(range(held), tensor.axis))
        for tensor in caches
    }


def keeps(inference: InferenceSession, past: Mapping[str, Array]) -> bool:
    """Whether a graph's cache can hold ``past``; numbers of 8 bits are in units of the graph's own."""
    kinds = {tensor.past: tensor.dtype.kind for tensor in _caches(inference)}
    return all(kinds.get(name) == array.dtype.kind for name, array in past.items())


def _caches(inference: InferenceSession) -> list[CacheTensor]:
    return [cache_tensor(item) for item in inference.get_inputs() if item.name.startswith(PAST)]


def _slots(caches: Sequence[CacheTensor], past: Mapping[str, Array]) -> int:
    """Tokens that a row holds."""
    held = (past[item.past].shape[item.axis] for item in caches if item.axis is not None and item.past in past)
    return next(held, 0)
