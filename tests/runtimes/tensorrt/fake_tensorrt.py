"""A stand-in for TensorRT's module: engines are names of ONNX graphs, run by ONNX Runtime on the host's memory.

It keeps to what TensorRT asks for: shapes within the context's profile, an address for every tensor, past and present
at one address, working memory of the engine's size. What breaks a rule is refused as TensorRT refuses: a logged error
and a False.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx

PREFILL, DECODE = 0, 1
TYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(bfloat16)": ("BF16", ml_dtypes.bfloat16),
    "tensor(int64)": ("INT64", np.int64),
}
WORKING_MEMORY = 4096


def write_engine(
    path: Path, graph: Path, capacity: int, max_batch: int, chunk: int, *, stripped: bool = False
) -> None:
    """What the stand-in takes for an engine."""
    path.write_text(
        json.dumps(
            {"graph": str(graph), "capacity": capacity, "max_batch": max_batch, "chunk": chunk, "stripped": stripped}
        )
    )


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def __init__(self) -> None:
        pass


class FakeModule(SimpleNamespace):
    """The module; ``is_rtx`` adds what TensorRT-RTX has beyond TensorRT."""

    def __init__(self, is_rtx: bool = True) -> None:
        super().__init__(
            __version__="9.9",
            ILogger=ILogger,
            TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
            Runtime=lambda logger: FakeRuntime(self, logger),
            Refitter=FakeRefitter,
            OnnxParserRefitter=FakeParserRefitter,
        )
        self.is_rtx = is_rtx
        self.engines: list[FakeEngine] = []
        self.runs: list[tuple[int, int, tuple[int, ...]]] = []
        self.refitted: list[int] = []
        self.fail_next = ""
        self.invalid: tuple[str, ...] = ()
        if is_rtx:
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager", LAZY="lazy")
            self.EngineValidity = SimpleNamespace(VALID=0, INVALID=2)
            self.EngineInvalidityDiagnostics = SimpleNamespace(VERSION_MISMATCH=1, UNSUPPORTED_CC=2)

    @property
    def alive(self) -> list[int]:
        """Capacities of engines that somebody holds."""
        return [engine.capacity for engine in self.engines if engine.contexts_alive]


class FakeRuntime:
    def __init__(self, module: FakeModule, logger: Any) -> None:
        self.module, self.logger = module, logger
        if module.is_rtx:
            self.get_engine_validity = self._validity

    def _validity(self, content: memoryview) -> tuple[int, int]:
        found = sum(getattr(self.module.EngineInvalidityDiagnostics, name) for name in self.module.invalid)
        return (2 if found else 0, found)

    def deserialize_cuda_engine(self, content: memoryview) -> FakeEngine | None:
        try:
            described = json.loads(bytes(content))
        except ValueError:
            self.logger.log(ILogger.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: magic tag does not match")
            return None
        engine = FakeEngine(self.module, self.logger, described)
        self.module.engines.append(engine)
        return engine


class FakeRefitter:
    def __init__(self, engine: FakeEngine, logger: Any) -> None:
        self.engine, self.found = engine, False

    def refit_cuda_engine(self) -> bool:
        self.engine.stripped = not self.found
        self.engine.module.refitted.append(self.engine.capacity)
        return self.found

    def get_missing_weights(self) -> list[str]:
        return [] if self.found else ["weights"]


class FakeParserRefitter:
    """Takes the weights of a graph whose cache has the engine's length, from the file beside it."""

    def __init__(self, refitter: FakeRefitter, logger: Any) -> None:
        self.refitter = refitter

    def refit_from_bytes(self, content: bytes, path: str) -> bool:
        model = onnx.ModelProto.FromString(content)
        cache = next(value for value in model.graph.input if value.name.startswith("past_key_values."))
        fits = cache.type.tensor_type.shape.dim[2].dim_value == self.refitter.engine.capacity
        external = onnx.external_data_helper.ExternalDataInfo(
            next(tensor for tensor in model.graph.initializer if tensor.external_data)
        )
        self.refitter.found = fits and (Path(path).parent / external.location).is_file()
        return self.refitter.found


class FakeEngine:
    device_memory_size_v2 = WORKING_MEMORY

    def __init__(self, module: FakeModule, logger: Any, described: dict[str, Any]) -> None:
        import onnxruntime

        self.module, self.logger = module, logger
        self.capacity, self.max_batch = described["capacity"], described["max_batch"]
        self.chunk, self.stripped = described["chunk"], described["stripped"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.inference = onnxruntime.InferenceSession(described["graph"], options)
        self.values = {item.name: item for item in (*self.inference.get_inputs(), *self.inference.get_outputs())}
        self.reads = {item.name for item in self.inference.get_inputs()}
        self.contexts_alive = 0

    @property
    def num_io_tensors(self) -> int:
        return len(self.values)

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.reads else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return f"DataType.{TYPES[self.values[name].type][0]}"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        dims = [dim if isinstance(dim, int) else -1 for dim in self.values[name].shape]
        if name.startswith(("past_key_values.", "present.")):
            dims[2] = self.capacity
        return tuple(dims)

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(strategy=None, cache=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        config.create_runtime_cache = FakeKernels
        return config

    def create_execution_context(self, given: Any) -> FakeContext:
        if self.module.is_rtx:
            assert given.strategy == "user managed"
        else:
            assert given == "user managed"
        return FakeContext(self, given)


class FakeKernels:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return content.startswith(b"kernels")

    def reset(self) -> None:
        self.content = b""

    def serialize(self) -> bytes:
        return self.content + b"kernels"


class FakeContext:
    def __init__(self, engine: FakeEngine, config: Any) -> None:
        self.engine, self.config = engine, config
        self.profile: int | None = None
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.memory = 0
        engine.contexts_alive += 1

    def __del__(self) -> None:
        self.engine.contexts_alive -= 1

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 16 == 0
        self.memory = size

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.values:
            return self._refuse(f"invalid tensor name {name}")
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        most = {"batch": self.engine.max_batch, "sequence": self.engine.chunk if self.profile == PREFILL else 1}
        for size, known, symbol in zip(
            shape, self.engine.get_tensor_shape(name), self.engine.values[name].shape, strict=True
        ):
            if (known >= 0 and size != known) or (known < 0 and not 1 <= size <= most[symbol]):
                return self._refuse(f"{name}: {shape} is outside profile {self.profile}")
        self.shapes[name] = tuple(shape)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        module, engine = self.engine.module, self.engine
        if module.fail_next:
            said, module.fail_next = module.fail_next, ""
            return self._refuse(said)
        if set(self.addresses) != set(engine.values) or self.memory < WORKING_MEMORY:
            return self._refuse("a tensor has no address, or there is no working memory")
        if engine.stripped:
            return self._refuse("the engine has no weights")
        past = [name for name in engine.reads if name.startswith("past_key_values.")]
        for name in past:
            if self.addresses[name] != self.addresses[name.replace("past_key_values", "present")]:
                return self._refuse(f"{name} is not updated in place")
        feeds = {name: np.array(self._view(name, self.shapes[name])) for name in engine.reads}
        width = feeds["input_ids"].shape[1]
        if int(feeds["past_lengths"].max()) + width > engine.capacity:
            return self._refuse("the cache is written behind its end")
        module.runs.append((engine.capacity, int(self.profile or 0), feeds["input_ids"].shape))
        names = [item.name for item in engine.inference.get_outputs()]
        for name, made in zip(names, engine.inference.run(names, feeds), strict=True):
            self._view(name, made.shape)[...] = made
        return True

    def _view(self, name: str, shape: tuple[int, ...]) -> Any:
        dtype = np.dtype(TYPES[self.engine.values[name].type][1])
        size = int(np.prod(shape)) * dtype.itemsize
        memory: Any = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)

    def _refuse(self, message: str) -> bool:
        self.engine.logger.log(ILogger.ERROR, f"IExecutionContext::enqueueV3: Error Code 3: {message}")
        return False
