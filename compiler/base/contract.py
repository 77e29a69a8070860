"""How a graph wants to be called: the names of its inputs and outputs, and the rules by which a session feeds it.

In: what passes state about the graph that they leave. Out: :class:`Contract`, which the manifest keeps and sessions
obey. Nobody infers a rule from which passes ran, and nobody spells a name out that stands here.

    input_ids [batch, seq]   attention_mask [batch, total]   position_ids [batch, seq], where the graph asks for them
    past_key_values.{i}.…    →    present.{i}.…        logits [batch, seq or 1, vocab]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

INPUT_IDS, ATTENTION_MASK, POSITION_IDS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
SEQLENS, TOTAL_LENGTH = "seqlens_k", "total_sequence_length"
CHUNK_LENGTHS, PAST_LENGTHS, LAST_ROWS = "chunk_lengths", "past_lengths", "last_rows"
"""Inputs in the place of a mask, where lengths are inputs."""
PAST, PRESENT = "past_key_values.", "present."
"""Prefixes of the cache's inputs and outputs; behind them stand a layer's number and what it keeps."""
GRAPH, ENGINE_GRAPH, DATA = "model.onnx", "engine.onnx", "model.onnx.data"
"""Files: a graph, the one that its engine is opened with or built of where that is another, the weights of both."""

Rows = Literal["slot0", "mask"]
Lengths = Literal["mask", "inputs"]
CacheKind = Literal["grow", "shared"]
LogitsKind = Literal["last", "all"]
FloatType = Literal["fp32", "fp16", "bf16"]


class ContractPart(TypedDict, total=False):
    """What one pass states: fields of :class:`Contract` that hold from there on."""

    rows: Rows
    ragged_chunks: bool
    lengths: Lengths
    cache: CacheKind
    logits: LogitsKind
    rounded_to: FloatType | None


@dataclass(frozen=True)
class Contract:
    """How a graph wants to be called; the defaults are those of a portable graph.

    Attributes:
        rows: ``slot0``: each row's tokens lie from slot 0 of its cache on; ``mask``: slots of the cache are columns
            of the attention mask.
        ragged_chunks: Rows of one chunk may differ in length when the cache is not empty.
        lengths: ``mask``: the graph sums a mask to know what rows hold; ``inputs``: it is told.
        cache: ``grow``: present = past + new; ``shared``: past and present are one fixed buffer.
        logits: ``last``: one row a sequence; ``all``: one a position.
        rounded_to: Narrowest float type that weights went through, whatever they are computed with; None: their own.
    """

    rows: Rows = "mask"
    ragged_chunks: bool = True
    lengths: Lengths = "mask"
    cache: CacheKind = "grow"
    logits: LogitsKind = "all"
    rounded_to: FloatType | None = None
