"""Shows models to one runtime, in that runtime's own environment: needs it, NumPy where it runs models, no more.

In: the name of a runtime as the argument, requests on stdin. Out: one answer per request on stdout, JSON lines both.

    python ask.py tensorrt-rtx|onnxruntime|openvino < requests > answers

The first line says its version: ``{"tool": "openvino", "version": "2026.4.1", "kernels": [], "schemas": []}``. Then

    {"model": BASE64, "inputs": {"x": ARRAY}, "optimize": false}    inputs null: open it, do not run it
    {"taken": true, "message": "", "unread": [], "outputs": [ARRAY], "graph": BASE64}

with ARRAY = ``{"dtype": "float16", "shape": [2, 3], "data": BASE64}``. ``unread`` names inputs of the model that
nothing which the runtime made from it reads; ``graph`` is the graph that ONNX Runtime runs in the model's place. A
runtime that ends the process answers nothing; :mod:`~llmc.runtimes.lint.tables.asking` starts the next one. The file
runs alone, so it imports nothing of this package.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST_MESSAGE = 600
Answer = dict[str, Any]
Ask = Callable[[bytes, "dict[str, Any] | None", bool], Answer]


def ask_onnxruntime() -> tuple[str, Ask]:
    """ONNX Runtime on the CPU; unless they are asked about, its optimizations are off."""
    import onnxruntime

    def ask(model: bytes, inputs: dict[str, Any] | None, optimize: bool) -> Answer:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.onnx"
            options.optimized_model_filepath = str(path)
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            graph = base64.b64encode(path.read_bytes()).decode() if path.is_file() else ""
        outputs = None
        if inputs is not None:
            outputs = [array_to_json(value) for value in session.run(None, to_arrays(inputs))]
        return {"graph": graph, "outputs": outputs}

    return onnxruntime.__version__, ask


def cpu_kernels() -> list[list[Any]]:
    """Kernels of ONNX Runtime's CPU provider: domain, operator, first version, last version, types by parameter."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    return [
        [item.domain, item.op_name, *item.version_range, dict(item.type_constraints)]
        for item in get_all_opkernel_def()
        if item.provider == "CPUExecutionProvider"
    ]


def own_schemas() -> list[list[Any]]:
    """ONNX Runtime's own operators: name, most inputs and outputs (0: any number), attributes."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    def most(parameters: Any) -> int:
        variadic = any("Variadic" in str(item.option) for item in parameters)
        return 0 if variadic else len(parameters)

    return [
        [item.name, most(item.inputs), most(item.outputs), sorted(item.attributes)]
        for item in get_all_operator_schema()
        if item.domain == "com.microsoft"
    ]


def ask_openvino() -> tuple[str, Ask]:
    """OpenVINO's CPU plugin in float32, so that its numbers may be compared."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}

    def ask(model: bytes, inputs: dict[str, Any] | None, optimize: bool) -> Answer:
        read = core.read_model(model, b"")
        unread = [
            port.any_name for port in read.inputs if not port.get_node().output(0).get_target_inputs() and port.names
        ]
        compiled = core.compile_model(read, "CPU", settings)
        outputs = None
        if inputs is not None:
            arrays = to_arrays(inputs)
            given = {port: arrays[port.any_name] for port in compiled.inputs if port.any_name in arrays}
            request = compiled.create_infer_request()  # kept: results may lie in its memory
            result = request.infer(given)
            outputs = [array_to_json(result[port]) for port in compiled.outputs]
        return {"unread": unread, "outputs": outputs}

    return openvino.__version__.split("-")[0], ask


def ask_tensorrt_rtx() -> tuple[str, Ask]:
    """TensorRT-RTX's ONNX parser and, where there are arrays, its builder for their shapes; neither needs a GPU."""
    import tensorrt_rtx_bindings as trt

    messages: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    logger = Logger()
    builder = trt.Builder(logger)

    def ask(model: bytes, inputs: dict[str, Any] | None, optimize: bool) -> Answer:
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(model):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            raise ValueError("; ".join(error.desc() for error in errors) or "refused without a message")
        unread = unread_inputs(network)
        if inputs is not None:
            config = builder.create_builder_config()
            profile = builder.create_optimization_profile()
            for index in range(network.num_inputs):
                name = network.get_input(index).name
                if -1 in network.get_input(index).shape:
                    profile.set_shape(name, *[tuple(inputs[name]["shape"])] * 3)
            config.add_optimization_profile(profile)
            messages.clear()
            if builder.build_serialized_network(network, config) is None:
                raise ValueError("; ".join(messages) or "parsed, but no engine was built")
        return {"unread": unread}

    return trt.__version__, ask


def unread_inputs(network: Any) -> list[str]:
    """Inputs of a TensorRT network that no layer before an output reads."""
    makers = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            makers[layer.get_output(output).name] = layer
    waiting = [network.get_output(index).name for index in range(network.num_outputs)]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            layer = makers.get(name)
            tensors = [layer.get_input(index) for index in range(layer.num_inputs)] if layer is not None else []
            waiting += [tensor.name for tensor in tensors if tensor is not None]
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    return [name for name in names if name not in reached]


def to_arrays(inputs: dict[str, Any]) -> dict[str, Any]:
    """Arrays from their JSON form; types that NumPy has not come from ml_dtypes."""
    import numpy as np

    arrays = {}
    for name, item in inputs.items():
        if item["dtype"] == "str":
            arrays[name] = np.array(item["data"], dtype=object).reshape(item["shape"])
            continue
        dtype = _dtype(item["dtype"])
        arrays[name] = np.frombuffer(base64.b64decode(item["data"]), dtype).reshape(item["shape"])
    return arrays


def _dtype(name: str) -> Any:
    import numpy as np

    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


def array_to_json(value: Any) -> dict[str, Any] | None:
    """The JSON form of an array; None for what is none (a sequence, an optional that is empty)."""
    import numpy as np

    if not isinstance(value, np.ndarray):
        return None
    if value.dtype.kind in "OUS":
        return {"dtype": "str", "shape": list(value.shape), "data": [str(item) for item in value.ravel()]}
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {"dtype": value.dtype.name, "shape": list(value.shape), "data": data}


RUNTIMES = {"onnxruntime": ask_onnxruntime, "openvino": ask_openvino, "tensorrt-rtx": ask_tensorrt_rtx}


def main(name: str) -> None:
    """Answer until stdin ends; what the runtime itself prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # each line leaves at once
    os.dup2(2, 1)
    version, ask = RUNTIMES[name]()
    kernels = cpu_kernels() if name == "onnxruntime" else []
    schemas = own_schemas() if name == "onnxruntime" else []
    answers.write(json.dumps({"tool": name, "version": version, "kernels": kernels, "schemas": schemas}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        answer: Answer = {"taken": True, "message": ""}
        try:
            answer |= ask(base64.b64decode(request["model"]), request["inputs"], request["optimize"])
        except Exception as error:  # noqa: BLE001 - the answer is in the message
            answer |= {"taken": False, "message": " ".join(str(error).split())[:LONGEST_MESSAGE]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
