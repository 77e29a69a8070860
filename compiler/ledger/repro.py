"""Runs a part of a graph as it was before a pass and as it is after it, and compares what comes out.

    python repro.py

Needs onnxruntime and NumPy. Beside this file lie ``repro.json``, which names the pass, the nodes, the value and how
far it may be off, and two folders, ``before`` and ``after``, with a graph (``model.onnx``), its inputs
(``inputs.npz``) and what came out when it was written (``output.npy``). The exit code is 1 while the value is off by
more than it may be, else 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path) -> int:
    """Run both graphs and say how far they are apart."""
    record: dict[str, Any] = json.loads((folder / "repro.json").read_text(encoding="utf-8"))
    say(f"{record['pass']}: {record['value']}, made by {', '.join(record['nodes'])}")
    before, after = (run(folder / side) for side in ("before", "after"))
    if before.shape != after.shape:  # after the pass, the last token's alone
        before = before[:, -1:]
    magnitude = np.abs(before) + np.sqrt(np.square(before).mean())
    difference = np.abs(after - before)
    error = float((difference / np.where(magnitude > 0, magnitude, 1)).max())
    power = float(np.square(before).mean())
    gain = float((before * (after - before)).mean() / power) if power else 0.0
    worst = np.unravel_index(int(difference.argmax()), difference.shape)
    say(f"largest difference {difference[worst]:.6g} at {[int(index) for index in worst]}:")
    say(f"  before the pass {before[worst]:.9g}, after it {after[worst]:.9g}")
    say(f"largest error {error:.3g} of an element's magnitude and the root mean square, gain {gain:+.4%}")
    limits = record["limits"]
    wrong = not error <= limits.get("error", np.inf) or not abs(gain - limits["usual"]) <= limits.get("gain", np.inf)
    return int(wrong)


def run(folder: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What a folder's graph computes, which is said where it is not what was written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    path = str(folder / "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with np.load(folder / "inputs.npz") as inputs:
        (output,) = session.run(None, {item.name: inputs[item.name] for item in session.get_inputs()})
    written = np.load(folder / "output.npy")
    if not np.allclose(output, written, rtol=1e-4, atol=1e-5, equal_nan=True):
        say(f"{folder.name}: this ONNX Runtime ({onnxruntime.__version__}) gives other numbers than were written")
    return np.asarray(output, np.float64)


def say(line: str) -> None:
    """A line on stdout."""
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))
