"""TensorRT and TensorRT-RTX.

In (build): a target graph, of which passes have made ``engine.onnx``. Out: ``engine_N.plan`` for each length
N of the cache, ``receipt.json``, and what the manifest records. TensorRT-RTX builds on any machine; TensorRT needs
the GPU that it builds for.
In (open): an engine's directory and a GPU. Out: a session whose cache, inputs and logits live on the GPU; decode
steps are recorded as CUDA graphs. Tokens are chosen on the GPU where ONNX Runtime for CUDA is installed, else on the
host.

Building is tested with TensorRT-RTX itself. Sessions are tested with a stand-in for TensorRT's runtime that computes
on the host; no engine of these has run on a GPU yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from onnx import TensorProto

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import Manifest, engine_details
from llmc.compiler.base.contract import ENGINE_GRAPH, GRAPH
from llmc.compiler.base.errors import EngineError, MissingDependencyError
from llmc.compiler.base.json_record import to_text
from llmc.runtimes.device.cuda import CudaDevice, cuda_devices, require_gpu
from llmc.runtimes.device.interface import HostDevice
from llmc.runtimes.device.sampler_cache import SamplerCache
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.memory.capacity_plan import CapacityPlan
from llmc.runtimes.onnxruntime.cpu_engine import ORT_OPERATORS, open_graph
from llmc.runtimes.onnxruntime.cuda_engine import PROVIDER, load
from llmc.runtimes.session.engine import BuildRequest, BuiltEngine, Engine, EngineInfo, GraphRun, Session
from llmc.runtimes.tensorrt.bindings import Library, open_library
from llmc.runtimes.tensorrt.build_options import BuildOptions
from llmc.runtimes.tensorrt.builder import build_engines
from llmc.runtimes.tensorrt.decoder import TensorRTDecoder
from llmc.runtimes.tensorrt.engine_graph import read_engine_graph
from llmc.runtimes.tensorrt.file_cache import FileCache
from llmc.runtimes.tensorrt.receipt import RECEIPT

log = logging.getLogger(__name__)


class TensorRT(Engine):
    """TensorRT; see :class:`llmc.runtimes.session.engine.Engine`."""

    name: ClassVar[str] = "tensorrt"

    def build(self, request: BuildRequest) -> BuiltEngine:
        """Write an engine for each length of the cache.

        Raises:
            UsageError: a length is beyond the graph's context.
            EngineError: the library refuses the graph, or leaves something out of it.
            MissingDependencyError: the library is not installed.
        """
        library = open_library(self.name)
        asked = BuildOptions(request.options, request.max_context, request.precision)
        graph = read_engine_graph(request.graph)
        cache = FileCache.in_home(self.name, f"{library.version}.timings")
        timings = cache if library.binding.timing_cache else None
        built = build_engines(library, graph, request.output, asked, request.progress, timings)
        (request.output / RECEIPT).write_text(to_text(built.receipt.to_json()), encoding="utf-8")
        if findings := built.receipt.findings:
            more = f" (and {len(findings) - 1} more in {RECEIPT})" if len(findings) > 1 else ""
            log.warning("%s%s", findings[0], more)
        details = {
            "version": library.version,
            "plan": built.plan.to_json(),
            "receipt": built.receipt.summary(),
            "capabilities": list(request.options.capabilities),
        }
        return BuiltEngine(request.graph, details)

    def open(self, directory: Path, *, threads: int | None = None) -> Session:
        """Load an engine on the GPU.

        Raises:
            EngineError: there is no GPU, the library does not run on it, or it refuses the engine.
            ArtifactError: the directory is not what its manifest says.
            MissingDependencyError: the library or cuda-bindings is not installed.
        """
        manifest = open_artifact(directory).manifest
        library = open_library(self.name)
        plan = read_plan(directory, manifest, library)
        require_gpu(directory)
        device = CudaDevice()
        library.binding.require_runs_on(device.compute_capability)
        return open_on(device, library, directory, manifest, plan)

    def open_each(self, directory: Path, *, threads: int | None = None) -> Iterator[GraphRun]:
        """On the GPU or, where there is none or none that it supports, the graph it was built of on the host."""
        session, remark = self._open_or_graph(directory, threads, every=False)
        yield GraphRun(*((GRAPH, ORT_OPERATORS) if remark else (ENGINE_GRAPH, "TensorRT's")), session, remark)

    def open_for_evaluation(self, directory: Path, *, threads: int | None = None) -> tuple[Session, str]:
        """The engine, token by token where its graph cuts the logits; on the host the graph without that cut."""
        return self._open_or_graph(directory, threads, every=True)

    def _open_or_graph(self, directory: Path, threads: int | None, *, every: bool) -> tuple[Session, str]:
        why = "there is no GPU here"
        if cuda_devices():
            try:
                return self.open(directory, threads=threads), ""
            except (EngineError, MissingDependencyError) as error:
                log.warning("the engine does not open here: %s", error)
                why = "no GPU here that it supports"
        try:
            session = open_graph(directory, threads=threads, every=every)
        except EngineError as error:
            said = str(error).partition(" Op with name")[0].removesuffix(".")
            raise EngineError(
                f"{why}, and the CPU does not run the graph that the engine was built of: {said}"
            ) from error
        return session, f"the graph it was built of, on ONNX Runtime's CPU provider: {why}"


class TensorRTRtx(TensorRT):
    """TensorRT-RTX; see :class:`llmc.runtimes.session.engine.Engine`."""

    name: ClassVar[str] = "tensorrt-rtx"


def read_plan(directory: Path, manifest: Manifest, library: Library) -> CapacityPlan:
    """The plan of an engine that this version of the library has built.

    Raises:
        EngineError: it is no engine yet, or another version's.
        ArtifactError: its plan is damaged.
    """
    if manifest.engine is None:
        raise EngineError(
            f"{directory} holds a graph for {library.binding.title} and no engine yet; make one: "
            f"llmc build {directory} -o DIR"
        )
    built_by = manifest.engine.details.get("version")
    if built_by != library.version:
        raise EngineError(
            f"{directory} was built by {library.binding.title} {built_by}, and {library.version} is installed; build "
            "it again, or install that version"
        )
    return CapacityPlan.from_json(manifest.engine.details.get("plan"))


def open_on(
    device: CudaDevice | HostDevice, library: Library, directory: Path, manifest: Manifest, plan: CapacityPlan
) -> DeviceSession:
    """A session of an engine on a device."""
    record = manifest.files.get(plan.buckets[0].file)
    kernels = None
    if record is not None and library.binding.runtime_cache and device.ort_name == "cuda":
        kernels = FileCache.in_home(library.binding.runtime, f"{library.version}-{record.sha256[:16]}")
    decoder = TensorRTDecoder(library, directory, plan, device, kernels)
    info = EngineInfo(
        runtime=library.binding.runtime,
        vocab_size=decoder.vocab_size,
        num_layers=sum(tensor.past.endswith(".key") for tensor in decoder.cache),
        max_context=min(manifest.max_context or plan.max_context, plan.max_context),
        logits=manifest.contract.logits,
        cache=manifest.contract.cache,
        cache_bytes_per_token=sum(tensor.nbytes(1, 1) for tensor in decoder.cache),
        weight_bytes=manifest.weight_bytes,
        precision=manifest.weights_label,
        threads=0,
        profiles=((1, plan.chunk),),
        max_batch=plan.max_batch,
        details=engine_details(manifest, device=device.description),
    )
    return DeviceSession(decoder, info, device, _samplers(device, decoder))


def _samplers(device: CudaDevice | HostDevice, decoder: TensorRTDecoder) -> SamplerCache | None:
    """Samplers on the device, where ONNX Runtime computes there."""
    try:
        import onnxruntime
    except ImportError:
        return None
    if isinstance(device, CudaDevice) and PROVIDER not in onnxruntime.get_available_providers():
        log.info("tokens are chosen on the host: ONNX Runtime here has no CUDA provider")
        return None
    return SamplerCache(
        device, lambda model: load(model, device), decoder.vocab_size, decoder.logits_element, TensorProto.INT64
    )
