"""A walk that solves nothing: somebody looks at values of a model in floats.

In: a float graph, windows of tokens, who looks at which value. Out: nothing; each has been shown its value of every
window. The graph is walked a layer at a time over all windows, with its own weights, so that one layer is in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.progress import Progress
from llmc.compiler.calibration.journal import Journal
from llmc.compiler.calibration.recipe import Recipe, SitePlan
from llmc.compiler.calibration.steps import cut_steps
from llmc.compiler.calibration.walk import Walk
from llmc.compiler.graph.lazy_weight import Array
from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.passes.quantization.sites import Site


def watch_floats(
    model: ir.Model,
    sites: Sequence[Site],
    windows: npt.NDArray[np.int64],
    watched: Mapping[ir.Value, Callable[[Array], None]],
    threads: int,
    progress: Progress,
) -> None:
    """Show values of nodes, one window after the other in any order.

    Args:
        model: All logits, a cache that grows.
        sites: Of the model; nothing behind the last is computed.
        windows: Tokens, [windows, length].
        watched: Who is shown which value, [1, length, ...] or as the node makes it.
        threads: That work side by side.
        progress: Told how far it is.

    Raises:
        EngineError, UnsupportedModelError: a part of the graph does not run here.
    """
    plans = {site.node: SitePlan(None, RoundToNearest(), calibrated=False) for site in sites}
    with tempfile.TemporaryDirectory() as folder:
        walk = Walk(
            model,
            cut_steps(model.graph, sites),
            windows,
            plans,
            Recipe(),
            Journal(Path(folder)),
            dtype=np.dtype(np.float32),
            threads=threads,
            watched=watched,
        )
        walk.run(progress)
