"""ONNX Runtime on the CPU.

In (build): a target graph. Out: ``engine.onnx`` over the same weights file. Where llmc's own operators
are in it already, it runs with the kernel library of the machine that opens it; else it becomes the graph as ONNX
Runtime optimizes it, so that a start does not optimize again.
In (open): an engine's or a graph's directory. Out: a session.

``model.onnx`` needs nothing but ONNX Runtime. It is opened, with a warning that says why, where the machine cannot
run the kernels or the optimized graph belongs to another ONNX Runtime version.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import Manifest, engine_details
from llmc.compiler.base.contract import ENGINE_GRAPH, GRAPH, PAST, Contract
from llmc.compiler.base.errors import EngineError, MissingDependencyError, first_line
from llmc.compiler.base.processors import engine_threads, physical_cores
from llmc.compiler.base.targets import ORT_RELEASE
from llmc.runtimes.device.graph_io import cache_tensor
from llmc.runtimes.kernels.library import KernelsUnavailable, kernel_library
from llmc.runtimes.onnxruntime.all_logits import all_logits
from llmc.runtimes.onnxruntime.operator_profile import read_profile
from llmc.runtimes.onnxruntime.session import OnnxRuntimeSession
from llmc.runtimes.session.engine import (
    UNLIMITED,
    BuildRequest,
    BuiltEngine,
    Engine,
    EngineInfo,
    GraphRun,
    Session,
)
from llmc.runtimes.session.operator_times import EndProfile

log = logging.getLogger(__name__)
PROVIDERS = ["CPUExecutionProvider"]
ORT_OPERATORS, OWN_OPERATORS = "ONNX Runtime's", "llmc's own, the others ONNX Runtime's"


class _GraphUnavailable(Exception):
    """An engine's own graph does not run on this machine; the text says why."""


class OnnxRuntimeCpu(Engine):
    """The engine; see :class:`llmc.runtimes.session.engine.Engine`."""

    name = "onnxruntime-cpu"

    def build(self, request: BuildRequest) -> BuiltEngine:
        """Make ``engine.onnx``, unless passes already made it of llmc's own operators."""
        import onnxruntime

        session = _session_options(request.threads)
        details = {"kernels": "llmc.cpu"}
        if request.rewritten is None:
            details = {"onnxruntime": onnxruntime.__version__}
            # Level 3 would add layouts of this very processor; level 2: every fusion that any x86 or Arm CPU can run.
            session.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            session.optimized_model_filepath = str(request.output / ENGINE_GRAPH)
        else:
            # A check folds nothing: what bodies of packed products make of their weights would be thrown away.
            session.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # To check or optimize a graph, its weights need not be packed.
        session.add_session_config_entry("session.disable_prepacking", "1")
        _make_inference(request.model, session)
        return BuiltEngine(request.rewritten or request.output / ENGINE_GRAPH, details)

    def open(self, directory: Path, *, threads: int | None = None) -> Session:
        """Load an engine or a graph; see :meth:`llmc.runtimes.session.engine.Engine.open`."""
        manifest = open_artifact(directory).manifest
        try:
            graph = ENGINE_GRAPH if _has_engine_graph(manifest) else GRAPH
            return self._open(directory, manifest, threads, graph, spinning=True)[0]
        except _GraphUnavailable as reason:
            log.warning("%s", reason)
        return self._open(directory, manifest, threads, GRAPH, spinning=True)[0]

    def open_profiled(
        self, directory: Path, *, threads: int | None = None, folder: Path
    ) -> tuple[Session, EndProfile]:
        """Load what :meth:`open` does, with ONNX Runtime's profiler on, which sees custom operators too."""
        manifest = open_artifact(directory).manifest
        count = engine_threads(threads, manifest.engine.threads if manifest.engine else None)
        options = _session_options(count, spinning=True)
        graph = _runnable_graph(manifest, options)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        inference = _make_inference(directory / graph, options)
        session = OnnxRuntimeSession(inference, engine_info(manifest, self.name, count, inference), manifest.contract)
        return session, lambda: read_profile(Path(inference.end_profiling()))

    def open_each(self, directory: Path, *, threads: int | None = None) -> Iterator[GraphRun]:
        """The engine's graph and the one that needs nothing but ONNX Runtime; of no engine the latter alone."""
        manifest = open_artifact(directory).manifest
        alone = True
        if _has_engine_graph(manifest):
            try:
                session, operators = self._open(directory, manifest, threads, ENGINE_GRAPH)
                yield GraphRun(ENGINE_GRAPH, operators, session)
                alone = False
            except _GraphUnavailable as reason:
                yield GraphRun(ENGINE_GRAPH, "", None, str(reason))
        try:
            session, operators = self._open(directory, manifest, threads, GRAPH)
        except EngineError as error:
            if alone:
                raise
            yield GraphRun(GRAPH, "", None, str(error))
        else:
            yield GraphRun(GRAPH, operators, session)

    def _open(
        self, directory: Path, manifest: Manifest, threads: int | None, graph: str, *, spinning: bool = False
    ) -> tuple[Session, str]:
        """One of an artifact's graphs, and whose operators compute it.

        Raises:
            _GraphUnavailable: it is an engine's own, and this machine does not run it.
        """
        count = engine_threads(threads, manifest.engine.threads if manifest.engine else None)
        options = _session_options(count, spinning=spinning)
        operators = _prepare_engine(manifest, options) if graph == ENGINE_GRAPH else ORT_OPERATORS
        inference = _make_inference(directory / graph, options)
        info = engine_info(manifest, self.name, count, inference)
        return OnnxRuntimeSession(inference, info, manifest.contract), operators

    def open_for_evaluation(self, directory: Path, *, threads: int | None = None) -> tuple[Session, str]:
        """The engine or graph as it is, but for the cut before the head: every position's logits."""
        manifest = open_artifact(directory).manifest
        count = engine_threads(threads, manifest.engine.threads if manifest.engine else None)
        options = _session_options(count)
        graph = _runnable_graph(manifest, options)
        return _open_every(directory, manifest, manifest.contract, directory / graph, options), ""


def _has_engine_graph(manifest: Manifest) -> bool:
    return manifest.engine is not None and not manifest.engine.details.keys().isdisjoint({"kernels", "onnxruntime"})


def _runnable_graph(manifest: Manifest, options: Any) -> str:
    """The graph that this machine runs, options made fit for it: an engine's own, else the other and a warning."""
    if _has_engine_graph(manifest):
        try:
            _prepare_engine(manifest, options)
            return ENGINE_GRAPH
        except _GraphUnavailable as reason:
            log.warning("%s", reason)
    return GRAPH


def _prepare_engine(manifest: Manifest, options: Any) -> str:
    """Make options fit an engine's own graph; returns whose operators compute it.

    Raises:
        _GraphUnavailable: the machine cannot run the kernels, or another ONNX Runtime optimized the graph.
    """
    import onnxruntime

    details = manifest.engine.details if manifest.engine else {}
    if "kernels" in details:
        try:
            library = kernel_library()
        except KernelsUnavailable as reason:
            raise _GraphUnavailable(f"running without llmc's CPU kernels, slower: {reason}") from reason
        options.register_custom_ops_library(str(library))
        return OWN_OPERATORS
    if (built_by := details["onnxruntime"]) != onnxruntime.__version__:
        raise _GraphUnavailable(
            f"built by onnxruntime {built_by}, opened by {onnxruntime.__version__}: optimizing again"
        )
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ORT_OPERATORS


def open_graph(directory: Path, *, threads: int | None = None, every: bool = False) -> Session:
    """The graph of an artifact, ``model.onnx``, whatever engine was built of it.

    Args:
        directory: Of the artifact.
        threads: Threads to compute with; None: one per physical core.
        every: Every position's logits, also where the graph cuts them.

    Raises:
        EngineError: ONNX Runtime has no kernel for one of its operators.
        ArtifactError: the directory is not what its manifest says.
        MissingDependencyError: onnxruntime is not installed.
    """
    manifest = open_artifact(directory).manifest
    # An engine that is told lengths was built of a graph that sums a mask.
    contract = replace(manifest.contract, lengths="mask")
    count = engine_threads(threads, None)
    if every:
        return _open_every(directory, manifest, contract, directory / GRAPH, _session_options(count))
    inference = _make_inference(directory / GRAPH, _session_options(count))
    info = engine_info(manifest, OnnxRuntimeCpu.name, count, inference)
    return OnnxRuntimeSession(inference, info, contract)


def _open_every(directory: Path, manifest: Manifest, contract: Contract, graph: Path, options: Any) -> Session:
    """A session of ``graph``, called by ``contract``, that gives every position's logits."""
    content = None
    if contract.logits == "last":
        content = all_logits(graph)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory))
    inference = _make_inference(graph, options, content)
    info = engine_info(manifest, OnnxRuntimeCpu.name, options.intra_op_num_threads, inference)
    return OnnxRuntimeSession(inference, replace(info, logits="all"), replace(contract, logits="all"))


def engine_info(
    manifest: Manifest, runtime: str, threads: int, inference: Any, *, device: str | None = None
) -> EngineInfo:
    """What a session of this manifest can do; ``device`` as ``cuda:0 NVIDIA H100``, for one that is not the host.

    Raises:
        EngineError: the graph gives no logits first, so it is none that llmc made.
    """
    logits = next(iter(inference.get_outputs()), None)
    if logits is None or len(logits.shape) != 3:
        raise EngineError(
            "the graph gives no logits [batch, sequence, vocabulary] as its first output; compile it again"
        )
    past = [cache_tensor(item) for item in inference.get_inputs() if item.name.startswith(PAST)]
    return EngineInfo(
        runtime=runtime,
        vocab_size=logits.shape[2],
        num_layers=sum(tensor.past.endswith(".key") for tensor in past),
        max_context=manifest.max_context or UNLIMITED,
        logits=manifest.contract.logits,
        cache=manifest.contract.cache,
        cache_bytes_per_token=sum(tensor.nbytes(1, 1) for tensor in past if tensor.axis is not None),
        weight_bytes=manifest.weight_bytes,
        precision=manifest.weights_label,
        threads=threads,
        details=engine_details(manifest, **({} if device is None else {"device": device})),
    )


def _session_options(threads: int | None, *, spinning: bool = False) -> Any:
    """What all sessions have in common.

    Args:
        threads: None: one per physical core.
        spinning: Idle threads look for work for a while before they sleep. A decode step is many short products, and
            none of them should wait until a thread is awake. What checks or measures numbers can: a thread that spins
            beside other busy processes takes the time that those with work would have, the session's own included.
    """
    try:
        import onnxruntime
    except ImportError as error:
        hint = "onnxruntime is not installed; pip install 'llmc-toolchain[cpu]'"
        raise MissingDependencyError(hint) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # Else products with dequantized weights round their activations to 8 bits, which the graph does not ask for.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return options


def _make_inference(graph: Path, options: Any, content: bytes | None = None) -> Any:
    """A graph loaded; ``content`` in the place of the file's."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(content or str(graph), options, providers=PROVIDERS)
    except Exception as error:
        installed = onnxruntime.__version__
        older = [int(part) for part in installed.split(".")[:2]] < [int(part) for part in ORT_RELEASE.split(".")]
        cure = (
            f"; graphs are made for ONNX Runtime {ORT_RELEASE}: install that or a newer one, or optimize again with "
            "--for-installed-runtime"
        )
        raise EngineError(
            f"ONNX Runtime {installed} refuses {graph.name}: {first_line(error)}{cure if older else ''}"
        ) from error
