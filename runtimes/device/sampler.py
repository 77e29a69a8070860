"""The sampling step of the decode loop as an ONNX graph, for logits that stay on a device.

In: what the rows ask for, the logits' width and type. Out: a model that a step of decoding runs after the decoder:

    logits, active                 ─▶ next_ids          the token, which the next decode reads
    seqlens_k, active              ─▶ next_seqlens_k    one more where the row goes on
    step                           ─▶ next_step         step + 1
    settings, uniforms[step]       each row's temperature and filters, and its draw

Greedy rows alone need the first two lines, and the graph for them has no more. Any other batch, greedy rows in it
included, runs one of few graphs (:class:`SamplerKind`) whose settings are an input: rows may differ, and what a row
is given does not depend on the others.

Nothing goes to the host. ``next_ids``, ``next_step`` and ``next_seqlens_k`` may lie in the memory of the decoder's
``input_ids`` and of ``step`` and ``seqlens_k``: one node alone reads each of these inputs, the elementwise one that
writes its successor, and everything else reads what that node wrote. Merged into the decoder's own graph that would
not be enough, since its nodes read ``seqlens_k`` too: keep this a session of its own.

The semantics are those of :class:`Sampler`: for the same seed, row and step the same token,
except where rounding decides. The bounds between tokens lie where they lie on the host to within about 1e-7 of the
total (float32 weights, 24 bits of the uniform), so the more tokens can be drawn, the more draws differ. Measured on
the CPU with normal random logits at temperature 0.8: at most 1 of 2,048 with any filter and without one (deviation 3,
32,000 tokens); without a filter 3 of 1,024 (deviation 2, 128,256 tokens). Bounds that the host does not have:

* top-k: of the tokens as likely as the k-th, up to :data:`~llmc.runtimes.device.draw.TIES` are kept beyond the k.
* top-p without top-k: among the :data:`CANDIDATES` most likely tokens. Where their mass does not reach top_p, all of
  them are kept, and the draw is renormalised over them.
* Which of several equally likely tokens stand inside top-p, or within the bounds above, follows from the order in
  which TopK puts them: ONNX says by index, and CUDA's kernel keeps to it only over short axes.

Rows whose logits hold NaN or positive infinity get the token -1, as finished rows do. A greedy row of nothing but
negative infinity is not told apart: its token means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.device.draw import (
    TIES,
    GraphWriter,
    RowSettings,
    draw_from_all,
    draw_from_candidates,
    sum_is_sound,
)
from llmc.runtimes.session.capabilities import RowState
from llmc.runtimes.session.sampling_params import SamplingParams

MAX_TOP_K = 1024
CANDIDATES = (128, MAX_TOP_K + TIES)
"""The most likely tokens among which rows with a small top-k choose, and those with a larger one or top-p alone."""
UNIFORM_STEPS = 64
"""Steps whose uniforms are on the device at a time."""
_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_GREEDY, _AMONG_CANDIDATES, _FROM_ALL = 0.0, 1.0, 2.0
_COLUMNS = 5  # temperature, top-k, top-p, log of min-p, and one of the three ways above


@dataclass(frozen=True)
class SamplerKind:
    """What a sampler's graph can do beside taking the most likely token.

    Attributes:
        candidates: Most likely tokens among which rows with top-k or top-p choose; 0: no row has either.
        from_all: Rows may draw from the whole vocabulary.
    """

    candidates: int = 0
    from_all: bool = False

    @property
    def greedy(self) -> bool:
        """Whether it can do nothing else."""
        return not self.candidates and not self.from_all


def supports(params: SamplingParams) -> bool:
    """Whether a sampler here can do this; otherwise the host samples.

    The repetition penalty would need every token said so far, and a top-k above :data:`MAX_TOP_K` sorts too much.
    """
    return params.repetition_penalty == 1 and (params.greedy or params.top_k <= MAX_TOP_K)


def kind_of(settings: Sequence[SamplingParams], vocab_size: int) -> SamplerKind:
    """The least that serves rows with these settings."""
    ways = [(_way_of(params, vocab_size), params.top_k) for params in settings]
    limits = [top_k if 0 < top_k < vocab_size else MAX_TOP_K for way, top_k in ways if way == _AMONG_CANDIDATES]
    enough = next(count for count in CANDIDATES if count >= max(limits, default=0) + TIES)
    return SamplerKind(min(enough, vocab_size) if limits else 0, any(way == _FROM_ALL for way, _ in ways))


def settings_of(rows: Sequence[RowState | None], kind: SamplerKind, vocab_size: int) -> npt.NDArray[np.float32]:
    """The ``settings`` of a sampler of this kind, [batch, 5] float32."""
    result = np.tile(np.array([1, max(kind.candidates, 1), math.inf, -math.inf, _GREEDY], np.float32), (len(rows), 1))
    for line, row in zip(result, rows, strict=True):
        if row is not None and not row.settings.greedy:
            params = row.settings
            line[[0, 4]] = params.temperature, _way_of(params, vocab_size)
            if 0 < params.top_k < vocab_size:
                line[1] = params.top_k
            if params.top_p < 1:
                line[2] = params.top_p
            if params.min_p > 0:
                line[3] = math.log(params.min_p)
    return result


def _way_of(params: SamplingParams, vocab_size: int) -> float:
    if params.greedy:
        return _GREEDY
    return _AMONG_CANDIDATES if 0 < params.top_k < vocab_size or params.top_p < 1 else _FROM_ALL


def uniforms(rows: Sequence[RowState | None], begin: int) -> npt.NDArray[np.float32]:
    """What :func:`~llmc.runtimes.session.sampling.random_uniform` gives, for :data:`UNIFORM_STEPS` steps at once.

    Args:
        rows: Seed, number and next step of each row; None: its draws do not matter.
        begin: Steps that the rows have gone since they stood so.

    Returns:
        [UNIFORM_STEPS, batch] float32, rounded down, so below 1.
    """
    exact = np.zeros((UNIFORM_STEPS, len(rows)), np.float64)
    for column, row in enumerate(rows):
        if row is None:
            continue
        key = np.array([row.settings.seed, row.row_id], np.uint64)
        generator = np.random.Philox(key=key, counter=np.array([row.step + begin, 0, 0, 0], np.uint64))
        # One draw takes the first of the four words of a counter; the generator counts up before each four.
        exact[:, column] = (generator.random_raw(4 * UNIFORM_STEPS)[::4] >> 11) * 2.0**-53
    rounded = exact.astype(np.float32)
    return np.where(rounded > exact, np.nextafter(rounded, np.float32(0)), rounded)


def build_sampler(
    kind: SamplerKind, vocab_size: int, logits_type: int, *, lengths_type: int = TensorProto.INT32
) -> onnx.ModelProto:
    """Make the graph.

    Inputs: ``logits`` [batch, 1, vocab_size]; ``active`` [batch] int32, 1 where the row goes on, else 0;
    ``seqlens_k`` [batch] of ``lengths_type``; and unless the kind is greedy ``settings`` [batch, 5] float32,
    ``uniforms`` [:data:`UNIFORM_STEPS`, batch] float32 and ``step`` [1] int64, which is one of its rows. Outputs:
    ``next_ids`` [batch, 1] int64, -1 in finished and broken rows; ``next_seqlens_k`` [batch]; ``next_step`` [1].

    Args:
        kind: What it can do.
        vocab_size: Width of the logits.
        logits_type: FLOAT, FLOAT16 or BFLOAT16 of ``onnx.TensorProto``.
        lengths_type: INT32 or INT64, as the decoder takes its rows' lengths.

    Raises:
        UsageError: a size or type is not one of these.
    """
    if logits_type not in _TYPES or vocab_size < 1:
        raise UsageError(
            f"logits of ONNX element type {logits_type} and {vocab_size} tokens cannot be sampled: use float32, "
            "float16 or bfloat16, and a token at least"
        )
    graph = GraphWriter(vocab_size)
    logits = graph.reshape("logits", -1, vocab_size)
    wide = logits if logits_type == TensorProto.FLOAT else graph.cast(logits, TensorProto.FLOAT)
    # CUDA's ArgMax makes float32 of float16 first, and here that has been done.
    token, sound = graph.op("ArgMax", wide, axis=1), sum_is_sound(graph, wide)
    if not kind.greedy:
        # bfloat16 is nothing that TopK takes.
        narrow = wide if logits_type == TensorProto.BFLOAT16 else logits
        token, sound = _draw(graph, kind, narrow, wide, token, sound)
    active = graph.reshape(graph.cast("active", TensorProto.BOOL), -1, 1)
    graph.op("Where", graph.op("And", sound, active), token, graph.constant(-1, np.int64), output="next_ids")
    more = "active" if lengths_type == TensorProto.INT32 else graph.cast("active", lengths_type)
    graph.op("Add", "seqlens_k", more, output="next_seqlens_k")
    return graph.model(*_interface(kind, vocab_size, logits_type, lengths_type))


def _draw(graph: GraphWriter, kind: SamplerKind, narrow: str, wide: str, token: str, sound: str) -> tuple[str, str]:
    """The drawn token where a row draws one; and whether the logits are sound, for both kinds of rows."""
    next_step = graph.op("Add", "step", graph.constant([1], np.int64), output="next_step")
    step = graph.op("Sub", next_step, graph.constant([1], np.int64))  # ``step`` itself may be overwritten by now
    uniform = graph.reshape(graph.op("Gather", "uniforms", step, axis=0), -1, 1)
    columns = [graph.at("settings", column, 1) for column in range(_COLUMNS)]
    settings, way = RowSettings(*columns[:-1]), columns[-1]
    draws = []
    if kind.candidates:
        limited = kind.candidates < min(CANDIDATES[-1], graph.vocab_size)
        draws.append(draw_from_candidates(graph, settings, kind.candidates, narrow, wide, uniform, limited=limited))
    if kind.from_all:
        draws.append(draw_from_all(graph, settings, wide, uniform))
    drawn, mass = draws[0]
    if len(draws) > 1:
        among = graph.op("Less", way, graph.number(_FROM_ALL))
        drawn, mass = (graph.op("Where", among, one, other) for one, other in zip(*draws, strict=True))
    greedy = graph.op("Less", way, graph.number(_AMONG_CANDIDATES))
    possible = graph.op("Or", greedy, graph.op("Greater", mass, graph.number(0.0)))
    return graph.op("Where", greedy, token, drawn), graph.op("And", sound, possible)


def _interface(
    kind: SamplerKind, vocab_size: int, logits_type: int, lengths_type: int
) -> tuple[list[Any], list[Any]]:
    """The graph's inputs and outputs."""
    lengths = (lengths_type, ["batch"])
    inputs: dict[str, tuple[int, list[Any]]] = {
        "logits": (logits_type, ["batch", 1, vocab_size]),
        "active": (TensorProto.INT32, ["batch"]),
        "seqlens_k": lengths,
    }
    outputs: dict[str, tuple[int, list[Any]]] = {
        "next_ids": (TensorProto.INT64, ["batch", 1]),
        "next_seqlens_k": lengths,
    }
    if not kind.greedy:
        inputs |= {
            "settings": (TensorProto.FLOAT, ["batch", _COLUMNS]),
            "uniforms": (TensorProto.FLOAT, [UNIFORM_STEPS, "batch"]),
            "step": (TensorProto.INT64, [1]),
        }
        outputs["next_step"] = (TensorProto.INT64, [1])
    return (
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
    )
