"""How sites are to be stored, and how those that are calibrated are solved."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmc.compiler.calibration.activations import BITS
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Solver
from llmc.compiler.quantization.solvers.gptq import Gptq


@dataclass(frozen=True)
class SitePlan:
    """How a site is stored.

    Attributes:
        scheme: None: its floats are kept.
        solver: Of sites that are not calibrated, row by row.
        calibrated: It is solved for what it reads.
        activation_bits: To which the engine's operator rounds what a product reads.
    """

    scheme: Scheme | None
    solver: Solver
    calibrated: bool
    activation_bits: int = 8

    @property
    def rounds(self) -> bool:
        """Its product reads integers of few bits, and is solved for these: a packed one that takes no more."""
        return self.scheme is not None and self.scheme.form == "packed" and self.activation_bits == BITS


@dataclass(frozen=True)
class Recipe:
    """How calibrated sites are solved.

    Attributes:
        solver: Chooses their numbers.
        match_float: Solve for the float model's output instead of for the layer's own.
    """

    solver: Gptq = field(default_factory=Gptq)
    match_float: bool = False
