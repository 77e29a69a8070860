"""Weights of a GGUF file under transformers' names, dequantized a few rows at a time.

In: a ``.gguf`` file and its config. Out: :class:`GgufWeights`. Names and values are those that
``AutoModelForCausalLM.from_pretrained(directory, gguf_file=name, dtype=torch.float32)`` would load.

What llama.cpp's converter did to a tensor (permuted rows, norms plus one, experts apart) is undone by transformers'
own code. That code wants whole tensors; to read rows alone, it is first run on row NUMBERS in place of the values,
which shows which row of the file each row of the result comes from.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.base.foreign_errors import quoted
from llmc.compiler.checkpoint.gguf_architectures import find_architecture, make_processor
from llmc.compiler.checkpoint.gguf_blocks import BLOCK_FORMATS, FloatArray
from llmc.compiler.checkpoint.gguf_config import read_gguf_config
from llmc.compiler.checkpoint.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from llmc.compiler.checkpoint.gguf_keys import GgufKeys
from llmc.compiler.checkpoint.gguf_rope import check_rotation
from llmc.compiler.checkpoint.gguf_rows import check_types, read_gguf_rows
from llmc.compiler.checkpoint.gguf_settings import rotated_channels
from llmc.compiler.checkpoint.side_files import require_gguf_model
from llmc.compiler.checkpoint.weights import TensorInfo, row_bounds

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Recipe:
    """How one tensor of the state dict is made from the file's.

    Attributes:
        sources: The file's tensors that it is made of (several for merged experts).
        shape: Of the result.
        rows: For each row of the result the row of the sources that it comes from; None if rows cannot be told apart
            (then the whole tensor is read).
        plain: The rows are copies; nothing else happens to them.
    """

    sources: tuple[GgufTensor, ...]
    shape: tuple[int, ...]
    rows: npt.NDArray[np.int64] | None
    plain: bool

    def info(self, name: str) -> TensorInfo:
        """What is known of the tensor; of types that hold floats none is said."""
        size = sum(source.stored_bytes for source in self.sources)
        types = dict.fromkeys(s.type_name for s in self.sources if BLOCK_FORMATS[s.type_name].values > 1)
        return TensorInfo(name, ir.DataType.FLOAT, self.shape, size, self.sources[0].path.name, "; ".join(types))


class GgufWeights:
    """The tensors of a GGUF file as float32, under transformers' names.

    Args:
        path: The file.
        config: The model's config, if it was read already.

    Raises:
        CheckpointError: not GGUF, truncated, or a tensor type that cannot be dequantized.
        UnsupportedModelError: an architecture that transformers does not read from GGUF.
        MissingDependencyError: the ``gguf`` package is not installed.
    """

    def __init__(self, path: Path, config: PreTrainedConfig | None = None) -> None:
        self.header = read_gguf_header(path)
        require_gguf_model(path, self.header.metadata)
        check_types(self.header)
        self.config = read_gguf_config(self.header) if config is None else config
        self._processor = _processor(self.header, self.config)
        self._names = _name_map(self.header, self.config, self._processor)
        self._recipes = self._find_recipes()
        self._infos = {name: recipe.info(name) for name, recipe in self._recipes.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """The file that holds the tensors, or all its parts."""
        return self.header.files

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, sorted by name."""
        return self._infos

    def stored(self) -> Mapping[str, TensorInfo]:
        """All tensors of the file, by the names that they have there."""
        return {
            tensor.name: TensorInfo(
                tensor.name,
                ir.DataType.UNDEFINED,
                tensor.shape,
                tensor.stored_bytes,
                tensor.path.name,
                tensor.type_name,
            )
            for tensor in self.header.tensors
        }

    def used(self) -> set[str]:
        """Those of :meth:`stored` that tensors of the model are made of."""
        return {source.name for recipe in self._recipes.values() for source in recipe.sources}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray:
        """Rows ``start:stop`` of the first axis, float32; see :class:`WeightSource`."""
        recipe = self._recipes[name]
        first, last = row_bounds(recipe.shape, start, stop)
        if recipe.rows is None:
            whole = {source.name: read_gguf_rows(source) for source in recipe.sources}
            return np.array(self._process(name, whole)[first:last])
        wanted = recipe.rows[first:last]
        if not len(wanted):
            return np.empty((0, *recipe.shape[1:]), dtype=np.float32)
        # A permutation stays within one head, so the rows between are few.
        low, high = int(wanted.min()), int(wanted.max()) + 1
        parts = {source.name: read_gguf_rows(source, low, high) for source in recipe.sources}
        if recipe.plain:
            (part,) = parts.values()
            return part if (np.diff(wanted) == 1).all() else part[wanted - low]
        return np.array(self._process(name, parts)[wanted - low])

    def _find_recipes(self) -> dict[str, _Recipe]:
        sources: dict[str, list[GgufTensor]] = {}
        for tensor in self.header.tensors:
            for target in self._targets(tensor):
                sources.setdefault(target, []).append(tensor)
        return {name: self._find_recipe(name, tuple(sources[name])) for name in sorted(sources)}

    def _targets(self, tensor: GgufTensor) -> list[str]:
        """Names in the state dict that ``tensor`` contributes to."""
        parsed: dict[str, dict[str, Any]] = {"tensors": {}}
        result = self._call_processor(tensor.name, _row_numbers(tensor.shape), parsed)
        if result.name is None:
            return list(parsed["tensors"])
        return [self._names[result.name]] if result.name in self._names else []

    def _find_recipe(self, name: str, sources: tuple[GgufTensor, ...]) -> _Recipe:
        numbers = {source.name: _row_numbers(source.shape) for source in sources}
        result = self._process(name, numbers)
        first = sources[0]
        same_columns = all(source.shape[-1:] == first.shape[-1:] for source in sources)
        if len(first.shape) >= 2 and result.ndim >= 2 and result.shape[-1] == 1 and same_columns:
            shape = (*result.shape[:-1], first.shape[-1])
            rows = _source_rows(result, first.shape[0])
            plain = len(sources) == 1 and shape == first.shape
            # What is not a copy must be computed from the same rows that it is asked for.
            if rows is not None and (plain or bool((rows == np.arange(len(rows))).all())):
                return _Recipe(sources=sources, shape=shape, rows=rows, plain=plain)
        if len(first.shape) == 3 and self._by_matrix(result, sources):
            one = {s.name: np.broadcast_to(np.float32(0), (1, *s.shape[1:])) for s in sources}
            shape = (first.shape[0], *self._process(name, one).shape[1:])
            return _Recipe(sources=sources, shape=shape, rows=np.arange(first.shape[0]), plain=False)
        zeros = {s.name: np.broadcast_to(np.float32(0), s.shape) for s in sources}
        return _Recipe(sources=sources, shape=self._process(name, zeros).shape, rows=None, plain=False)

    def _by_matrix(self, numbers: FloatArray, sources: Sequence[GgufTensor]) -> bool:
        """Whether each matrix of a stack is made of the sources' matrices of the same number."""
        count = sources[0].shape[0]
        if numbers.ndim != 3 or len(numbers) != count or any(source.shape[:1] != (count,) for source in sources):
            return False
        return bool((numbers == np.arange(count, dtype=np.float32)[:, None, None]).all())

    def _process(self, name: str, arrays: Mapping[str, FloatArray]) -> FloatArray:
        """The state dict's tensor ``name``, made by transformers' processor from the file's ``arrays``."""
        parsed: dict[str, dict[str, Any]] = {"tensors": {}}
        for source, array in arrays.items():
            result = self._call_processor(source, array, parsed)
            if result.name is not None:
                return np.asarray(result.weights)
        merged: FloatArray = parsed["tensors"][name].numpy()
        return merged

    def _call_processor(self, name: str, array: FloatArray, parsed: dict[str, dict[str, Any]]) -> Any:
        return self._processor.process(
            weights=array, name=name, tensor_key_mapping=self._names, parsed_parameters=parsed
        )


def _row_numbers(shape: tuple[int, ...]) -> FloatArray:
    """An array like the tensor, with one column, that holds in each row the row's number.

    float32 counts exactly to 2**24, more rows than any vocabulary has.
    """
    narrow = (*shape[:-1], 1) if len(shape) > 1 else shape
    column = np.arange(shape[0] if shape else 1, dtype=np.float32)
    return np.array(np.broadcast_to(column.reshape(-1, *[1] * (len(narrow) - 1)), narrow))


def _source_rows(numbers: FloatArray, count: int) -> npt.NDArray[np.int64] | None:
    """For each row its number, if every row holds one number only and the numbers are 0 to ``count`` - 1."""
    flat = numbers.reshape(numbers.shape[0], -1)
    rows = flat[:, 0]
    if len(rows) != count or not (flat == rows[:, None]).all() or not (np.sort(rows) == np.arange(count)).all():
        return None
    return rows.astype(np.int64)


def _processor(header: GgufHeader, config: PreTrainedConfig) -> Any:
    from transformers import modeling_gguf_pytorch_utils as loader

    row = find_architecture(header)
    if row is not None:
        return make_processor(row, config.to_dict())
    architecture = header.architecture
    known = loader.GGUF_TO_TRANSFORMERS_MAPPING["config"]
    if architecture not in known and config.model_type not in known and architecture not in loader.TENSOR_PROCESSORS:
        raise UnsupportedModelError(
            f"llmc cannot read the weights of the GGUF architecture {architecture} ({header.path.name}) row by row; "
            "use the model's safetensors checkpoint."
        )
    return loader.TENSOR_PROCESSORS.get(architecture, loader.TensorProcessor)(config=config.to_dict())


def _two_levels(model: Any) -> Any:
    """What transformers' name mapping asks of ``model`` and of the base model in it: files name tensors of either.

    The mapping builds a table of all names for every module that it meets, which over all of a model's modules is
    most of the time that opening a file takes; the deeper ones never match.
    """

    def level(module: Any, children: Sequence[tuple[str, Any]] = ()) -> Any:
        names = dict.fromkeys(module.state_dict())
        return SimpleNamespace(config=model.config, state_dict=lambda: names, named_children=lambda: children)

    return level(model, [(name, level(child)) for name, child in model.named_children()])


def _name_map(header: GgufHeader, config: PreTrainedConfig, processor: Any) -> dict[str, str]:
    """The file's names to the state dict's, from a model without storage."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        # Where llmc made the configuration, transformers does not know llama.cpp's name of the type.
        known = None if find_architecture(header) is None else header.architecture
        names: dict[str, str] = get_gguf_hf_weights_map(_two_levels(model), processor, known)
    except (NotImplementedError, ValueError) as error:
        raise UnsupportedModelError(
            f"{header.path} is of the architecture {header.architecture}, for which transformers has no causal "
            "language model with GGUF names; use the model's safetensors checkpoint."
        ) from error
    except ArithmeticError as error:
        raise CheckpointError(
            f"transformers cannot make a {config.model_type} model of what {header.path} says ({quoted(error)}); "
            "convert the model to GGUF again."
        ) from error
    keys = GgufKeys(header)
    if rotated := rotated_channels(config, keys):
        check_rotation(model, keys, rotated)
    return names
