"""OpenVINO on the CPU.

In (build): a target graph. Out: ``openvino_model.xml`` and ``openvino_model.bin``, a model that keeps its
own KV cache; OpenVINO GenAI and optimum-intel open the directory, too.
In (open): an engine's directory. Out: a session.

Small weights stay small: the model holds integers and their scales, and the CPU plugin multiplies with those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import Manifest, engine_details
from llmc.compiler.base.contract import LOGITS
from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.processors import engine_threads
from llmc.runtimes.openvino.library import (
    DEVICE,
    KV_CACHE_PRECISION,
    last_line,
    load_openvino,
    plugin_options,
    require_reads,
    version_of,
)
from llmc.runtimes.openvino.session import OpenVinoSession
from llmc.runtimes.openvino.stateful_model import read_stateful
from llmc.runtimes.session.engine import UNLIMITED, BuildRequest, BuiltEngine, Engine, EngineInfo, GraphRun, Session

MODEL = "openvino_model.xml"


class OpenVino(Engine):
    """The engine; see :class:`llmc.runtimes.session.engine.Engine`."""

    name: ClassVar[str] = "openvino-cpu"

    def build(self, request: BuildRequest) -> BuiltEngine:
        """Write the model."""
        openvino = load_openvino()
        model = read_stateful(openvino, request.graph)
        openvino.save_model(model, str(request.output / MODEL), compress_to_fp16=False)
        return BuiltEngine(request.graph, {"openvino": version_of(openvino)})

    def open(self, directory: Path, *, threads: int | None = None) -> Session:
        """Load an engine; see :meth:`llmc.runtimes.session.engine.Engine.open`."""
        artifact = open_artifact(directory)
        manifest = artifact.manifest
        if manifest.engine is None:
            raise EngineError(
                f"{directory} holds a graph for OpenVINO and no engine yet; make one: llmc build {directory} -o DIR"
            )
        openvino = load_openvino()
        require_reads(openvino, manifest.engine.details.get("openvino"))
        count = engine_threads(threads, manifest.engine.threads)
        core = openvino.Core()
        options = plugin_options(core, manifest.precision, count)
        try:
            model = core.read_model(str(artifact.file(MODEL)))
            compiled = core.compile_model(model, DEVICE, dict(options))
        except RuntimeError as error:
            said = last_line(str(error))
            raise EngineError(f"OpenVINO {version_of(openvino)} refuses {MODEL}: {said}") from error
        return OpenVinoSession(compiled, engine_info(openvino, manifest, model, compiled, count))

    def open_each(self, directory: Path, *, threads: int | None = None) -> Iterator[GraphRun]:
        """The model that OpenVINO reads."""
        yield GraphRun(MODEL, "OpenVINO's", self.open(directory, threads=threads))


def engine_info(openvino: ModuleType, manifest: Manifest, model: Any, compiled: Any, threads: int) -> EngineInfo:
    """What a session of a compiled model can do."""
    states = [node.get_output_partial_shape(0) for node in model.get_ops() if node.get_type_name() == "ReadValue"]
    caches = [shape for shape in states if any(dim.is_dynamic for dim in list(shape)[1:])]
    element = compiled.get_property(KV_CACHE_PRECISION)
    numbers = sum(math.prod(dim.get_length() for dim in shape if dim.is_static) for shape in caches)
    hint = compiled.get_property("INFERENCE_PRECISION_HINT")
    return EngineInfo(
        runtime=OpenVino.name,
        vocab_size=model.output(LOGITS).get_partial_shape()[2].get_length(),
        num_layers=len(caches) // 2,
        max_context=manifest.max_context or UNLIMITED,
        logits=manifest.contract.logits,
        cache=manifest.contract.cache,
        cache_bytes_per_token=numbers * element.size,
        weight_bytes=manifest.weight_bytes,
        precision=manifest.weights_label,
        threads=threads,
        details=engine_details(
            manifest,
            openvino=version_of(openvino),
            activations=hint.get_type_name(),
            cache_precision=element.get_type_name(),
        ),
    )
