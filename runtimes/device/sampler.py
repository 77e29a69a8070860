"""The sampling step of the decode loop as an ONNX graph, for logits that stay on a device.

In: sampling parameters, the logits' width and type. Out: a model that a step of decoding runs after the decoder:

    logits, uniforms[step], active ─▶ next_ids          the token, which the next decode reads
    step                           ─▶ next_step         step + 1
    seqlens_k, active              ─▶ next_seqlens_k    one more where the row goes on
    log, step                      ─▶ next_log          row ``step`` holds the tokens; the host reads it at leisure

Nothing goes to the host. ``next_ids``, ``next_step``, ``next_seqlens_k`` and ``next_log`` may lie in the memory of
the decoder's ``input_ids`` and of ``step``, ``seqlens_k`` and ``log``: one node alone reads each of these inputs, the
elementwise one that writes its successor, and everything else reads what that node wrote. Merged into the decoder's
own graph that would not be enough, since its nodes read ``seqlens_k`` too: keep this a session of its own.

The semantics are those of :class:`Sampler`: for the same seed, row and step the same token,
except where rounding decides. The bounds between tokens lie where they lie on the host to within about 1e-7 of the
total (float32 weights, 24 bits of the uniform), so the more tokens can be drawn, the more draws differ. Measured on
the CPU with normal random logits at temperature 0.8: at most 1 of 2,048 with any filter and without one (deviation 3,
32,000 tokens); without a filter 3 of 1,024 (deviation 2, 128,256 tokens). Bounds that the host does not have:

* top-k: of the tokens as likely as the k-th, up to :data:`~llmc.runtimes.device.draw.TIES` are kept beyond the k.
* top-p without top-k: among the :data:`~llmc.runtimes.device.draw.TOP_P_CANDIDATES` most likely tokens. Where their
  mass does not reach top_p, all of them are kept, and the draw is renormalised over them.
* Which of several equally likely tokens stand inside top-p, or within the bounds above, follows from the order in
  which TopK puts them: ONNX says by index, and CUDA's kernel keeps to it only over short axes.

Rows whose logits hold NaN or positive infinity get the token -1, as finished rows do. A row of nothing but negative
infinity is not told apart when greedy or with top-k: its token means nothing and may lie outside the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.device.draw import (
    GraphWriter,
    draw_from_all,
    draw_from_candidates,
    most_likely,
    sum_is_sound,
    uses_candidates,
)
from llmc.runtimes.session.capabilities import RowState
from llmc.runtimes.session.sampling_params import SamplingParams

MAX_TOP_K = 1024
GreedyKind = Literal["argmax", "topk"]
_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def supports(params: SamplingParams) -> bool:
    """Whether :func:`build_sampler` can do this; otherwise the host samples.

    The repetition penalty would need every token said so far, and a top-k above :data:`MAX_TOP_K` sorts too much.
    """
    return params.repetition_penalty == 1 and (params.greedy or params.top_k <= MAX_TOP_K)


def uniforms(rows: Sequence[RowState | None], steps: int) -> npt.NDArray[np.float32]:
    """What :func:`~llmc.runtimes.session.sampling.random_uniform` gives, for all steps at once.

    Args:
        rows: Seed, number and next step of each row; None: its draws do not matter.
        steps: Number of steps, of which the first is not drawn for: it stands for the rows' newest token.

    Returns:
        [steps, batch] float32, rounded down, so below 1.
    """
    exact = np.zeros((steps, len(rows)), np.float64)
    for column, row in enumerate(rows):
        if row is None:
            continue
        # One draw takes the first of the four words of a counter; the generator counts up before each four.
        key, counter = (
            np.array(words, np.uint64) for words in ([row.settings.seed, row.row_id], [row.step, 0, 0, 0])
        )
        generator = np.random.Philox(key=key, counter=counter)
        exact[1:, column] = (generator.random_raw(4 * (steps - 1))[::4] >> 11) * 2.0**-53
    rounded = exact.astype(np.float32)
    return np.where(rounded > exact, np.nextafter(rounded, np.float32(0)), rounded)


def build_sampler(
    params: SamplingParams,
    vocab_size: int,
    logits_type: int,
    max_steps: int,
    *,
    greedy_kind: GreedyKind = "argmax",
    lengths_type: int = TensorProto.INT32,
) -> onnx.ModelProto:
    """Make the graph.

    Inputs: ``logits`` [batch, 1, vocab_size]; ``uniforms`` [max_steps, batch] float32 (not when greedy); ``step`` [1]
    int64; ``active`` [batch] int32, 1 where the row goes on, else 0; ``seqlens_k`` [batch] of ``lengths_type``;
    ``log`` [max_steps, batch] int64. Outputs: ``next_ids`` [batch, 1] int64, -1 in finished and broken rows;
    ``next_step`` [1] int64; ``next_seqlens_k`` [batch]; ``next_log`` [max_steps, batch] int64. When greedy, a step of
    ``max_steps`` or more leaves the log as it is; otherwise there is no uniform for it, and it must not be run.

    Args:
        params: How tokens are chosen.
        vocab_size: Width of the logits.
        logits_type: FLOAT, FLOAT16 or BFLOAT16 of ``onnx.TensorProto``.
        max_steps: Rows of the log and of the uniforms.
        greedy_kind: The operator that finds the most likely token. ``argmax`` gives the lowest of equal ones (on CUDA
            as far as cuDNN does); ``topk`` does so on the CPU, and may give any of them on CUDA.
        lengths_type: INT32 or INT64, as the decoder takes its rows' lengths.

    Raises:
        UsageError: :func:`supports` says no, or a size or type is not one of these.
    """
    _check(params, vocab_size, logits_type, max_steps)
    graph = GraphWriter()
    next_step = graph.op("Add", "step", graph.constant([1], np.int64), output="next_step")
    logits = graph.reshape("logits", -1, vocab_size)
    wide = logits if logits_type == TensorProto.FLOAT else graph.cast(logits, TensorProto.FLOAT)
    if logits_type == TensorProto.BFLOAT16:
        logits = wide  # neither TopK nor ArgMax takes it
    if params.greedy:
        # CUDA's ArgMax makes float32 of float16 first, and here that has been done.
        by_sort = greedy_kind == "topk"
        token = most_likely(graph, logits, vocab_size, 1)[1] if by_sort else graph.op("ArgMax", wide, axis=1)
        sound = sum_is_sound(graph, wide)
    else:
        uniform = _uniform(graph, next_step)
        if uses_candidates(params, vocab_size):
            token, sound = draw_from_candidates(graph, params, vocab_size, logits, wide, uniform)
        else:
            token, sound = draw_from_all(graph, params, vocab_size, wide, uniform)
    _write(graph, token, sound, next_step, max_steps, lengths_type)
    return graph.model(*_interface(params, vocab_size, logits_type, max_steps, lengths_type))


def _check(params: SamplingParams, vocab_size: int, logits_type: int, max_steps: int) -> None:
    if not supports(params):
        raise UsageError(
            f"repetition penalty {params.repetition_penalty} with top-k {params.top_k} is sampled on the host; on "
            f"the device the penalty must be 1 and top-k at most {MAX_TOP_K}"
        )
    if logits_type not in _TYPES:
        raise UsageError(
            f"logits of ONNX element type {logits_type} cannot be sampled: use float32, float16 or bfloat16"
        )
    if vocab_size < 1 or max_steps < 1:
        raise UsageError(
            f"a sampler of {vocab_size} tokens and {max_steps} steps does nothing: both must be at least 1"
        )


def _uniform(graph: GraphWriter, next_step: str) -> str:
    """This step's uniforms, [batch, 1]."""
    step = graph.op("Sub", next_step, graph.constant([1], np.int64))
    return graph.reshape(graph.op("Gather", "uniforms", step, axis=0), -1, 1)


def _write(graph: GraphWriter, token: str, sound: str, next_step: str, max_steps: int, lengths_type: int) -> None:
    """The outputs besides ``next_step``."""
    active = graph.reshape(graph.cast("active", TensorProto.BOOL), -1, 1)
    valid = graph.op("And", sound, active)
    ids = graph.op("Where", valid, token, graph.constant(-1, np.int64), output="next_ids")
    more = "active" if lengths_type == TensorProto.INT32 else graph.cast("active", lengths_type)
    graph.op("Add", "seqlens_k", more, output="next_seqlens_k")
    # Steps counted from 1, so that ``step`` itself need not be read after next_step was written.
    is_row = graph.op("Equal", graph.constant(np.arange(1, max_steps + 1)[:, None], np.int64), next_step)
    graph.op("Where", is_row, graph.reshape(ids, 1, -1), "log", output="next_log")


def _interface(
    params: SamplingParams, vocab_size: int, logits_type: int, max_steps: int, lengths_type: int
) -> tuple[list[Any], list[Any]]:
    """The graph's inputs and outputs."""
    log, lengths = (TensorProto.INT64, [max_steps, "batch"]), (lengths_type, ["batch"])
    inputs = {
        "logits": (logits_type, ["batch", 1, vocab_size]),
        "uniforms": (TensorProto.FLOAT, [max_steps, "batch"]),
        "step": (TensorProto.INT64, [1]),
        "active": (TensorProto.INT32, ["batch"]),
        "seqlens_k": lengths,
        "log": log,
    }
    if params.greedy:
        del inputs["uniforms"]
    outputs = {
        "next_ids": (TensorProto.INT64, ["batch", 1]),
        "next_step": (TensorProto.INT64, [1]),
        "next_seqlens_k": lengths,
        "next_log": log,
    }
    return (
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
    )
