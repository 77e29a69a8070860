"""Golden data: what the model says on a few prompts, kept with every artifact made from it.

In and out: ``golden.npz``: prompts, greedy continuations, and for each predicted token the largest logits and the
log-sum-exp over all, so that an engine can be compared with the model wherever it runs, with its runtime alone.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import ArtifactError

GOLDEN = "golden.npz"

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """The reference's answers.

    Attributes:
        prompts: [prompts, longest] int64, right-padded.
        lengths: Tokens of each prompt.
        tokens: Greedy continuation of each prompt, [prompts, steps] int64.
        top_ids: Tokens with the largest logits before each predicted token, [prompts, steps, top] int64.
        top_logits: Their logits, float32.
        log_sum_exp: Over the whole vocabulary, [prompts, steps] float32.
        vocab_size: Width of the reference's logits.
        key_ranges: Largest magnitude of each channel of the keys over all prompts, [layers, kv_heads * head_dim]
            float32; None where layers differ in shape or the cache holds something else.
        value_ranges: The same of the values.
    """

    prompts: IntArray
    lengths: IntArray
    tokens: IntArray
    top_ids: IntArray
    top_logits: FloatArray
    log_sum_exp: FloatArray
    vocab_size: int
    key_ranges: FloatArray | None = None
    value_ranges: FloatArray | None = None

    @property
    def cache_ranges(self) -> tuple[FloatArray, FloatArray] | None:
        """Ranges of keys and values, where they are known."""
        if self.key_ranges is None or self.value_ranges is None:
            return None
        return self.key_ranges, self.value_ranges

    def save(self, directory: Path) -> None:
        """Write ``golden.npz``; equal data gives equal bytes."""
        with zipfile.ZipFile(directory / GOLDEN, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in sorted(vars(self).items()):
                if value is None:
                    continue
                # A fixed date: np.savez would write the time of day.
                entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(entry, "w") as file:
                    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)


def load_golden(directory: Path) -> Golden | None:
    """The artifact's golden data; None when it carries none.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = directory / GOLDEN
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays: dict[str, Any] = {name: data[name] for name in data.files}
        return Golden(**{**arrays, "vocab_size": int(arrays["vocab_size"])})
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is damaged ({error}); compile the model again") from error
