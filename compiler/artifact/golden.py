"""Golden data: what the model says on a few prompts and along a long text, kept with every artifact made from it.

In and out: ``golden.npz``: prompts with greedy continuations, and a text that passes the lengths at which something
begins; for each predicted token the largest logits and the log-sum-exp over all, so that an engine can be compared
with the model wherever it runs, with its runtime alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import ArtifactError

GOLDEN = "golden.npz"
_PASSAGE = "passage."

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Passage:
    """A text that is read in chunks and then token by token, and what the reference says at some of its places.

    Attributes:
        tokens: The text, [length] int64.
        prompt: Tokens of it that are read in chunks; the others follow one by one.
        chunk: Tokens of a chunk.
        places: How many tokens stand before each prediction that is kept, [places] int64, growing. Ends of chunks and
            single tokens: an engine that gives the logits of a call's last token alone gives these.
        top_ids: Tokens with the largest logits there, the largest first, [places, top] int32.
        top_logits: Their logits, float32.
        log_sum_exp: Over the whole vocabulary, [places] float32.
    """

    tokens: IntArray
    prompt: int
    chunk: int
    places: IntArray
    top_ids: npt.NDArray[np.int32]
    top_logits: FloatArray
    log_sum_exp: FloatArray


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
        key_ranges: Largest magnitude of each channel of the keys over all texts, [layers, kv_heads * head_dim]
            float32; None where layers differ in shape or the cache holds something else.
        value_ranges: The same of the values.
        passage: The long text; None where the model's context holds none, or an earlier llmc recorded the data.
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
    passage: Passage | None = None

    @property
    def cache_ranges(self) -> tuple[FloatArray, FloatArray] | None:
        """Ranges of keys and values, where they are known."""
        if self.key_ranges is None or self.value_ranges is None:
            return None
        return self.key_ranges, self.value_ranges

    def save(self, directory: Path) -> None:
        """Write ``golden.npz``; equal data gives equal bytes."""
        with zipfile.ZipFile(directory / GOLDEN, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in sorted(self._arrays()):
                if value is None:
                    continue
                # A fixed date: np.savez would write the time of day.
                entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(entry, "w") as file:
                    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)

    def _arrays(self) -> Iterator[tuple[str, Any]]:
        """Everything by its name in the file."""
        yield from ((name, value) for name, value in vars(self).items() if name != "passage")
        if self.passage is not None:
            yield from ((_PASSAGE + name, value) for name, value in vars(self.passage).items())


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
        own = {name: value for name, value in arrays.items() if not name.startswith(_PASSAGE)}
        passage = _passage({name: value for name, value in arrays.items() if name not in own})
        return Golden(**{**own, "vocab_size": int(own["vocab_size"]), "passage": passage})
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is damaged ({error}); compile the model again") from error


def _passage(arrays: dict[str, Any]) -> Passage | None:
    if not arrays:
        return None
    known = {name.removeprefix(_PASSAGE): value for name, value in arrays.items()}
    numbers = {field.name: int(known[field.name]) for field in fields(Passage) if field.type == "int"}
    return Passage(**{**known, **numbers})
