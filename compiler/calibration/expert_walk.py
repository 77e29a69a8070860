"""Experts in a walk: each is solved for the tokens that a router sends to it.

In: what a layer's experts read and how tokens are routed, of all windows, in a spool. Out: solved numbers of each
expert's two matrices; what the layer makes of all windows.

    for each expert:  its tokens, of the spool  ─▶  moments  ─▶  the first product's matrix is solved
                      the same tokens through it and the activation  ─▶  moments  ─▶  the second's

Tokens are routed as the walk has it, by what the router reads once everything before it is small numbers, since so it
will be in the engine; what an expert is to make of them is what it makes in floats of the float model's own inputs
for these tokens, wherever that model would send them. A token counts by the square of its expert's weight, as its
error does in the layer's output.

An expert that gets fewer tokens than :data:`ENOUGH` times its features has moments that say little of what it will
read. What is missing comes from tokens of all experts, evenly over the text, which together count for as many as are
missing. What the first matrix reads of them is the same for all experts, so its moments are summed once.

In memory are an expert's matrices and moments, or those of a few experts that are solved side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmc.compiler.calibration.expert_layer import ExpertLayer
from llmc.compiler.calibration.fit import Sketch
from llmc.compiler.calibration.matrices import Alone, Matrices, Matrix, Workers
from llmc.compiler.calibration.moments import Moments
from llmc.compiler.calibration.recipe import Recipe, SitePlan
from llmc.compiler.calibration.spool import Spool
from llmc.compiler.graph.lazy_weight import Array
from llmc.compiler.quantization.products import product, right_hand
from llmc.compiler.quantization.solved_store import StoredStack

ENOUGH = 2
"""Tokens for each feature from which on an expert's own are all that count."""
OTHERS = 4096
"""Most tokens of all experts that stand for those that an expert does not get; to the second matrix no more than
:data:`ENOUGH` for each feature, since each expert has to compute what that reads."""
TOGETHER = 4096
"""Tokens whose activations are in memory at once."""
ROOM = 1 << 30
"""Bytes of moments of experts that are solved side by side."""
WEIGHTS = 1 << 29
"""Bytes of experts' weights, in float32, that the text passes at once."""
COPIES = 8
"""Of a matrix of moments that solving makes, in float64, at most."""


@dataclass(frozen=True)
class Tokens:
    """Rows of the spool that speak for an expert.

    Attributes:
        rows: Counted over all windows.
        costs: What a squared error counts of each, [n] float32.
    """

    rows: Array
    costs: Array

    def parts(self) -> Iterator[Tokens]:
        """A few at a time."""
        for start in range(0, len(self.rows), TOGETHER):
            yield Tokens(self.rows[start : start + TOGETHER], self.costs[start : start + TOGETHER])


class ExpertWalk:
    """What a walk does with layers of experts."""

    def __init__(self, matrices: Matrices, recipe: Recipe, windows: int, threads: int) -> None:
        """Prepare.

        Args:
            matrices: Solves and keeps them.
            recipe: How.
            windows: Of the text.
            threads: Experts, or rows of one, that are worked on side by side.
        """
        self.matrices, self.recipe = matrices, recipe
        self._windows, self._threads = windows, threads

    def solve(self, layer: ExpertLayer, plan: SitePlan, spools: Sequence[Spool], workers: Workers) -> None:
        """Solve all experts that are not solved yet; ``spools``: of the walk, and of the model in floats."""
        weights = self._routing(layer, spools[0]).numpy()
        store = self.matrices.store
        left = [
            index
            for index in range(layer.count)
            if store.solver(layer.first[index].name) is None or store.solver(layer.second[index].name) is None
        ]
        features, total = layer.first[0].features, len(weights)
        needed = [len(other_tokens(own_tokens(weights[:, index]), features, total, OTHERS).rows) for index in left]
        others = self._read_by_all(layer, total, spools, workers) if any(needed) else None
        beside = self._beside(layer)
        if beside == 1:
            for index in left:
                _Expert(self, layer, plan, spools, others, index, workers).solve(weights[:, index])
            return
        pool = ThreadPoolExecutor(beside)

        def solve(index: int) -> None:
            _Expert(self, layer, plan, spools, others, index, Alone()).solve(weights[:, index])

        try:
            for _ in pool.map(solve, left):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def solvers(self, layer: ExpertLayer) -> Iterator[tuple[str, StoredStack]]:
        """What reads the numbers of both stacks, by their names."""
        for name, matrices in zip(layer.stacks, (layer.first, layer.second), strict=True):
            stack = self.matrices.store.stack([item.name for item in matrices], matrices[0].height)
            if stack is not None:
                yield name, stack

    def run(self, layer: ExpertLayer, plan: SitePlan, spool: Spool, workers: Workers, *, exact: bool) -> None:
        """Write what the layer makes of all windows into the spool; ``exact``: with float weights."""
        routing = self._routing(layer, spool)
        hidden, output = layer.hidden.name or "", layer.output.name or ""
        count = len(routing) // self._windows
        step = max(1, WEIGHTS // sum(4 * item[0].height * item[0].features for item in (layer.first, layer.second)))
        for start in range(0, layer.count, step):
            experts = range(start, min(start + step, layer.count))
            products = {index: self.products(layer, plan, index, exact=exact) for index in experts}

            def run(window: int, first: bool = start == 0, products: dict[int, _Products] = products) -> None:
                x = spool.read(hidden, window)
                rows = torch.from_numpy(x.reshape(-1, x.shape[-1])).to(self.matrices.device)
                shares = routing[window * count : (window + 1) * count]
                total = torch.zeros_like(rows) if first else torch.from_numpy(spool.read(output, window)).to(rows)
                total = total.reshape(rows.shape)
                for index, both in products.items():
                    places = shares[:, index].nonzero()[:, 0].to(rows.device)
                    if len(places):
                        share = shares[:, index].to(rows.device)[places, None]
                        total[places] += share * both.second(both.first(rows[places]))
                spool.write(output, window, total.reshape(x.shape).cpu().numpy())

            for _ in workers.map(run, range(self._windows)):
                pass

    def _read_by_all(
        self, layer: ExpertLayer, total: int, spools: Sequence[Spool], workers: Workers
    ) -> tuple[Tensor, Tensor | None]:
        """Moments of what the first matrix reads of tokens of all experts; with what it reads in floats."""
        count = min(total, OTHERS)
        tokens = Tokens(np.arange(count) * total // count, np.ones(count, np.float32))
        return self.moments(layer, tokens, layer.first[0].features, spools, [None] * len(spools), workers)

    def moments(
        self,
        layer: ExpertLayer,
        tokens: Tokens,
        features: int,
        spools: Sequence[Spool],
        before: Sequence[_Products | None],
        workers: Workers,
    ) -> tuple[Tensor, Tensor | None]:
        """Of what a matrix reads of some tokens; with what it reads in floats.

        Args:
            layer: Whose expert's it is.
            tokens: Which.
            features: That it reads.
            spools: Of the walk, and of the model in floats.
            before: What makes of the layer's inputs, in each spool, what the matrix reads.
            workers: Work for it.
        """
        device, name = self.matrices.device, layer.hidden.name or ""
        own = Moments(features, device)
        cross = Moments(features, device) if len(spools) > 1 else None
        for part in tokens.parts():
            factors = torch.from_numpy(np.sqrt(part.costs)).to(device)[:, None]
            read = []
            for spool, expert in zip(spools, before, strict=True):
                x = torch.from_numpy(spool.read_rows(name, part.rows)).to(device)
                read.append((x if expert is None else expert.first(x)) * factors)
            own.add(read[0], workers)
            if cross is not None:
                cross.add(read[0], workers, read[1])
        return own.of_itself(), None if cross is None else cross.total

    def products(self, layer: ExpertLayer, plan: SitePlan, index: int, *, exact: bool) -> _Products:
        """An expert's products."""
        upper, lower = (self.right(item[index], plan, exact=exact) for item in (layer.first, layer.second))
        return _Products(layer, index, upper, lower)

    def right(self, matrix: Matrix, plan: SitePlan, *, exact: bool) -> Tensor:
        """A matrix as :func:`product` takes it: its own weights, or what its numbers stand for."""
        values = self.matrices.values(matrix, plan, exact=exact)
        return right_hand(torch.from_numpy(values).to(self.matrices.device))

    def _routing(self, layer: ExpertLayer, spool: Spool) -> Tensor:
        """[tokens of all windows, experts]."""
        name = layer.probs.name or ""
        probs = np.concatenate([spool.read(name, window) for window in range(self._windows)])
        return layer.routed(torch.from_numpy(probs.reshape(-1, layer.count)))

    def _beside(self, layer: ExpertLayer) -> int:
        """How many experts are solved side by side; 1: one after the other, by all threads."""
        if self.matrices.device.type != "cpu":
            return 1
        features = max(layer.first[0].features, layer.second[0].features)
        return max(1, min(self._threads, ROOM // (COPIES * 8 * features**2)))


@dataclass(frozen=True, eq=False)
class _Products:
    """What an expert computes.

    Attributes:
        layer: Whose expert it is.
        index: Which.
        upper: The matrix before the activation, as :func:`product` takes it …
        lower: … and the one behind it.
    """

    layer: ExpertLayer
    index: int
    upper: Tensor
    lower: Tensor | None = None

    def first(self, x: Tensor) -> Tensor:
        """What the second product reads of tokens [n, features]."""
        return self.layer.activation(self.layer.biased(product(x, self.upper), 0, self.index))

    def second(self, a: Tensor) -> Tensor:
        """What comes of it."""
        assert self.lower is not None
        return self.layer.biased(product(a, self.lower), 1, self.index)


@dataclass(frozen=True, eq=False)
class _Expert:
    """One expert while it is solved.

    Attributes:
        walk: That it is a part of.
        layer: Whose expert it is.
        plan: How its numbers are stored.
        spools: Of the walk, and of the model in floats.
        others: Moments of what its first matrix reads of tokens of all experts; None: no expert needs them.
        index: Which.
        workers: Work for it.
    """

    walk: ExpertWalk
    layer: ExpertLayer
    plan: SitePlan
    spools: Sequence[Spool]
    others: tuple[Tensor, Tensor | None] | None
    index: int
    workers: Workers

    def solve(self, weights: Array) -> None:
        """Both matrices, unless they are solved; ``weights`` [tokens]: 0 of those that it does not get."""
        store = self.walk.matrices.store
        upper, lower = self.layer.first[self.index], self.layer.second[self.index]
        if store.solver(upper.name) is None:
            self._solve(upper, weights, [None] * len(self.spools))
        if store.solver(lower.name) is None:
            rights = [self.walk.right(upper, self.plan, exact=number > 0) for number in range(len(self.spools))]
            self._solve(lower, weights, [_Products(self.layer, self.index, right) for right in rights])

    def _solve(self, matrix: Matrix, weights: Array, before: Sequence[_Products | None]) -> None:
        """One matrix; ``before``: what makes of the layer's inputs, in each spool, what the matrix reads."""
        scheme, solver, matrices = self.plan.scheme, self.walk.recipe.solver, self.walk.matrices
        assert scheme is not None
        moments, cross = self._moments(own_tokens(weights), len(weights), matrix.features, before)
        correction = None if cross is None else solver.correction(moments, cross, None, self.workers.map)
        factored = solver.prepare(moments, scheme, correction)
        del moments, cross
        held = matrix.held(matrices.reading)
        matrices.store.write(matrix.name, matrix.height, matrices.pieces(held, factored, self.workers))
        matrices.hold(held, scheme, Sketch.of(factored), self.workers)

    def _moments(
        self, own: Tokens, total: int, features: int, before: Sequence[_Products | None]
    ) -> tuple[Tensor, Tensor | None]:
        """Of what a matrix reads, of its expert's tokens and, where these are few, of others."""
        if all(expert is None for expert in before):
            lacks = other_tokens(own, features, total, OTHERS)
            sums = self.walk.moments(self.layer, own, features, self.spools, before, self.workers)
            if len(lacks.rows):
                assert self.others is not None
                for part, other in zip(sums, self.others, strict=True):
                    if part is not None and other is not None:
                        part.add_(other, alpha=float(lacks.costs[0]))
            return sums
        lacks = other_tokens(own, features, total, min(OTHERS, ENOUGH * features))
        tokens = Tokens(np.concatenate([own.rows, lacks.rows]), np.concatenate([own.costs, lacks.costs]))
        return self.walk.moments(self.layer, tokens, features, self.spools, before, self.workers)


def own_tokens(weights: Array) -> Tokens:
    """Of an expert; ``weights`` [tokens]: 0 of those that it does not get."""
    rows = np.flatnonzero(weights)
    return Tokens(rows, np.square(weights[rows], dtype=np.float32))


def other_tokens(own: Tokens, features: int, total: int, most: int) -> Tokens:
    """Those that speak for an expert beside its own; none where these are enough.

    Args:
        own: Its own.
        features: That its matrix reads.
        total: Of the text.
        most: That may be taken.
    """
    missing = ENOUGH * features - len(own.rows)
    if missing <= 0:
        return Tokens(own.rows[:0], own.costs[:0])
    count = min(total, most)
    each = float(own.costs.mean() if len(own.rows) else 1.0) * missing / count
    return Tokens(np.arange(count) * total // count, np.full(count, each, np.float32))
