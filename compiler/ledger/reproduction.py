"""A culprit as a folder that runs anywhere: both parts of the graph, what they are fed, what they give.

In: a :class:`~llmc.compiler.ledger.culprit.Culprit`. Out:

    repro.py      runs both and compares; needs onnxruntime and NumPy
    repro.json    pass, nodes, value, limits
    before/       model.onnx, model.onnx.data, inputs.npz, output.npy
    after/        the same
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.versions import tool_versions
from llmc.compiler.graph.write_model import write_model
from llmc.compiler.ledger import repro
from llmc.compiler.ledger.culprit import Culprit
from llmc.compiler.ledger.forced_graph import GIVEN
from llmc.compiler.ledger.inference import Array
from llmc.passes.graph_pass import Loss


def write_reproduction(folder: Path, passes: Sequence[str], loss: Loss, culprit: Culprit) -> None:
    """Write the folder, which is made.

    Raises:
        OSError: the disk is full.
    """
    call, value = culprit.call, culprit.deviation.value
    for side, part, feeds, values in zip(
        ("before", "after"), culprit.parts, call.feeds, (call.expected, call.got), strict=True
    ):
        place = folder / side
        place.mkdir(parents=True)
        write_model(part, place)
        given = {name + GIVEN: array.astype(values[name].dtype) for name, array in call.given.items()}
        _save(place / "inputs.npz", part, {**feeds, **given})
        np.save(place / "output.npy", values[value], allow_pickle=False)
    record = {
        "pass": " … ".join(passes),
        "declared": str(loss),
        "nodes": list(culprit.nodes),
        "value": value,
        "error": culprit.deviation.error,
        "gain": culprit.deviation.gain,
        "limits": {name: limit for name, limit in vars(culprit.limits).items() if np.isfinite(limit)},
        "tools": tool_versions(),
    }
    (folder / "repro.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(repro.__file__, folder / "repro.py")


def _save(path: Path, part: ir.Model, arrays: Mapping[str, Array]) -> None:
    # Written as np.savez does, which takes no array that is called as one of its parameters.
    with zipfile.ZipFile(path, "w") as archive:
        for value in part.graph.inputs:
            with archive.open(f"{value.name}.npy", "w") as file:
                np.lib.format.write_array(file, arrays[value.name or ""], allow_pickle=False)
