"""Engines from a graph, one per length of the cache.

In: ``engine.onnx`` with its weights beside it, options. Out: engine files, a :class:`CapacityPlan` and a
:class:`Receipt`.

Every engine has two optimization profiles: prefill (chunks of 1 to ``chunk`` tokens) and decode (1 token), for 1 to
``max_batch`` rows. The builder runs in a thread of its own, so that an interrupt stops it at its next step.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.progress import Progress
from llmc.runtimes.memory.capacity_plan import Bucket, CapacityPlan
from llmc.runtimes.tensorrt.bindings import Library
from llmc.runtimes.tensorrt.build_options import BuildOptions
from llmc.runtimes.tensorrt.engine_graph import EngineGraph
from llmc.runtimes.tensorrt.file_cache import FileCache, write_atomically
from llmc.runtimes.tensorrt.lost_inputs import require_nothing_lost
from llmc.runtimes.tensorrt.messages import parser_reasons
from llmc.runtimes.tensorrt.receipt import Receipt, find_unpacked, make_receipt

log = logging.getLogger(__name__)
PREFILL, DECODE = 0, 1
"""Indices of the optimization profiles."""
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Built:
    """What a build made: which engine serves which length, and the precision of the layers, the same in all."""

    plan: CapacityPlan
    receipt: Receipt


def build_engines(
    library: Library,
    graph: EngineGraph,
    output: Path,
    options: BuildOptions,
    progress: Progress,
    timings: FileCache | None = None,
) -> Built:
    """Write one engine per capacity into ``output``.

    Raises:
        EngineError: the parser refuses a node or leaves an input out, the builder fails, or, with ``strict``, a
            product runs in another precision than asked.
    """
    buckets, receipt = [], None
    for capacity in options.capacities:
        build = _Build(library, graph, capacity, options, progress, timings)
        network, made = build.parse()
        receipt = receipt or made
        if options.engine.strict and made.findings:
            raise EngineError(f"{'; '.join(made.findings[:3])} ({len(made.findings)} in all)")
        content = build.run(network)
        name = f"engine_{capacity}.plan"
        write_atomically(output / name, content)
        size = memoryview(content).nbytes
        if (sentence := find_unpacked(made, size)) is not None:
            receipt = receipt.with_finding(sentence)
            if options.engine.strict:
                raise EngineError(sentence)
        buckets.append(Bucket(capacity, name, size))
    assert receipt is not None
    asked = options.engine
    context = min(options.context or buckets[-1].capacity, buckets[-1].capacity)
    plan = CapacityPlan(tuple(buckets), asked.max_batch, asked.chunk, context, stripped=asked.strip_weights)
    return Built(plan, receipt)


class _Build:
    """One engine."""

    def __init__(
        self,
        library: Library,
        graph: EngineGraph,
        capacity: int,
        options: BuildOptions,
        progress: Progress,
        timings: FileCache | None,
    ) -> None:
        self._library, self._graph, self._options = library, graph, options
        self._progress, self._timings = progress, timings
        self._stage = f"Building {library.binding.title} engine for {capacity:,} slots"
        self._capacity, self._model = capacity, graph.at_capacity(capacity)
        self._builder = library.module.Builder(library.logger)
        if self._builder is None:
            raise EngineError(f"{library.title} cannot start its builder: {library.messages.reason()}")

    def parse(self) -> tuple[Any, Receipt]:
        """The network, whole, and its receipt."""
        library = self._library
        library.messages.clear()
        self._progress.start(self._stage)
        network = library.make_network(self._builder)
        parser = library.module.OnnxParser(network, library.logger)
        if not parser.parse(self._model.SerializeToString(), str(self._graph.path)):
            reasons = list(parser_reasons(parser)) or [library.messages.reason()]
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            raise EngineError(f"{library.title} refuses the graph: {reasons[0]}{more}")
        require_nothing_lost(library.title, network, parser, self._model)
        return network, make_receipt(network, self._model, self._options.precision)

    def run(self, network: Any) -> Any:
        """The serialized engine."""
        library = self._library
        config = self._builder.create_builder_config()
        for profile in (PREFILL, DECODE):
            config.add_optimization_profile(self._profile(network, profile))
        library.choose_gpus(config, self._options.engine.capabilities)
        library.set_flags(config, strip_weights=self._options.engine.strip_weights)
        if self._timings is not None:
            library.use_timing_cache(config, self._timings.read())
        library.messages.clear()
        content = self._serialize(network, config)
        if content is None:
            raise EngineError(f"{library.title} cannot build the engine: {self._reason()}")
        if self._timings is not None and (measured := library.timing_cache(config)):
            self._timings.write(measured)
        return content

    def _serialize(self, network: Any, config: Any) -> Any:
        """Build in a thread: the caller's own can then be interrupted, and the build stops at its next step."""
        stop, result, failed = threading.Event(), [], list[BaseException]()
        monitor = _make_monitor(self._library.module, stop, self._progress, self._stage)
        if monitor is not None:
            config.progress_monitor = monitor

        def work() -> None:
            try:
                result.append(self._builder.build_serialized_network(network, config))
            except Exception as error:  # noqa: BLE001 - raised again below, in the caller's thread
                failed.append(error)

        thread = threading.Thread(target=work, name="tensorrt-build", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(POLL_SECONDS)
        except BaseException:
            stop.set()
            thread.join()
            raise
        if failed:
            raise EngineError(f"{self._library.title} failed: {failed[0]}") from failed[0]
        return result[0]

    def _profile(self, network: Any, profile: int) -> Any:
        # No run writes more than the cache holds, so a short cache needs no longer chunks.
        chunk = min(self._options.engine.chunk, self._capacity) if profile == PREFILL else 1
        made = self._builder.create_optimization_profile()
        dims = {value.name: value.type.tensor_type.shape.dim for value in self._graph.inputs}
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            least, most = [], []
            for size, dim in zip(tensor.shape, dims[tensor.name], strict=True):
                free = size < 0
                largest = chunk if dim.dim_param == "sequence" else self._options.engine.max_batch
                least.append(1 if free else int(size))
                most.append(largest if free else int(size))
            # Kernels are chosen for the most: a full chunk, all rows.
            made.set_shape(tensor.name, least, most, most)
        return made

    def _reason(self) -> str:
        """Why the build failed, with the ONNX node where a message names one."""
        reason = self._library.messages.reason()
        said = " ".join(self._library.messages.errors)
        named = [node.name for node in self._model.graph.node if len(node.name) > 3 and node.name in said]
        return f"{reason} (at {max(named, key=len)})" if named and named[0] not in reason else reason


def _make_monitor(module: Any, stop: threading.Event, progress: Progress, stage: str) -> Any:
    """A progress monitor, where the library has them: steps of the outermost phase are passed on."""
    if not hasattr(module, "IProgressMonitor"):
        return None

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        """Subclass of TensorRT's own class, which exists once the module is loaded."""

        _outer: str | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outer = phase_name
                progress.start(stage, total=int(num_steps), unit="steps")

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._outer:
                self._outer = None

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outer:
                progress.advance(int(step) + 1)
            return not stop.is_set()

    return Monitor()
