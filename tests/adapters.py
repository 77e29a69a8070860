"""Small adapters in PEFT's format, without PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PREFIX = "base_model.model."
Arrays = dict[str, np.ndarray[Any, Any]]


def write_adapter(directory: Path, tensors: Arrays, **settings: Any) -> Path:
    """``tensors`` under their names without PEFT's prefix."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 2, "lora_alpha": 4} | settings
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file({PREFIX + name: array for name, array in tensors.items()}, directory / "adapter_model.safetensors")
    return directory


def low_rank(module: str, out: int, features: int, rank: int = 2, seed: int = 0) -> Arrays:
    """The two matrices of a linear layer, random."""
    rng = np.random.default_rng(seed)
    return {
        f"{module}.lora_A.weight": rng.standard_normal((rank, features), dtype=np.float32),
        f"{module}.lora_B.weight": rng.standard_normal((out, rank), dtype=np.float32),
    }
