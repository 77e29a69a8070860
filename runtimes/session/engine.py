"""What every runtime offers: an engine that builds and opens, and a session that keeps the KV cache.

In: a target graph (build) or an engine's directory (open).
Out: a :class:`Session`, which the generation loop, ``llmc bench`` and ``llmc verify`` drive without knowing what runs
behind it.

The contract is made for four runtimes, ONNX Runtime on CPU and CUDA, TensorRT and OpenVINO:

* Buffers may live on a device. :meth:`Session.forward` therefore returns :class:`Logits`, a handle: ``host()``
  copies (or views) them as NumPy, ``argmax()`` may run where the logits are.
* Addresses may be fixed. :meth:`Session.reset` allocates everything for a batch and a capacity once; no later call
  allocates, so a runtime can capture its launches.
* A session may be able to edit its rows and to choose tokens on its device: ``capabilities.py``; nobody asks for its
  class.
* A runtime may need one profile per shape range. An engine's :class:`EngineInfo` says which capacities and chunk
  lengths it was built for, and ``reset`` refuses what lies outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.contract import CacheKind, LogitsKind
from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.options import EngineOptions
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.runtimes.session.capabilities import CacheSpoiler, RowEditor, TokenChooser
from llmc.runtimes.session.operator_times import EndProfile

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
UNLIMITED = 1 << 30
"""Context of a graph that computes its positions: only memory ends it."""


@dataclass(frozen=True)
class EngineInfo:
    """What a session can do, read from an engine's directory.

    Attributes:
        runtime: The runtime's name, as ``onnxruntime-cpu``.
        vocab_size: Width of the logits.
        num_layers: Layers that keep a KV cache.
        max_context: Most tokens (prompt and generated) that one row may hold.
        logits: ``last``: one row of logits per sequence; ``all``: one per position of the chunk.
        cache: ``shared``: past and present are one fixed buffer; ``grow``: present = past + new.
        cache_bytes_per_token: Bytes of KV cache that one token of one row takes, all layers.
        weight_bytes: Bytes of weights that one decode step reads (embedding rows excluded).
        precision: ``fp32``, ``int8``, ``int4``, …; of one that was asked for and of which no weight is, in words.
        threads: Threads that the runtime computes with; 0 when it has no such notion.
        profiles: Chunk lengths (min, max) that the engine was built for; empty when any will do.
        details: What a report says besides, as the device's name; no session decides anything by it.
        max_batch: Most rows that the engine was built for; None: any.
    """

    runtime: str
    vocab_size: int
    num_layers: int
    max_context: int
    logits: LogitsKind
    cache: CacheKind
    cache_bytes_per_token: int
    weight_bytes: int
    precision: str
    threads: int
    profiles: tuple[tuple[int, int], ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    max_batch: int | None = None


def require_room(info: EngineInfo, batch: int, capacity: int) -> None:
    """Check what a cache is asked to hold.

    Raises:
        EngineError: no row or no token, or more rows or tokens than the engine holds.
    """
    if batch < 1 or capacity < 1:
        raise EngineError(f"a cache of {batch} rows and {capacity} tokens holds nothing")
    if capacity > info.max_context:
        raise EngineError(
            f"{capacity} tokens are more than this engine's context of {info.max_context}; "
            "shorten the prompt, generate fewer tokens or optimize again with a larger --context"
        )
    if info.max_batch is not None and batch > info.max_batch:
        raise EngineError(
            f"{batch} rows are more than the {info.max_batch} that this engine was built for; "
            "run fewer at once, or build it again for more"
        )


def valid_tokens(held: Int64Array, capacity: int, input_ids: Int64Array, lengths: Int64Array | None) -> Int64Array:
    """Tokens that a chunk [batch, seq] adds to each row, [batch] int64.

    Raises:
        EngineError: the chunk has another number of rows, lengths do not fit it, or a row has no room for it.
    """
    batch, chunk = input_ids.shape
    if batch != len(held):
        raise EngineError(f"the session holds {len(held)} rows, not {batch}; reset it first")
    valid = np.full(batch, chunk, np.int64) if lengths is None else lengths
    if valid.shape != (batch,) or valid.min() < 0 or valid.max() > chunk:
        raise EngineError(f"a chunk of shape {[batch, chunk]} cannot have the lengths {valid.tolist()}")
    needed = int((held + valid).max())
    if needed > capacity:
        raise EngineError(f"a row would hold {needed} tokens, but the cache has room for {capacity}")
    return valid


def require_prefix(held: Int64Array, source: int, length: int, *, states: bool = False) -> None:
    """Check that the row ``source``, of rows that hold so many tokens, can be cut to ``length``.

    Raises:
        EngineError: it holds fewer, or keeps ``states``, which are those after its last token.
    """
    if not 0 <= length <= held[source]:
        raise EngineError(f"row {source} holds {held[source]} tokens, of which it cannot keep {length}")
    if states and length not in (0, held[source]):
        raise EngineError(
            f"row {source} keeps a recurrent state of {held[source]} tokens, which cannot go back to {length}; "
            "release the row and begin anew"
        )


def chunk_positions(held: Int64Array, valid: Int64Array, chunk: int) -> Int64Array:
    """Positions of a right-padded chunk, [batch, chunk] int64; padding repeats those of the last valid token."""
    return held[:, None] + np.minimum(np.arange(chunk), np.maximum(valid - 1, 0)[:, None])


class Logits(Protocol):
    """The logits of one forward call, wherever they are.

    They are overwritten by the next ``forward``: copy what must outlive it.
    """

    def host(self) -> FloatArray:
        """Float32 array in host memory, [batch, 1 or chunk, vocab_size]; a view where the runtime allows it."""

    def argmax(self) -> Int64Array:
        """Most likely token after each row's last valid position, [batch] int64; -1 where its logit is not finite."""


class Session(Protocol):
    """One loaded engine and one KV cache for a batch of rows.

    A chunk is right-padded: row ``b``'s valid tokens are ``input_ids[b, :lengths[b]]``. Rows may differ in length,
    in every chunk; a row with length 0 in a chunk keeps its state and its logits are unspecified.
    """

    info: EngineInfo
    """What this session can do."""

    @property
    def lengths(self) -> Int64Array:
        """Tokens each row holds now, [batch] int64."""

    @property
    def rows(self) -> RowEditor | None:
        """Edits single rows; None: rows stay as they are until :meth:`reset`."""
        return None

    @property
    def chooser(self) -> TokenChooser | None:
        """Chooses tokens on the session's device; None: the host does, from :meth:`forward`'s logits."""
        return None

    @property
    def spoiler(self) -> CacheSpoiler | None:
        """Changes what the cache keeps; None: nobody can."""
        return None

    def reset(self, batch: int, capacity: int) -> None:
        """Empty the cache and make room for ``capacity`` tokens in each of ``batch`` rows.

        Raises:
            EngineError: rows or capacity are beyond what the engine can run (:attr:`EngineInfo.max_batch` and
                :attr:`EngineInfo.max_context`), or memory does not suffice.
        """

    def forward(self, input_ids: Int64Array, lengths: Int64Array | None = None) -> Logits:
        """Append a right-padded chunk to every row and compute its logits.

        Args:
            input_ids: [batch, chunk] int64.
            lengths: Valid tokens per row in this chunk, [batch] int64; None: all ``chunk``.

        Raises:
            EngineError: a row would exceed the capacity, or (on some runtimes) the longest row and the chunk's
                columns together do; or the runtime failed.
        """

    def device_bytes(self) -> int | None:
        """Memory of the session's device in use now, by whatever program; None where that is the host's."""
        return None

    def close(self) -> None:
        """Free the engine's memory; the session cannot be used afterwards."""


@dataclass(frozen=True)
class BuildRequest:
    """What an engine is built of, where, and as what.

    Attributes:
        model: The target's graph; its weights lie beside it.
        rewritten: What the engine's own passes made of it, over the same weights; None where it has no such passes.
        output: Directory of the artifact, in which the graphs lie.
        options: What was asked of the engine; a runtime whose engines take any size needs none of it.
        threads: Threads to build for; None: chosen where the engine is opened.
        max_context: Longest row that the graph computes; None: only memory limits it.
        precision: Type of the weights that was asked for, with which a runtime may compare what it built.
        progress: Told how far it is.
    """

    model: Path
    rewritten: Path | None
    output: Path
    options: EngineOptions = field(default_factory=EngineOptions)
    threads: int | None = None
    max_context: int | None = None
    precision: str | None = None
    progress: Progress = NO_PROGRESS

    @property
    def graph(self) -> Path:
        """The graph to build of."""
        return self.rewritten or self.model


@dataclass(frozen=True)
class BuiltEngine:
    """What a build made: the graph that is opened, or that its files were built of, and what ``open`` will read."""

    graph: Path
    details: Mapping[str, Any]


@dataclass(frozen=True)
class GraphRun:
    """A graph of an artifact, and how it runs on this machine.

    Attributes:
        graph: Its file.
        operators: Whose operators compute it, as ``ONNX Runtime's``.
        session: It, open; None where it does not run here.
        remark: What runs in the artifact's place, or why it does not run: one clause; else empty.
    """

    graph: str
    operators: str
    session: Session | None
    remark: str = ""


class Engine(Protocol):
    """A runtime: makes an engine of a target graph, and opens it."""

    name: ClassVar[str]
    """As ``onnxruntime-cpu``."""

    def build(self, request: BuildRequest) -> BuiltEngine:
        """Write the engine's files.

        Raises:
            UsageError: the options do not fit the graph.
            EngineError: the runtime refuses the graph.
            MissingDependencyError: it is not installed.
        """

    def open(self, directory: Path, *, threads: int | None = None) -> Session:
        """Load an engine (or a graph, where the runtime runs graphs as they are).

        Args:
            directory: An llmc artifact with ``llmc.json``.
            threads: Threads to compute with; None: what the manifest says, else one per physical core.

        Raises:
            EngineError: the directory holds no engine yet, its device is not here or has too little memory, or the
                runtime refuses the engine, which a newer release may have built.
            ArtifactError: the directory is not what its manifest says, or lacks weights that the runtime needs.
            MissingDependencyError: the runtime is not installed.
        """

    def open_each(self, directory: Path, *, threads: int | None = None) -> Iterator[GraphRun]:
        """Every graph of an artifact that runs on its own here, one open at a time, that of :meth:`open` first.

        An engine whose device is not here is stood in for by what computes on the CPU as nearly the same as there is.
        Whoever is given a session closes it before the next is asked for.

        Raises:
            LlmcError: as :meth:`open`; where nothing stands in, both reasons are said.
        """

    def open_for_evaluation(self, directory: Path, *, threads: int | None = None) -> tuple[Session, str]:
        """As :meth:`open`, or what stands in for it; where that can be done, with the logits of every position.

        Returns:
            A session, and one clause that says what it runs where that is not the engine itself; else empty.
        """
        return self.open(directory, threads=threads), ""

    def open_profiled(
        self, directory: Path, *, threads: int | None = None, folder: Path
    ) -> tuple[Session, EndProfile]:
        """As :meth:`open`, with the runtime's own profiler on.

        Args:
            directory, threads: As :meth:`open`.
            folder: Where the profiler may write.

        Returns:
            A session, and what ends the profile and tells its runs.

        Raises:
            EngineError: the runtime has no profiler that llmc reads.
        """
        raise EngineError(f"{self.name} does not tell how long its operators take")
