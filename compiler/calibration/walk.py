"""A model walks over a text, and each layer is solved for what it then reads.

In: the float graph of a target, cut into steps; windows of tokens; which sites get which scheme. Out: solved numbers
of each site, in a store on disk.

    for each step:   what its group reads, of all windows  ─▶  second moments  ─▶  the group's sites are solved
                     of each window: what is kept  ─▶  products with the solved weights  ─▶  nodes  ─▶  what is kept

So every node runs once, and a layer is solved for inputs that come from layers in small numbers. With ``match_float``
the same goes on beside it with float weights, and a layer is solved for what the float model makes of its own inputs.

What is in memory is a step's weights, its moments, and a few windows. Steps that are done stay done: a journal beside
the spool says which. Windows and rows are shared out to threads in pieces of fixed size, each computed by one thread,
so the numbers do not depend on how many threads there are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.calibration.activations import rounded_activations
from llmc.compiler.calibration.estimate import (
    OVERHEAD,
    Pace,
    duration_words,
    estimate_words,
    gpu_seconds,
    measured_rate,
    operations,
)
from llmc.compiler.calibration.expert_walk import ExpertWalk
from llmc.compiler.calibration.fit import Sketch
from llmc.compiler.calibration.inputs import graph_inputs
from llmc.compiler.calibration.journal import Journal
from llmc.compiler.calibration.matrices import Matrices, Matrix
from llmc.compiler.calibration.moments import Moments
from llmc.compiler.calibration.recipe import Recipe, SitePlan
from llmc.compiler.calibration.residual import residual
from llmc.compiler.calibration.segment import Segment
from llmc.compiler.calibration.spool import Spool
from llmc.compiler.calibration.steps import Group, Step, groups_of
from llmc.compiler.graph.lazy_weight import Array
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.products import product, right_hand
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solved_store import SolvedStore, Stored, StoredStack
from llmc.passes.quantization.sites import Site

log = logging.getLogger(__name__)
LONG = 600
"""Seconds from which on a user is told without asking."""
TOGETHER = 8
"""Windows whose activations are summed at once."""


class Walk:
    """One walk; :meth:`run` does it."""

    def __init__(
        self,
        model: ir.Model,
        steps: Sequence[Step],
        windows: npt.NDArray[np.int64],
        plans: Mapping[ir.Node, SitePlan],
        recipe: Recipe,
        journal: Journal,
        *,
        dtype: np.dtype[np.generic],
        threads: int,
        watched: Mapping[ir.Value, Callable[[Array], None]] | None = None,
    ) -> None:
        """Prepare.

        Args:
            model: The float graph.
            steps: Of it.
            windows: Tokens, [windows, length].
            plans: By node of a site.
            recipe: For the calibrated ones.
            journal: What is done, and where to keep what comes.
            dtype: In which scales are stored.
            threads: Windows and rows that are worked on side by side.
            watched: Values of nodes that somebody looks at, one window after the other in any order.
        """
        self._model, self._steps, self._windows = model, steps, windows
        self._plans, self._recipe, self._journal = plans, recipe, journal
        self._threads, self._watched = threads, watched or {}
        self._store = SolvedStore(journal.directory / "solved")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._streams = 2 if recipe.match_float else 1
        self._matrices = Matrices(self._store, dtype, self._device)
        self._reading = self._matrices.reading
        self._experts = ExpertWalk(self._matrices, recipe, len(windows), threads)
        self._pace: Pace | None = None

    def run(self, progress: Progress = NO_PROGRESS) -> dict[str, Stored | StoredStack]:
        """Solve all calibrated sites; what an earlier run has solved is kept."""
        work = self._work()
        if sum(work[self._journal.done :]):
            left, with_gpu = sum(work[self._journal.done :]), sum(self._with_gpu()[self._journal.done :])
            rate = None if self._device.type == "cuda" else measured_rate(self._threads)
            seconds = with_gpu if rate is None else OVERHEAD * left / rate
            hint = "; --effort fast needs none" if any(plan.calibrated for plan in self._plans.values()) else ""
            self._say(seconds, f"calibration takes {estimate_words(seconds, rate, with_gpu)}{hint}")
            self._pace = Pace(left, seconds)
        progress.start("Calibrating", total=round(sum(work) / 1e9), unit="GFLOP")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self._threads)
        try:
            self._walk(work, progress)
        finally:
            # What is not begun is not begun any more, so that an interruption need not wait.
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)
        return {name: solver for group in groups_of(self._steps) for name, solver in self._solvers(group)}

    def _solvers(self, group: Group) -> Iterator[tuple[str, Stored | StoredStack]]:
        """What reads the numbers of a group's calibrated weights, by their names."""
        calibrated = [site for site in group.sites if self._plans[site.node].calibrated]
        if calibrated and group.experts is not None:
            yield from self._experts.solvers(group.experts)
            return
        for site in calibrated:
            if (solver := self._store.solver(site.name)) is not None:
                yield site.name, solver

    def _walk(self, work: Sequence[float], progress: Progress) -> None:
        spools = self._journal.open_spools(self._streams)
        first, begin = self._journal.done, time.perf_counter()
        for index in range(self._journal.done, len(self._steps)):
            step = self._steps[index]
            if step.group is not None:
                self._solve(step.group, spools)
            if index + 1 < len(self._steps):
                for number, spool in enumerate(spools):
                    self._advance(step, spool, exact=number > 0)
            self._journal.finish(index + 1, spools, [value.name or "" for value in step.frees])
            progress.advance(round(sum(work[: index + 1]) / 1e9))
            elapsed = time.perf_counter() - begin
            if self._pace and (takes := self._pace.restated(sum(work[first : index + 1]), elapsed)):
                words = f"about {duration_words(takes)} in all here, by what the first layers took"
                self._say(takes, f"calibration takes {words}, not {duration_words(self._pace.seconds)}")

    def _say(self, seconds: float, words: str) -> None:
        """Tell a user who asked, or who will wait for long."""
        log.log(logging.WARNING if seconds > LONG else logging.INFO, "%s", words)

    def _work(self) -> list[float]:
        """Operations of each step."""
        tokens, streams, plans = self._windows.size, self._streams, self._plans
        return [operations(step, tokens, streams, lambda site: plans[site.node].calibrated) for step in self._steps]

    def _with_gpu(self) -> list[float]:
        """Seconds of each step, were its products a GPU's."""
        tokens, streams, plans, threads = self._windows.size, self._streams, self._plans, self._threads
        return [
            gpu_seconds(step, tokens, streams, lambda site: plans[site.node].calibrated, threads)
            for step in self._steps
        ]

    def _solve(self, group: Group, spools: Sequence[Spool]) -> None:
        if group.experts is not None:
            if (plan := self._plans[group.experts.node]).calibrated:
                self._experts.solve(group.experts, plan, spools, self._pool)
            return
        wanted = [
            (site, plan.scheme)
            for site in (group.sites if group.is_product else ())
            if (plan := self._plans[site.node]).calibrated and plan.scheme and not self._store.solver(site.name)
        ]
        if not wanted:
            return
        for rounds in (False, True):
            if alike := [item for item in wanted if self._plans[item[0].node].rounds == rounds]:
                self._solve_alike(group, alike, spools, rounds=rounds)

    def _solve_alike(
        self, group: Group, wanted: Sequence[tuple[Site, Scheme]], spools: Sequence[Spool], *, rounds: bool
    ) -> None:
        """Solve sites of a group that round what they read, or that do not."""
        moments, cross, missing = self._moments(group, spools, rounds=rounds)
        solver = self._recipe.solver
        correction = None if cross is None else solver.correction(moments, cross, missing, self._pool.map)
        del cross, missing
        factored = {
            scheme: solver.prepare(moments, scheme, correction) for scheme in {scheme: 0 for _, scheme in wanted}
        }
        # Of a wide layer it is a gigabyte.
        del moments
        # All at once: a small layer would leave threads idle.
        matrices = [(Matrix.of(site.name, site.weights[0][1]), scheme) for site, scheme in wanted]
        pieces = [(item, self._matrices.pieces(item, factored[scheme], self._pool)) for item, scheme in matrices]
        for matrix, solved in pieces:
            self._store.write(matrix.name, matrix.height, solved)
        sketches = {scheme: Sketch.of(each) for scheme, each in factored.items()}
        for matrix, scheme in matrices:
            self._matrices.hold(matrix, scheme, sketches[scheme], self._pool)

    def _moments(
        self, group: Group, spools: Sequence[Spool], *, rounds: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Of what a group reads; with what it reads in floats; with what the stream lacks that it is added to."""
        height, features = group.sites[0].weights[0][1].stored_shape
        name, stream = group.value.name or "", self._stream(group, spools)
        own = Moments(features, self._device)
        cross = Moments(features, self._device) if len(spools) > 1 else None
        missing = Moments(features, self._device, height) if stream else None
        for first in range(0, len(self._windows), TOGETHER):
            windows = range(first, min(first + TOGETHER, len(self._windows)))
            x = torch.cat([self._rows(spools[0].read(name, window), rounds=rounds) for window in windows])
            own.add(x, self._pool)
            if cross is not None:
                exact = torch.cat([self._rows(spools[1].read(name, window), rounds=False) for window in windows])
                cross.add(x, self._pool, exact)
            if missing is not None:
                lacks = [spools[1].read(stream, window) - spools[0].read(stream, window) for window in windows]
                missing.add(x, self._pool, torch.cat([self._rows(part, rounds=False) for part in lacks]))
        return own.of_itself(), *(None if sums is None else sums.total for sums in (cross, missing))

    def _stream(self, group: Group, spools: Sequence[Spool]) -> str:
        """Name of the stream to which a group's one product is added, if it is known by now with floats, too."""
        value = residual(group.sites[0].node) if len(group.sites) == 1 else None
        name = (value.name or "") if value is not None else ""
        height = group.sites[0].weights[0][1].stored_shape[0]
        known = [spool.entries[name].shape[-1] == height for spool in spools if name in spool.entries]
        return name if len(known) == 2 and all(known) else ""

    def _rows(self, activations: Array, *, rounds: bool) -> torch.Tensor:
        """Activations as [tokens, features], as they are or as a product that rounds them sees them."""
        rows = torch.from_numpy(activations.reshape(-1, activations.shape[-1])).to(self._device)
        return rounded_activations(rows) if rounds else rows

    def _advance(self, step: Step, spool: Spool, *, exact: bool) -> None:
        """Run a step's products and nodes over all windows; ``exact``: with float weights."""
        watched = {value.name or "": watch for value, watch in self._watched.items()}
        segment = Segment(self._model, step.nodes, [*step.keeps, *(self._watched.keys() - set(step.keeps))])
        weights = self._weights(step.group, exact=exact) if step.group else []
        experts = step.group.experts if step.group else None
        if experts is not None:
            self._experts.run(experts, self._plans[experts.node], spool, self._pool, exact=exact)
        kept = {value.name or "" for value in step.keeps}

        def run(window: int) -> None:
            values = graph_inputs(self._model.graph, self._windows[window])
            spooled = [value.name or "" for value in step.reads if value.name in spool.entries]
            values |= {name: spool.read(name, window) for name in spooled}
            if experts is not None:
                name = experts.output.name or ""
                values[name] = spool.read(name, window)
            elif step.group is not None:
                name = step.group.value.name or ""
                x = values[name] if name in values else spool.read(name, window)
                values |= self._products(step.group, weights, x, exact=exact)
            with self._reading:
                segment.open(values)
            results = segment.run(values)
            with self._reading:
                for name in watched.keys() & results.keys():
                    watched[name](results[name])
            values |= results
            for name in kept & values.keys():
                spool.write(name, window, values[name])

        for _ in self._pool.map(run, range(len(self._windows))):
            pass
        if experts is not None and experts.output not in step.keeps:
            spool.free([experts.output.name or ""])

    def _weights(self, group: Group, *, exact: bool) -> list[torch.Tensor | None]:
        """Of products, [n, k] as :func:`product` takes them; None of tables, whose rows are made once known."""
        weights: list[torch.Tensor | None] = []
        for site in group.sites:
            if not group.is_product:
                weights.append(None)
                continue
            matrix = Matrix.of(site.name, site.weights[0][1])
            values = self._matrices.values(matrix, self._plans[site.node], exact=exact)
            weights.append(right_hand(torch.from_numpy(values).to(self._device)))
        return weights

    def _products(
        self, group: Group, weights: Sequence[torch.Tensor | None], x: Array, *, exact: bool
    ) -> dict[str, Array]:
        """What a group's sites make of one window."""
        results: dict[str, Array] = {}
        seen = dict[bool, torch.Tensor]()
        for site, weight in zip(group.sites, weights, strict=True):
            name = site.node.outputs[0].name or ""
            if weight is None:
                results[name] = self._look_up(site, x, exact=exact)
            else:
                rounds = self._plans[site.node].rounds and not exact
                if rounds not in seen:
                    seen[rounds] = self._rows(x, rounds=rounds)
                results[name] = product(seen[rounds], weight).cpu().numpy().reshape(*x.shape[:-1], -1)
        return results

    def _look_up(self, site: Site, ids: Array, *, exact: bool) -> Array:
        """Rows of a table, each made once; of one that is the head, too, its floats, since that is solved last."""
        plan, weight = self._plans[site.node], site.weights[0][1]
        known, places = np.unique(ids, return_inverse=True)
        with self._reading:
            rows = np.concatenate([weight.rows(int(row), int(row) + 1) for row in known])
        if exact or plan.scheme is None or plan.calibrated:
            values = rows.astype(np.float32)
        else:
            values = dequantize(plan.solver.solve(rows, None, plan.scheme), plan.scheme, rows.shape[1])
        return np.asarray(values[places.reshape(ids.shape)])
