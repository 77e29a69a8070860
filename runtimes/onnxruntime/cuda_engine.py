"""ONNX Runtime's CUDA provider.

In (build): a target graph, of which passes have made ``engine.onnx``. Out: what the manifest records; a
machine without a GPU builds as well. In (open): an engine's directory and a GPU. Out: a session whose cache, inputs
and logits live on the GPU, and whose decode steps are recorded as CUDA graphs.

Where a graph has no ``engine.onnx`` (its attention was not lowered, so rows follow the mask), ``model.onnx`` runs on
the GPU through host memory, with a warning. Nodes for which the provider has no kernel are named in another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.contract import DATA, ENGINE_GRAPH, GRAPH, LOGITS
from llmc.compiler.base.errors import ArtifactError, EngineError, MissingDependencyError, first_line
from llmc.runtimes.device.cuda import CudaDevice, cuda_devices, require_gpu
from llmc.runtimes.device.graph_io import ELEMENT_TYPES, GraphIO
from llmc.runtimes.device.interface import Device, HostDevice
from llmc.runtimes.device.sampler_cache import SamplerCache
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.memory.facts import read_facts
from llmc.runtimes.memory.plan import check_fits, plan_memory
from llmc.runtimes.onnxruntime.cpu_engine import ORT_OPERATORS, engine_info, open_graph
from llmc.runtimes.onnxruntime.session import OnnxRuntimeSession
from llmc.runtimes.session.engine import BuildRequest, BuiltEngine, Engine, GraphRun, Session

log = logging.getLogger(__name__)
PROVIDER = "CUDAExecutionProvider"
ON_HOST = "its graph on ONNX Runtime's CPU provider: there is no GPU here"
LIBRARIES = ("cudart", "cublasLt", "cublas", "cudnn", "curand", "cufft", "nvrtc")
SHAPE_OPERATORS = frozenset(
    {"Shape", "Size", "Gather", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Sub", "Add", "Concat", "Slice"}
)
"""What may run on the CPU where it only computes shapes."""
PREFILL = 1024
"""Tokens per row of one forward call whose activations are counted before the cache is allocated."""
KERNEL_CHOICES: Mapping[str, str] = {"ORT_ENABLE_XQA": "0"}
"""Environment in which the graph is loaded: the runtime reads these choices of kernels from nowhere else."""


class OnnxRuntimeCuda(Engine):
    """The engine; see :class:`llmc.runtimes.session.engine.Engine`."""

    name = "onnxruntime-cuda"

    def build(self, request: BuildRequest) -> BuiltEngine:
        """Say which graph is opened; that a GPU takes it shows when it is verified."""
        return BuiltEngine(request.graph, {})

    def open(self, directory: Path, *, threads: int | None = None) -> Session:
        """Load an engine on the GPU, for which onnxruntime-gpu and cuda-bindings are needed."""
        require_gpu(directory)
        return _open(directory, self.name, CudaDevice())

    def open_each(self, directory: Path, *, threads: int | None = None) -> Iterator[GraphRun]:
        """The engine's graph on the GPU or, where there is none, on the host."""
        graph = _graph(open_artifact(directory).manifest)
        if cuda_devices():
            yield GraphRun(graph, "ONNX Runtime's for CUDA", self.open(directory, threads=threads))
        else:
            yield GraphRun(graph, ORT_OPERATORS, open_on_host(directory), ON_HOST)

    def open_for_evaluation(self, directory: Path, *, threads: int | None = None) -> tuple[Session, str]:
        """On the GPU, token by token where its graph cuts the logits; on the host the graph without that cut."""
        if cuda_devices():
            return self.open(directory, threads=threads), ""
        return open_graph(directory, threads=threads, every=True), ON_HOST


def open_on_host(directory: Path) -> Session:
    """The same graph on ONNX Runtime's CPU provider, through the same session: slow, but the same arithmetic.

    Raises:
        EngineError: the CPU provider lacks a kernel that the graph needs.
    """
    return _open(directory, "onnxruntime-cpu", HostDevice())


def _open(directory: Path, runtime: str, device: CudaDevice | HostDevice) -> Session:
    manifest = open_artifact(directory).manifest
    if not (directory / DATA).exists():
        raise ArtifactError(
            f"{directory} was made without weights; `python -m llmc.runtimes.bench.tools.random_weights {directory}` "
            "draws random ones, for measuring"
        )
    if manifest.kind == "target":
        raise EngineError(
            f"{directory} holds a graph for a GPU and no engine yet; make one: llmc build {directory} -o DIR"
        )
    takes_lengths = manifest.contract.lengths == "inputs"
    inference = load(str(directory / _graph(manifest)), device)
    info = engine_info(manifest, runtime, 0, inference, device=device.description)
    if not takes_lengths:
        log.warning("attention runs outside the runtime's own operator: inputs and cache go through host memory")
        return OnnxRuntimeSession(inference, info, manifest.contract)
    logits = next(item for item in inference.get_outputs() if item.name == LOGITS)
    samplers = SamplerCache(device, lambda model: load(model, device), info.vocab_size, ELEMENT_TYPES[logits.type][0])
    return DeviceSession(GraphIO(inference, device), info, device, samplers, _fits(directory, device))


def _graph(manifest: Manifest) -> str:
    return ENGINE_GRAPH if manifest.contract.lengths == "inputs" else GRAPH


def _fits(directory: Path, device: Device) -> Callable[[int, int], None]:
    """Checks that cache, logits and activations fit beside the weights, which are loaded when it is asked."""

    def check(batch: int, capacity: int) -> None:
        plan = plan_memory(read_facts(directory), capacity, batch, min(capacity, PREFILL))
        check_fits(plan.once_loaded, device.free_bytes(), "the GPU" if device.ort_name == "cuda" else "memory")

    return check


def load(model: str | bytes, device: CudaDevice | HostDevice) -> Any:
    """Load a graph for a device; warns of nodes that run elsewhere.

    Raises:
        EngineError: ONNX Runtime refuses it.
        MissingDependencyError: onnxruntime-gpu is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers: list[Any] = ["CPUExecutionProvider"]
    if isinstance(device, CudaDevice):
        if PROVIDER not in onnxruntime.get_available_providers():
            raise MissingDependencyError(
                f"ONNX Runtime {onnxruntime.__version__} has no CUDA provider; pip install 'llmc-toolchain[cuda]', "
                "which replaces the CPU package"
            )
        _load_libraries()
        providers = [(PROVIDER, _provider_options(device))]
    try:
        with _environment(KERNEL_CHOICES):
            inference = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} refuses the graph: {first_line(error)}") from error
    if isinstance(device, CudaDevice):
        if PROVIDER not in inference.get_providers():
            raise EngineError(
                "ONNX Runtime could not start its CUDA provider; `llmc doctor` says which library is missing"
            )
        if elsewhere := nodes_elsewhere(inference):
            more = f" and {len(elsewhere) - 5} more" if len(elsewhere) > 5 else ""
            log.warning("not on the GPU: %s%s", ", ".join(elsewhere[:5]), more)
    return inference


def nodes_elsewhere(inference: Any) -> list[str]:
    """Nodes that the runtime placed on the CPU, less those that compute shapes; empty where it does not tell."""
    if not hasattr(inference, "get_provider_graph_assignment_info"):
        return []
    return [
        f"{node.op_type} {node.name}".strip()
        for part in inference.get_provider_graph_assignment_info()
        if part.ep_name != PROVIDER
        for node in part.get_nodes()
        if node.op_type not in SHAPE_OPERATORS
    ]


def _provider_options(device: CudaDevice) -> dict[str, str]:
    return {
        "device_id": str(device.index),
        "user_compute_stream": str(device.stream),
        "has_user_compute_stream": "1",
        # The default doubles the arena, which leaves too little for the cache.
        "arena_extend_strategy": "kSameAsRequested",
    }


def _load_libraries() -> None:
    """CUDA's libraries from their wheels, wherever these are, so that the provider's own search finds them loaded."""
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ImportError:
        return
    for name in LIBRARIES:
        try:
            load_nvidia_dynamic_lib(name)
        except (DynamicLibNotFoundError, RuntimeError) as error:
            log.info("%s is not where it is looked for: %s", name, first_line(error))


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that are not set, and take them away again."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
