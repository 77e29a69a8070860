"""TensorRT and TensorRT-RTX.

In (build): a target graph's directory, where a pass has made ``engine.onnx``. Out: ``engine_N.plan`` for each length
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from onnx import TensorProto

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.contract import ENGINE_GRAPH
from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.json_record import to_text
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.runtimes.device.cuda import CudaDevice, require_gpu
from llmc.runtimes.device.interface import HostDevice
from llmc.runtimes.device.sampler_cache import SamplerCache
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.memory.capacity_plan import BuildOptions, CapacityPlan
from llmc.runtimes.onnxruntime.cuda_engine import PROVIDER, load
from llmc.runtimes.session.engine import EngineInfo, Session
from llmc.runtimes.tensorrt.bindings import BINDINGS, Binding, Library, open_library
from llmc.runtimes.tensorrt.builder import build_engines
from llmc.runtimes.tensorrt.decoder import TensorRTDecoder
from llmc.runtimes.tensorrt.engine_graph import read_engine_graph
from llmc.runtimes.tensorrt.file_cache import FileCache
from llmc.runtimes.tensorrt.receipt import RECEIPT

log = logging.getLogger(__name__)


class TensorRT:
    """TensorRT; see :class:`llmc.runtimes.session.engine.Engine`."""

    name: ClassVar[str] = "tensorrt"

    def __init__(self, options: BuildOptions | None = None, progress: Progress = NO_PROGRESS) -> None:
        """Options are for :meth:`build` alone."""
        self._options, self._progress = options or BuildOptions(), progress

    @property
    def binding(self) -> Binding:
        """What it is made of."""
        return BINDINGS[self.name]

    def build(self, graph_directory: Path, output: Path, *, threads: int | None = None) -> Mapping[str, Any]:
        """Write an engine for each length of the cache.

        Raises:
            EngineError: the library refuses the graph, or leaves something out of it.
            MissingDependencyError: the library is not installed.
        """
        library = open_library(self.name)
        graph = read_engine_graph(graph_directory / ENGINE_GRAPH)
        timings = None
        if library.binding.timing_cache:
            timings = FileCache.in_home(self.name, f"{library.version}.timings")
        built = build_engines(library, graph, output, self._options, self._progress, timings)
        (output / RECEIPT).write_text(to_text(built.receipt.to_json()), encoding="utf-8")
        if built.receipt.findings:
            more = (
                f" (and {len(built.receipt.findings) - 1} more in {RECEIPT})"
                if len(built.receipt.findings) > 1
                else ""
            )
            log.warning("%s%s", built.receipt.findings[0], more)
        return {
            "graph": ENGINE_GRAPH,
            "version": library.version,
            "plan": built.plan.to_json(),
            "receipt": built.receipt.summary(),
            "capabilities": list(self._options.engine.capabilities),
        }

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
        self.binding.require_runs_on(device.compute_capability)
        return open_on(device, library, directory, manifest, plan)


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
        precision=manifest.precision,
        threads=0,
        profiles=((1, plan.chunk),),
        max_batch=plan.max_batch,
        details={**(manifest.engine.details if manifest.engine else {}), "device": device.description},
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
