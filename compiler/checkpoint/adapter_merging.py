"""Adapters merged into a model's tensors, which are still read row by row.

In: opened adapters, and the tensors of a model under its own names. Out: the tensors with the updates made.

An adapter names modules of the model as transformers had it when the adapter was trained. They are looked for among
the model's parameters; where transformers has since merged modules into one (experts), among the tensors of the
checkpoint, whose names are the older ones. What is found in neither is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.adapter import Adapter
from llmc.compiler.checkpoint.conversion_loading import LoadedWeights, empty_model, tied_groups
from llmc.compiler.checkpoint.merged_weights import Addition, Edit, LowRank, MergedWeights, Replacement
from llmc.compiler.checkpoint.side_files import same_values
from llmc.compiler.checkpoint.weights import WeightSource

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Edits = dict[str, list[Edit]]


def merge_adapters(
    adapters: Sequence[Adapter],
    weights: WeightSource,
    config: PreTrainedConfig,
    stored: WeightSource,
    convert: Callable[[WeightSource], WeightSource],
) -> WeightSource:
    """``weights`` with ``adapters`` merged, one after the other.

    Args:
        adapters: In the order in which they are merged.
        weights: The tensors under the model's names.
        config: Of the causal language model.
        stored: The tensors under the names that they have in the files.
        convert: Makes the first of the second, as :func:`~llmc.compiler.checkpoint.conversion.convert_weights`.

    Raises:
        CheckpointError: an adapter is of another model.
        UnsupportedModelError: it changes what llmc does not merge.
    """
    merging = _Merging(weights, empty_model(config), stored)
    for adapter in adapters:
        merging.add(adapter)
    if merging.stored_edits:
        weights = convert(MergedWeights(stored, merging.stored_edits))
    if isinstance(weights, LoadedWeights):
        _merge_in_memory(weights, merging.edits)
        return weights
    return MergedWeights(weights, merging.edits, deep=bool(merging.stored_edits))


class _Merging:
    """What adapters do to which tensors.

    Attributes:
        edits: By the model's names.
        stored_edits: By the names in the files.
    """

    def __init__(self, weights: WeightSource, model: PreTrainedModel, stored: WeightSource) -> None:
        self._weights, self._model, self._stored = weights, model, stored
        self._tied = tied_groups(model)
        self._parameters = set(model.state_dict())
        self.edits: Edits = {}
        self.stored_edits: Edits = {}

    def add(self, adapter: Adapter) -> None:
        """Note what ``adapter`` does."""
        for module in adapter.modules:
            for leaf in ("weight", "bias"):
                for edit in _edits(adapter, module, leaf, transposed=self._stored_transposed(module)):
                    self._place(adapter, f"{module}.{leaf}", edit)

    def _stored_transposed(self, module: str) -> bool:
        """Whether the weight of a linear layer is [in, out]."""
        from transformers.pytorch_utils import Conv1D

        try:
            return isinstance(self._model.get_submodule(module), Conv1D)
        except AttributeError:
            return False

    def _place(self, adapter: Adapter, name: str, edit: Edit) -> None:
        source, edits, tensor = self._weights, self.edits, self._owner(name)
        if tensor is None and name in self._stored.tensors():
            source, edits, tensor = self._stored, self.stored_edits, name
        if tensor is None and isinstance(edit, Replacement) and name in self._parameters:
            # One that the checkpoint lacks, as a head that was tied there.
            edits.setdefault(name, []).append(edit)
            return
        if tensor is None:
            base = f" of {adapter.base}" if adapter.base else ""
            raise CheckpointError(
                f"the adapter {adapter.name} changes {name}, which this {self._model.config.model_type} model does "
                f"not have: it is an adapter{base}; name its own model."
            )
        shape = source.tensors()[tensor].shape
        if edit.shape != shape:
            raise CheckpointError(
                f"the adapter {adapter.name} changes {name} as {list(edit.shape)}, and the model has it as "
                f"{list(shape)}: it was trained on another model, or on one with more tokens; name its own model."
            )
        if isinstance(edit, Replacement) and self._is_same(source, tensor, edit):
            return
        if isinstance(edit, Replacement) and len(self._tied.get(name, ())) > 1:
            self._require_both(adapter, name)
        edits.setdefault(tensor, []).append(edit)

    def _owner(self, name: str) -> str | None:
        """The tensor that holds a parameter: its own, or one that the model ties to it."""
        tensors = self._weights.tensors()
        return next((other for other in (name, *self._tied.get(name, ())) if other in tensors), None)

    def _is_same(self, source: WeightSource, tensor: str, edit: Replacement) -> bool:
        """Whether nothing is replaced: PEFT writes embeddings that are not changed, too."""
        one, other = source.tensors()[tensor], edit.source.tensors()[edit.tensor]
        return one.dtype == other.dtype and same_values(source, tensor, edit.source, edit.tensor)

    def _require_both(self, adapter: Adapter, name: str) -> None:
        """Refuse values of its own for one of two tied parameters: the model cannot hold them."""
        twins = [adapter.modules.get(other.rpartition(".")[0], {}).get("weight") for other in self._tied[name]]
        if None in twins or not all(
            same_values(adapter.weights, str(twins[0]), adapter.weights, str(twin)) for twin in twins
        ):
            other = next(other for other in self._tied[name] if other != name)
            raise CheckpointError(
                f"the adapter {adapter.name} has values of its own for {name}, which config.json ties to {other}: "
                "set tie_word_embeddings to false there."
            )


def _edits(adapter: Adapter, module: str, leaf: str, *, transposed: bool) -> list[Edit]:
    """What is done to the weight or the bias of one module."""
    parts, weights = adapter.modules[module], adapter.weights
    found: list[Edit] = [Replacement(weights, parts[leaf])] if leaf in parts else []
    one, two = ("a", "b") if "a" in parts else ("table_a", "table_b")
    if one not in parts:
        return found
    a = weights.read(parts[one]).astype(np.float32)
    scaling = adapter.scaling(module, a.shape[0])
    if leaf == "bias":
        if "bias_step" in parts:
            found.append(Addition(weights.read(parts["bias_step"]), scaling))
        return found
    b = weights.read(parts[two]).astype(np.float32)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise UnsupportedModelError(
            f"the adapter {adapter.name} has matrices {list(a.shape)} and {list(b.shape)} for {module}, which are "
            "not those of a linear layer or an embedding; merge it with PEFT (merge_and_unload)."
        )
    magnitude = weights.read(parts["magnitude"]) if "magnitude" in parts else None
    table = one == "table_a"
    found.append(LowRank(a, b, scaling, transposed=transposed or table, magnitude=magnitude))
    return found


def _merge_in_memory(weights: LoadedWeights, edits: Edits) -> None:
    """Change the model itself, whose memory its tensors are."""
    import torch

    merged = MergedWeights(weights, edits)
    state = weights.model.state_dict()
    with torch.no_grad():
        for name in edits:
            state[name].copy_(torch.from_numpy(merged.read(name)))
