"""How hard to look for the numbers of quantized weights and caches: what ``--effort`` and ``--calibration`` mean.

In: a portable graph, options, the directory that holds the tokenizer. Out: :class:`Numbers` for the target's passes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import EngineError, UnsupportedModelError, UsageError
from llmc.compiler.base.json_record import encode
from llmc.compiler.base.options import ChosenEffort, OptimizeOptions, Weights
from llmc.compiler.base.processors import physical_cores
from llmc.compiler.base.progress import Progress
from llmc.compiler.base.targets import get_target
from llmc.compiler.base.user_cache import user_cache
from llmc.compiler.calibration.windows import text_windows
from llmc.compiler.driver.capabilities import Capabilities
from llmc.compiler.driver.target_passes import Numbers, float_passes, max_context
from llmc.compiler.graph.operators import moe
from llmc.compiler.quantization.plan import kept_zeros, make_plan
from llmc.compiler.quantization.solvers.search import SearchedScales
from llmc.passes.quantization.kept_grids import require_kept
from llmc.passes.quantization.move_scales import MoveScales
from llmc.passes.quantization.quantize_cache import Reaches
from llmc.passes.quantization.sites import Site, find_sites
from llmc.passes.runner import run_passes
from llmc.runtimes.evaluation.texts import calibration_text, read_texts

log = logging.getLogger(__name__)
FEW_WEIGHTS = 600_000_000
"""In products and experts, up to which ``--effort auto`` calibrates: some minutes on two cores. A search without a
text, which wins little, takes as long for ten times as many."""
FAST, NORMAL, SEARCHED = SearchedScales(6), SearchedScales(), "searched scales"
_TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Amount:
    """How much text is read.

    Attributes:
        windows: Pieces of the text.
        length: Tokens of each, where the model's context is as long.
    """

    windows: int
    length: int


CACHE = Amount(8, 512)
"""For the ranges of a KV cache."""
CHANNELS = Amount(8, 512)
"""For how loud the channels of activations are."""
AMOUNTS: Mapping[ChosenEffort, Amount] = {"normal": Amount(32, 512), "best": Amount(64, 512)}
SWEEPS: Mapping[ChosenEffort, int] = {"normal": 0, "best": 3}


@contextlib.contextmanager
def chosen_numbers(
    model: ir.Model,
    portable: Manifest,
    options: OptimizeOptions,
    capabilities: Capabilities,
    directory: Path,
    progress: Progress,
    *,
    weights: Weights = "model",
) -> Iterator[Numbers]:
    """How a target's weights are chosen, which may take long; they can be written until the block ends.

    Args:
        model: The portable graph, which is left as it is.
        portable: Its manifest.
        options: What was asked for.
        capabilities: Of the runtime that the graph is for.
        directory: Holds ``tokenizer.json``.
        progress: Told how far it is.
        weights: Whether they will be written at all.

    Raises:
        UsageError: a calibration is asked for, and there is no tokenizer, or too little text.
    """
    if weights == "none":
        yield Numbers()
        return
    case = _Case(model, portable, options, capabilities, directory, progress)
    ranges = case.cache_ranges()
    effort = case.effort() if make_plan(options) else "round"
    if effort == "round":
        yield Numbers(cache_ranges=ranges)
    elif effort == "fast":
        yield Numbers(FAST, {}, SEARCHED, "fast", ranges)
    else:
        with case.calibrated(effort) as numbers:
            yield replace(numbers, cache_ranges=ranges)


def require_kept_numbers(
    model: ir.Model, portable: Manifest, options: OptimizeOptions, capabilities: Capabilities, progress: Progress
) -> None:
    """Refuse, before anything takes long, a checkpoint whose small numbers the target would not keep.

    Args:
        model: The portable graph, which is left as it is.
        portable: Its manifest.
        options: What was asked for.
        capabilities: Of the runtime that the graph is for.
        progress: Told how far it is.

    Raises:
        UnsupportedModelError: there are any; it names the kinds of tensors and how they are stored.
    """
    progress.start("Looking for what can be kept")
    floats = model.clone()
    run_passes(floats, float_passes(portable.model, options, capabilities))
    plan = make_plan(options)
    require_kept(find_sites(floats, head="head" in plan), plan, kept_zeros(options))


@dataclass(frozen=True, eq=False)
class _Case:
    """What :func:`chosen_numbers` was asked."""

    model: ir.Model
    portable: Manifest
    options: OptimizeOptions
    capabilities: Capabilities
    directory: Path
    progress: Progress

    def effort(self) -> ChosenEffort:
        """What ``auto`` means."""
        if self.options.effort != "auto":
            return self.options.effort
        if self.options.calibration is not None:
            return "normal"
        if sum(map(_calibrated_weights, find_sites(self.model))) > FEW_WEIGHTS:
            return "round"
        return "normal" if self._has_text else "fast"

    def cache_ranges(self) -> Reaches | None:
        """How far keys and values reach on a text, where the cache is to have 8 bits and there is a text."""
        if self.options.cache_precision == "auto" or not self._has_text:
            return None
        from llmc.compiler.calibration.cache_ranges import cache_ranges

        windows, _ = self._windows(CACHE)
        floats = self._floats()
        try:
            return cache_ranges(floats, windows, physical_cores(), self.progress)
        except (EngineError, UnsupportedModelError) as error:
            log.warning(
                "the cache's scales come from the golden data, if there are any, and not from a text: %s", error
            )
            return None

    @contextlib.contextmanager
    def calibrated(self, effort: ChosenEffort) -> Iterator[Numbers]:
        """Numbers of weights that are solved for what they read on a text."""
        from llmc.compiler.calibration.calibrate import Request, calibrated
        from llmc.compiler.calibration.recipe import Recipe
        from llmc.compiler.quantization.solvers.gptq import Gptq

        options = self.options
        windows, name = self._windows(AMOUNTS[effort])
        floats = self._floats()
        moved = self._moved_scales(floats)
        on_gpu = get_target(options.target).device == "gpu"
        request = Request(
            model=floats,
            plan=make_plan(options),
            kept_zeros=kept_zeros(options),
            windows=windows,
            recipe=Recipe(Gptq(sweeps=SWEEPS[effort]), match_float=True),
            otherwise=NORMAL,
            dtype=_TYPES[options.activations] if on_gpu else np.dtype(np.float32),
            identity=[encode(self.portable.source), self.portable.precision, _digest(moved)],
            threads=physical_cores(),
        )
        with calibrated(request, user_cache("calibration"), self.progress) as solvers:
            words = f"GPTQ over {windows.size} tokens of {name}" if solvers else SEARCHED
            yield Numbers(NORMAL, solvers, words, effort if solvers else None, moved_scales=moved)

    def _moved_scales(self, floats: ir.Model) -> MoveScales | None:
        """What moves scales into weights, which it has done in ``floats``; None where no product gains by it."""
        from llmc.compiler.calibration.channel_scales import channel_scales

        if not get_target(self.options.target).rounds_activations:
            return None
        windows, name = self._windows(CHANNELS)
        plan, kept = make_plan(self.options), kept_zeros(self.options)
        scales = channel_scales(floats, plan, kept, windows, physical_cores(), self.progress)
        if not scales:
            return None
        moving = MoveScales(f"root mean squares over {windows.size} tokens of {name}", scales)
        run_passes(floats, [moving])
        return moving

    @cached_property
    def _has_text(self) -> bool:
        """Whether there is a text to calibrate with: one that was named, or ours where the tokenizer reads it."""
        if not (self.directory / "tokenizer.json").exists():
            return False
        if self.options.calibration is None:
            try:
                self._windows(Amount(1, max(amount.length for amount in (CACHE, CHANNELS, AMOUNTS["normal"]))))
            except UsageError as error:
                log.warning("no text calibrates the model, so numbers are chosen without one: %s", error)
                return False
        return True

    def _windows(self, amount: Amount) -> tuple[npt.NDArray[np.int64], str]:
        """Windows of the calibration text, and what it is called."""
        self.progress.start("Reading the calibration text")
        chosen = self.options.calibration
        texts = (calibration_text(),) if chosen is None else read_texts(chosen)
        name = "llmc's own text" if chosen is None else chosen.name
        length = min(amount.length, max_context(self.portable.model, self.options))
        return text_windows(self.directory, "\n\n".join(texts), amount.windows, length, name), name

    def _floats(self) -> ir.Model:
        """The target's graph before its weights are quantized."""
        floats = self.model.clone()
        passes = float_passes(self.portable.model, self.options, self.capabilities.here())
        run_passes(floats, passes, progress=self.progress)
        return floats


def _calibrated_weights(site: Site) -> int:
    """Of linear layers and of experts, whose operator is the portable graph's own."""
    if site.kind == "linear":
        return sum(math.prod(weight.stored_shape) for _, weight in site.weights)
    stacks = [moe.SIGNATURE.get(site.node, name) for name in ("fc1", "fc2") if moe.is_moe(site.node)]
    return sum(value.const_value.size for value in stacks if value is not None and value.const_value is not None)


def _digest(moved: MoveScales | None) -> str:
    """Equal for equal scales."""
    scales = {} if moved is None else moved.scales
    return hashlib.sha256(b"".join(name.encode() + scales[name].tobytes() for name in sorted(scales))).hexdigest()
