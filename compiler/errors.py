"""The errors that llmc raises on purpose, for programs that tell one kind from another."""

from llmc.compiler.base.errors import (
    ArtifactError,
    CaptureError,
    CheckpointError,
    EngineError,
    FusionContractError,
    GateError,
    HubError,
    LlmcError,
    MachineError,
    MissingDependencyError,
    OutputError,
    PassError,
    UndecidedError,
    UnsupportedModelError,
    UsageError,
    VerificationError,
)

__all__ = [
    "ArtifactError",
    "CaptureError",
    "CheckpointError",
    "EngineError",
    "FusionContractError",
    "GateError",
    "HubError",
    "LlmcError",
    "MachineError",
    "MissingDependencyError",
    "OutputError",
    "PassError",
    "UndecidedError",
    "UnsupportedModelError",
    "UsageError",
    "VerificationError",
]
