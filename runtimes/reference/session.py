"""transformers as the reference: a Hugging Face model in, a :class:`~llmc.runtimes.session.engine.Session` out.

What an engine says is compared with what this session says, fed with the same calls.

A ragged batch is computed without any padding: rows that have had the same lengths in every call so far share one
cache and one forward; when a call gives them different lengths, their group and its cache are split.

    chunk lengths 7 7 3    {0,1,2} ──▶ {0,1} {2}
    chunk lengths 7 1 0    {0,1} {2} ──▶ {0} {1} {2}          (2 keeps its cache and is not computed)

So no model sees a masked hole. That matters: transformers measures a sliding window in cache slots, so that a hole
counts as a token of the window, and a recurrent state or a short convolution would take padding in. The reference is
right for every architecture whose own batched forward is, at the price of one forward per group.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.compiler.base.contract import LogitsKind
from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.foreign_errors import told_as
from llmc.runtimes.session.capabilities import RowEditor
from llmc.runtimes.session.engine import (
    EngineInfo,
    FloatArray,
    Int64Array,
    Session,
    require_prefix,
    require_room,
    valid_tokens,
)
from llmc.runtimes.session.host_logits import HostLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNBOUNDED_CONTEXT = 1 << 20  # for models without learned or scaled positions
_PRECISIONS = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


@dataclass
class _Group:
    """Rows of equal history, and their cache (a transformers ``Cache``, or None before the first token)."""

    rows: list[int]
    cache: Any = None


class TransformersSession(Session, RowEditor):
    """A transformers model behind the Session protocol; see the module's docstring for ragged batches."""

    mixes_lengths = False

    def __init__(self, model: PreTrainedModel, *, threads: int | None = None, logits: LogitsKind = "all") -> None:
        """Wrap a loaded model, which is put into evaluation mode.

        Args:
            model: A causal language model on the CPU.
            threads: Threads for torch, in the whole process; None leaves them as they are.
            logits: ``last`` saves memory: 600 positions of a 262,144-token vocabulary take 630 MB per row.
        """
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self._model: Any = model.eval()
        self.info = _engine_info(model, logits, torch.get_num_threads())
        parameters = inspect.signature(model.forward).parameters
        self._keeps_logits = logits == "last" and "logits_to_keep" in parameters
        self._cache_argument = "cache_params" if "cache_params" in parameters else "past_key_values"
        self._groups: list[_Group] = []
        self._tokens: list[Int64Array] = []
        self._lengths: Int64Array = np.zeros(0, dtype=np.int64)
        self._capacity = 0

    @property
    def lengths(self) -> Int64Array:
        """Tokens each row holds now, [batch] int64."""
        return self._lengths.copy()

    @property
    def rows(self) -> RowEditor:
        """The session itself."""
        return self

    def reset(self, batch: int, capacity: int) -> None:
        """Empty the cache; see :meth:`llmc.runtimes.session.engine.Session.reset`."""
        require_room(self.info, batch, capacity)
        self._groups = [_Group(list(range(batch)))]
        self._tokens = [np.zeros(0, np.int64)] * batch
        self._lengths = np.zeros(batch, dtype=np.int64)
        self._capacity = capacity

    def forward(self, input_ids: Int64Array, lengths: Int64Array | None = None) -> HostLogits:
        """Append a right-padded chunk to every row; see :meth:`llmc.runtimes.session.engine.Session.forward`."""
        if self._model is None:
            raise EngineError("this session is closed; open the model again")
        chunk = valid_tokens(self._lengths, self._capacity, input_ids, lengths)
        self._groups = [part for group in self._groups for part in _split(group, chunk)]
        positions = 1 if self.info.logits == "last" else input_ids.shape[1]
        values: FloatArray | None = None
        for group in self._groups:
            length = int(chunk[group.rows[0]])
            if length == 0:
                continue
            computed = self._compute(group, input_ids[group.rows, :length])
            if len(self._groups) == 1 and computed.shape[1] == positions:
                values = computed
                break
            if values is None:
                values = np.zeros((len(chunk), positions, computed.shape[2]), dtype=np.float32)
            values[group.rows, : computed.shape[1]] = computed
        if values is None:
            values = np.zeros((len(chunk), positions, self.info.vocab_size), dtype=np.float32)
        self._tokens = [
            np.append(held, row[:count]) for held, row, count in zip(self._tokens, input_ids, chunk, strict=True)
        ]
        self._lengths += chunk
        return HostLogits(values, np.clip(chunk, 1, positions) - 1)

    def hold(self, row: int, source: int, length: int) -> None:
        """Compute the tokens anew: what a model keeps of them may be cut to a window, or a state."""
        require_prefix(self._lengths, source, length)
        apart = np.arange(len(self._lengths)) == row
        self._groups = [part for group in self._groups for part in _split(group, apart) if part.rows != [row]]
        self._groups.append(_Group([row]))
        self._tokens[row], self._lengths[row] = self._tokens[source][:length], length
        if length:
            self._compute(self._groups[-1], self._tokens[row][None])

    def logits_at(self, tokens: Int64Array, places: Int64Array) -> FloatArray:
        """Logits after the first so many tokens of a text, from one forward over all of it into an empty cache.

        Args:
            tokens: The text, [length] int64, at most the context; the session then holds it in one row.
            places: How many tokens stand before each prediction, [places] int64, from 1 on.

        Returns:
            [places, vocab_size] float32; the head computes no other positions where the model has one of its own.
        """
        import torch

        self.reset(1, len(tokens))
        kept = torch.from_numpy(places - 1)
        head = self._model.get_output_embeddings()
        hook = head and head.register_forward_pre_hook(
            lambda _, inputs: (inputs[0].index_select(-2, kept), *inputs[1:]) if inputs[0].shape[-2] > 1 else None
        )
        try:
            values: FloatArray = self._compute(self._groups[0], tokens[None])[0]
        finally:
            if hook:
                hook.remove()
        self._lengths[:] = len(tokens)
        self._tokens = [tokens]
        return values if len(values) == len(places) else values[places - 1]

    def cache_ranges(self) -> tuple[FloatArray, FloatArray] | None:
        """Largest magnitude of each channel of the keys and of the values in the cache.

        Returns:
            Two arrays [layers, kv_heads * head_dim] float32; None where layers differ or keep something else.
        """
        ranges: list[FloatArray] = []
        for group in self._groups:
            layers = getattr(group.cache, "layers", [])
            pairs: list[tuple[Any, Any]] = [
                (getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers
            ]
            if not pairs or any(part is None or part.dim() != 4 for pair in pairs for part in pair):
                return None
            if len({tuple(part.shape[1::2]) for pair in pairs for part in pair}) != 1:
                return None
            tops = [[part.abs().amax((0, 2)).flatten().float().numpy() for part in pair] for pair in pairs]
            ranges.append(np.asarray(tops, np.float32))
        if not ranges:
            return None
        largest = np.max(ranges, axis=0)
        return largest[:, 0], largest[:, 1]

    def close(self) -> None:
        """Drop the model and the cache."""
        self._model = None
        self._groups = []

    def _compute(self, group: _Group, tokens: Int64Array) -> FloatArray:
        """Run the model on ``tokens`` [rows, length]; float32 logits [rows, 1 or length, vocab_size]."""
        import torch

        if group.cache is None:
            from transformers import DynamicCache

            group.cache = DynamicCache(config=self._model.config)
        options: dict[str, Any] = {"logits_to_keep": 1} if self._keeps_logits else {}
        options[self._cache_argument] = group.cache
        what = f"transformers' own {self._model.config.model_type} model, the reference, does not run"
        advice = "try another version of transformers, or --verify off"
        with told_as(EngineError, what, advice), torch.inference_mode():
            ids = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))
            output = self._model(input_ids=ids, use_cache=True, **options)
            values: FloatArray = output.logits.float().numpy()
        return values[:, -1:] if self.info.logits == "last" else values


def _split(group: _Group, chunk: Int64Array) -> list[_Group]:
    """Part a group by its rows' lengths in this call, in the order in which they come."""
    parts: dict[int, list[int]] = {}
    for index, row in enumerate(group.rows):
        parts.setdefault(int(chunk[row]), []).append(index)
    if len(parts) == 1:
        return [group]
    return [
        _Group([group.rows[index] for index in indices], _select_rows(group.cache, indices))
        for indices in parts.values()
    ]


def _select_rows(cache: Any, indices: list[int]) -> Any:
    """A copy of a transformers cache that keeps only some rows (``reorder_cache`` takes fewer rows, too)."""
    if cache is None:
        return None
    import torch

    with torch.inference_mode():
        selected = copy.deepcopy(cache)
        selected.reorder_cache(torch.tensor(indices))
    return selected


def _engine_info(model: PreTrainedModel, logits: LogitsKind, threads: int) -> EngineInfo:
    config: Any = model.config.get_text_config()
    layers = int(config.num_hidden_layers)
    all_heads = getattr(config, "num_attention_heads", None) or 0
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    head_dim = getattr(config, "head_dim", None) or (config.hidden_size // all_heads if all_heads else 0)
    weights = {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    if head is None or head.weight.data_ptr() != embedding.data_ptr():
        weights.pop(embedding.data_ptr(), None)
    return EngineInfo(
        runtime="transformers",
        vocab_size=int(config.vocab_size),
        num_layers=layers,
        max_context=int(getattr(config, "max_position_embeddings", None) or _UNBOUNDED_CONTEXT),
        logits=logits,
        cache="grow",
        cache_bytes_per_token=int(2 * layers * heads * head_dim * model.dtype.itemsize),
        weight_bytes=sum(weights.values()),
        precision=_PRECISIONS.get(str(model.dtype), str(model.dtype)),
        threads=threads,
        details={"attn_implementation": config._attn_implementation, "model_type": config.model_type},
    )
