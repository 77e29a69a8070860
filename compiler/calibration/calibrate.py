"""A float graph and a text to solved numbers: the room's door.

In: a target's graph in float32, its plan, a text. Out: a solver for each site that could be calibrated, whose numbers
lie on disk until the weights are written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.json_record import JsonValue
from llmc.compiler.base.options import Zero
from llmc.compiler.base.progress import Progress
from llmc.compiler.base.versions import tool_versions
from llmc.compiler.calibration.expert_layer import is_known
from llmc.compiler.calibration.journal import Journal
from llmc.compiler.calibration.recipe import Recipe, SitePlan
from llmc.compiler.calibration.steps import cut_steps
from llmc.compiler.calibration.walk import Walk
from llmc.compiler.graph.write_model import INLINE_BYTES, referring_proto
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Solver
from llmc.compiler.quantization.solvers.exact_grid import ExactGrid
from llmc.passes.quantization.kept_grids import kept_scheme
from llmc.passes.quantization.sites import Site, find_sites

log = logging.getLogger(__name__)
KEPT_SECONDS = 14 * 24 * 3600
"""How long an interrupted walk is kept."""


@dataclass(frozen=True)
class Request:
    """What is to be calibrated.

    Attributes:
        model: The target's graph in float32, before its weights are quantized; all logits, a cache that grows.
        plan: Says in what scheme each site is …
        kept_zeros: … unless its weights are kept on a grid, of which blocks may have these beside a scale.
        windows: Tokens, [windows, length].
        recipe: How sites are solved.
        otherwise: Solves the sites that cannot be calibrated.
        dtype: In which scales are stored.
        identity: What the weights are, for restarts: hashes of the files that they come from.
        threads: That work side by side.
    """

    model: ir.Model
    plan: Mapping[str, str]
    kept_zeros: tuple[Zero, ...]
    windows: npt.NDArray[np.int64]
    recipe: Recipe
    otherwise: Solver
    dtype: np.dtype[np.generic]
    identity: JsonValue
    threads: int


@contextlib.contextmanager
def calibrated(request: Request, cache: Path, progress: Progress) -> Iterator[Mapping[str, Solver]]:
    """Solvers by name of a site, which can be asked until the block ends.

    A walk that was interrupted, by whatever, goes on where it was when it is asked for again with the same weights,
    text and settings. When the block ends without an error, what was kept for that is removed.

    Args:
        request: What to calibrate.
        cache: Directory for all walks.
        progress: Told how far it is.

    Raises:
        EngineError: a part of the graph does not run here.
    """
    sites = find_sites(request.model, head="head" in request.plan)
    plans = site_plans(request, sites)
    _remove_old(cache)
    key = _key(request)
    directory = cache / key
    if not any(item.calibrated for item in plans.values()):
        yield {}
        return
    with _locked(cache, key):
        journal = Journal(directory)
        if journal.done:
            log.info("going on with an interrupted calibration at step %d", journal.done)
        steps = cut_steps(request.model.graph, sites)
        walk = Walk(
            request.model,
            steps,
            request.windows,
            plans,
            request.recipe,
            journal,
            dtype=request.dtype,
            threads=request.threads,
        )
        yield walk.run(progress)
        shutil.rmtree(directory, ignore_errors=True)


def site_plans(request: Request, sites: Sequence[Site]) -> dict[ir.Node, SitePlan]:
    """How each site is stored, by its node; one line for each kind that is not calibrated, with the reason."""
    owners: dict[object, list[Site]] = {}
    for site in sites:
        for _, weight in site.weights:
            owners.setdefault(weight.identity(), []).append(site)
    plans, left = {}, dict[str, int]()
    for site in sites:
        placement = site.placement(request.plan)
        scheme = placement.scheme
        exact = kept_scheme(site, scheme, request.kept_zeros) if scheme is not None else None
        if exact is not None:
            plans[site.node] = SitePlan(exact, ExactGrid(), calibrated=False)
            continue
        others = [other for _, weight in site.weights for other in owners[weight.identity()] if other is not site]
        reason = _why_not(request, site, scheme, others)
        solved = scheme is not None and not reason
        plans[site.node] = SitePlan(scheme, request.otherwise, solved, placement.activation_bits)
        if scheme is not None and reason:
            left[reason] = left.get(reason, 0) + 1
    for reason, count in left.items():
        log.info("%d of %d weights are quantized without calibration: %s", count, len(sites), reason)
    return plans


def _why_not(request: Request, site: Site, scheme: Scheme | None, others: Sequence[Site]) -> str:
    """Why a site cannot be calibrated; empty where it can. ``others`` have the same weights."""
    if site.kind == "experts" and not is_known(site):
        return "experts that run as their operator's body keep their floats"
    if site.kind == "embedding":
        # A head's numbers are its table's, too.
        return "" if _is_tied_head(request, others, site) else "a table is looked up in and multiplies nothing"
    if others and not _is_tied_head(request, [site], *others):
        return "several layers share their bytes"
    if scheme is not None and not scheme.storage.is_integer():
        return "their numbers are small floats"
    return ""


def _is_tied_head(request: Request, heads: Sequence[Site], *tables: Site) -> bool:
    """Whether one head and one table share their bytes, and are to be stored alike."""
    alike = len({site.placement(request.plan).scheme for site in (*heads, *tables)}) == 1
    kinds = [site.kind for site in (*heads, *tables)]
    return alike and kinds == ["head", "embedding"]


def _key(request: Request) -> str:
    """Equal for walks that give the same numbers."""
    initializers = request.model.graph.initializers.items()
    large = [name for name, value in initializers if value.const_value and value.const_value.nbytes > INLINE_BYTES]
    graph = referring_proto(request.model, dict.fromkeys(large, 0), "weights").SerializeToString(deterministic=True)
    record = {
        "graph": hashlib.sha256(graph).hexdigest(),
        "weights": request.identity,
        "plan": [dict(request.plan), list(request.kept_zeros)],
        "windows": [hashlib.sha256(request.windows.tobytes()).hexdigest(), list(request.windows.shape)],
        "recipe": asdict(request.recipe),
        "otherwise": repr(request.otherwise),
        "dtype": request.dtype.name,
        "tools": dict(tool_versions()),
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _locked(cache: Path, key: str) -> Iterator[None]:
    """Alone with one walk: who asks for the same waits, and then finds it done or goes on with it."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{key}.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("another process calibrates the same weights on the same text; waiting for it")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Who had it has removed the file, and somebody else may hold the lock of a new one.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                yield
                path.unlink()
                return
        finally:
            os.close(descriptor)


def _remove_old(cache: Path) -> None:
    """Remove what nobody has gone on with for long."""
    for path in cache.glob("*/journal.json"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(path.parent, ignore_errors=True)
                path.parent.with_suffix(".lock").unlink(missing_ok=True)
