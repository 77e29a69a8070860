"""TensorRT and TensorRT-RTX, whose Python modules are nearly the same, as one.

In: a runtime's name. Out: :class:`Library`, the module with every difference between the two behind it. The
differences are the rows of :data:`BINDINGS` and nowhere else.

Both are imported when a library is opened, never before.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmc.compiler.base.errors import EngineError, MissingDependencyError
from llmc.compiler.base.targets import TargetName, get_target
from llmc.runtimes.tensorrt.messages import Messages, make_logger

STRONGLY_TYPED = "STRONGLY_TYPED"
"""Network flag: types are the graph's. TensorRT 11 knows nothing else and has no such flag."""


@dataclass(frozen=True)
class Binding:
    """What differs between the two.

    Attributes:
        runtime: Name of the engine, as ``tensorrt-rtx``.
        builds_anywhere: Engines are built without a GPU, for several kinds of GPU at once.
        timing_cache: The builder chooses kernels by timing them; what it measured is kept for the next build.
        runtime_cache: Kernels are compiled where an engine is opened; what was compiled is kept for the next time.
        capabilities: Compute capabilities of the GPUs that it runs on; empty: those that its builder takes.
    """

    runtime: TargetName
    builds_anywhere: bool
    timing_cache: bool
    runtime_cache: bool
    capabilities: tuple[str, ...]

    @property
    def title(self) -> str:
        """Name in sentences."""
        return get_target(self.runtime).title

    @property
    def module(self) -> str:
        """Its Python module."""
        return get_target(self.runtime).requirement.modules[0]

    def require_runs_on(self, capability: str) -> None:
        """Refuse a GPU before the runtime does, in other words.

        Args:
            capability: As ``9.0``.

        Raises:
            EngineError: it does not run there.
        """
        if self.capabilities and capability not in self.capabilities:
            raise EngineError(
                f"{self.title} does not run on GPUs of compute capability {capability}, only on "
                f"{', '.join(self.capabilities)}; compile for --target tensorrt or --target cuda there"
            )


BINDINGS: Mapping[str, Binding] = {
    "tensorrt": Binding(
        runtime="tensorrt", builds_anywhere=False, timing_cache=True, runtime_cache=False, capabilities=()
    ),
    "tensorrt-rtx": Binding(
        runtime="tensorrt-rtx",
        builds_anywhere=True,
        timing_cache=False,
        runtime_cache=True,
        capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    ),
}


class Library:
    """A binding that is loaded, and what it says."""

    def __init__(self, binding: Binding, module: Any) -> None:
        """Wrap a module with TensorRT's interface."""
        self.binding, self.module = binding, module
        self.messages = Messages()
        self.logger = make_logger(module, self.messages)

    @property
    def version(self) -> str:
        """As ``1.7.1.116``."""
        return str(self.module.__version__)

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.binding.title} {self.version}"

    def make_network(self, builder: Any) -> Any:
        """An empty network whose types are those of the graph."""
        flags = self.module.NetworkDefinitionCreationFlag
        bits = 1 << int(getattr(flags, STRONGLY_TYPED)) if hasattr(flags, STRONGLY_TYPED) else 0
        return builder.create_network(bits)

    def choose_gpus(self, config: Any, capabilities: Sequence[str]) -> None:
        """Build for GPUs of these compute capabilities alone; none: for whatever the builder builds for by itself.

        Raises:
            EngineError: it cannot build for one of them.
        """
        if not capabilities:
            return
        if not self.binding.builds_anywhere:
            raise EngineError(
                f"{self.binding.title} builds for the GPU of the machine it builds on; leave out the compute "
                f"capabilities ({', '.join(capabilities)}) and build there"
            )
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            known = getattr(self.module.ComputeCapability, f"SM{capability.replace('.', '')}", None)
            if known is None:
                raise EngineError(
                    f"{self.title} cannot build for compute capability {capability}; it can for "
                    f"{', '.join(self.binding.capabilities)}"
                )
            config.set_compute_capability(known, index)

    def set_flags(self, config: Any, *, strip_weights: bool) -> None:
        """What every build wants, and whether it leaves the weights out."""
        flags = self.module.BuilderFlag
        if hasattr(flags, "REQUIRE_USER_ALLOCATION"):
            # Memory that the engine allocated as it runs could not be recorded.
            config.set_flag(flags.REQUIRE_USER_ALLOCATION)
        if strip_weights:
            config.set_flag(flags.STRIP_PLAN)

    def put_weights(self, engine: Any, model: bytes, path: str) -> None:
        """Give an engine that was built without weights those of its graph.

        Args:
            engine: What was built of the graph.
            model: The graph, serialized.
            path: Its file, beside which the weights lie.

        Raises:
            EngineError: some are not taken.
        """
        self.messages.clear()
        refitter = self.module.Refitter(engine, self.logger)
        parser = self.module.OnnxParserRefitter(refitter, self.logger)
        if not parser.refit_from_bytes(model, path) or not refitter.refit_cuda_engine():
            missing = list(refitter.get_missing_weights())
            more = f"; {missing[0]} and {len(missing) - 1} more are missing" if missing else ""
            raise EngineError(f"{self.title} cannot put the weights into the engine: {self.messages.reason()}{more}")

    def use_timing_cache(self, config: Any, content: bytes) -> None:
        """Start from what an earlier build measured; what was measured elsewhere is left alone."""
        if self.binding.timing_cache:
            config.set_timing_cache(config.create_timing_cache(content), False)

    def timing_cache(self, config: Any) -> bytes:
        """What has been measured, to be kept; empty where there is no such thing."""
        return bytes(config.get_timing_cache().serialize()) if self.binding.timing_cache else b""

    def make_context(self, engine: Any, profile: int, stream: int, runtime_cache: Any, fixed_shapes: bool) -> Any:
        """An execution context without memory of its own, for one optimization profile.

        Args:
            engine: What it runs.
            profile: Index of the profile.
            stream: Where its work is queued.
            runtime_cache: From :meth:`make_runtime_cache`; None: kernels are not kept.
            fixed_shapes: The same few shapes come again and again, so each gets kernels of its own at once. A
                recorded run would otherwise keep the general kernels that serve until those are compiled.

        Raises:
            EngineError: it cannot be made.
        """
        managed = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.binding.runtime_cache:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            strategies = self.module.DynamicShapesKernelSpecializationStrategy
            strategy = strategies.EAGER if fixed_shapes else strategies.LAZY
            config.dynamic_shapes_kernel_specialization_strategy = strategy
            if runtime_cache is not None:
                config.set_runtime_cache(runtime_cache)
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(managed)
        if context is None or not context.set_optimization_profile_async(profile, stream):
            raise EngineError(f"{self.title} cannot prepare the engine: {self.messages.reason()}")
        return context

    def make_runtime_cache(self, engine: Any, content: bytes) -> Any:
        """Kernels that were compiled before, to be shared by an engine's contexts; None where there are none."""
        if not self.binding.runtime_cache:
            return None
        cache = engine.create_runtime_config().create_runtime_cache()
        if content and not cache.deserialize(content):
            cache.reset()
        return cache


def open_library(runtime: str) -> Library:
    """Load the module of a runtime.

    Raises:
        MissingDependencyError: it is not installed.
    """
    binding = BINDINGS[runtime]
    get_target(runtime).require_installed()
    try:
        return Library(binding, importlib.import_module(binding.module))
    except ImportError as error:
        raise MissingDependencyError(f"{binding.title} is installed and does not load: {error}") from error
