"""What precision each layer of an engine's network really has, beside what was asked.

In: a network as TensorRT's parser made it (its types are binding: networks are strongly typed), and the ONNX model.
Out: :class:`Receipt`, which a build writes to ``receipt.json``: a record per layer, bytes of weights by type, matrix
products by the types of their operands, and findings: products in another precision than asked.

The receipt reads the network, not the finished engine, which only a GPU opens. Where the builder unpacks small
weights of its own accord the engine's size gives it away; that is a finding, too.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx
from onnx import TensorProto

RECEIPT = "receipt.json"
ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\]")
PRODUCTS = frozenset({"MATRIX_MULTIPLY", "EINSUM", "CONVOLUTION", "ATTENTION_INPUT"})
"""Layers that multiply matrices."""
OFFSETS = "/offsets"
"""Ends the name of a product that adds the offsets of blocks (see ``block_offsets.py``), which are float."""
PASSED_THROUGH = frozenset({"SHUFFLE", "CAST", "DEQUANTIZE", "QUANTIZE", "DYNAMIC_QUANTIZE", "SQUEEZE", "UNSQUEEZE"})
"""Layers between a stored weight and what reads it."""
NUMBERS_KEPT = PASSED_THROUGH - {"CAST"}
"""Layers that activations pass through in the type in which they are multiplied."""
TYPES: Mapping[str, tuple[str, int]] = {
    "FLOAT": ("fp32", 32),
    "HALF": ("fp16", 16),
    "BF16": ("bf16", 16),
    "FP8": ("fp8", 8),
    "E8M0": ("e8m0", 8),
    "FP4": ("fp4", 4),
    "INT8": ("int8", 8),
    "INT4": ("int4", 4),
    "INT32": ("int32", 32),
    "INT64": ("int64", 64),
    "UINT8": ("uint8", 8),
    "BOOL": ("bool", 8),
}
"""TensorRT's type -> llmc's name and bits of an element."""
ASKED: Mapping[str, frozenset[str]] = {
    "fp32": frozenset({"fp32"}),
    "fp16": frozenset({"fp16"}),
    "bf16": frozenset({"bf16"}),
    "int8": frozenset({"int8"}),
    "fp8": frozenset({"fp8", "int8"}),
    "int4": frozenset({"int4", "int8"}),
    "nvfp4": frozenset({"fp4", "int8"}),
}
"""Precision that was asked for -> types that products' weights may have; the output projection is int8 by default."""
UNPACKED, NOTICEABLE = 0.5, 64 << 20
"""An engine is suspected to hold unpacked weights from this part of the difference on, and from so many bytes on."""


@dataclass(frozen=True)
class LayerRecord:
    """One layer of the network.

    Attributes:
        node: The ONNX node it was made for; empty for what the parser adds.
        layer: Its type, as ``MATRIX_MULTIPLY``.
        asked: Type of the ONNX value that it makes; empty where it makes none.
        actual: Types of its outputs.
    """

    node: str
    layer: str
    asked: str
    actual: tuple[str, ...]


@dataclass(frozen=True)
class Receipt:
    """Precision of one network.

    Attributes:
        precision: What was asked for; empty: nothing.
        layers: In the network's order.
        weight_bytes: Type -> bytes of constants.
        shared_bytes: Of packed constants that are read both by rows and by products, which an engine holds twice.
        products: ``weights x activations`` -> number of matrix products; those of block offsets apart.
        findings: One sentence per product or value in another precision than asked.
    """

    precision: str
    layers: tuple[LayerRecord, ...]
    weight_bytes: Mapping[str, int]
    shared_bytes: int
    products: Mapping[str, int]
    findings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def with_finding(self, sentence: str) -> Receipt:
        """The same and one more finding."""
        return replace(self, findings=(*self.findings, sentence))

    def summary(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        return {
            "weight_bytes": dict(self.weight_bytes),
            "products": dict(self.products),
            "findings": list(self.findings),
        }


def make_receipt(network: Any, model: onnx.ModelProto, precision: str | None) -> Receipt:
    """Read a network.

    Args:
        network: What the parser made.
        model: The ONNX model it was made of.
        precision: Type of weights that was asked for; None: products are counted and not judged.
    """
    reader = _Reader(network)
    asked = _asked_types(model)
    layers = tuple(reader.record(index, asked) for index in range(network.num_layers))
    products = list(reader.products())
    findings = [
        f"{record.node} makes {record.actual[0]}, the graph {record.asked}"
        for record in layers
        if record.node and record.asked and record.asked != record.actual[0]
    ]
    findings += [sentence for product in products if (sentence := product.judge(precision))]
    counted = Counter(product.kind for product in products)
    weights, shared = reader.weight_bytes(), reader.shared_bytes()
    return Receipt(precision or "", layers, weights, shared, dict(sorted(counted.items())), tuple(findings))


def find_unpacked(receipt: Receipt, engine_bytes: int) -> str | None:
    """A sentence where an engine is too large for its packed weights."""
    packed = sum(receipt.weight_bytes.values())
    in_halves = sum(size * 16 // _BITS[kind] for kind, size in receipt.weight_bytes.items() if kind in _SMALL)
    unpacked = in_halves - sum(size for kind, size in receipt.weight_bytes.items() if kind in _SMALL)
    extra = engine_bytes - packed - receipt.shared_bytes
    if extra > NOTICEABLE and 0 < UNPACKED * unpacked < extra:
        return (
            f"the engine has {engine_bytes / 1e6:.0f} MB for {packed / 1e6:.0f} MB of weights: the builder unpacked "
            "small weights"
        )
    return None


_BITS = dict(TYPES.values())
_SMALL = frozenset({"int4", "int8", "fp4", "fp8"})


@dataclass(frozen=True)
class _Product:
    node: str
    weights: str
    activations: str
    constant: bool

    @property
    def kind(self) -> str:
        """As it is counted."""
        types = f"{self.weights} x {self.activations}"
        return f"{types} (block offsets)" if self.node.endswith(OFFSETS) else types

    def judge(self, precision: str | None) -> str | None:
        """A sentence where its weights are not of the type that was asked for."""
        if precision is None or not self.constant or self.node.endswith(OFFSETS):
            return None
        if self.weights in ASKED.get(precision, {self.weights}):
            return None
        return f"{self.node} multiplies weights in {self.weights}, asked for {precision}"


class _Reader:
    def __init__(self, network: Any) -> None:
        self._layers = [network.get_layer(index) for index in range(network.num_layers)]
        self._maker = {tensor.name: layer for layer in self._layers for tensor in _outputs(layer)}

    def record(self, index: int, asked: Mapping[str, str]) -> LayerRecord:
        layer = self._layers[index]
        outputs = _outputs(layer)
        wanted = asked.get(outputs[0].name, "") if outputs else ""
        return LayerRecord(_node(layer), _kind(layer), wanted, tuple(_type(tensor) for tensor in outputs))

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of constants by type."""
        sizes: Counter[str] = Counter()
        for tensor in self._constants():
            sizes[_type(tensor)] += _nbytes(tensor)
        return dict(sorted(sizes.items()))

    def shared_bytes(self) -> int:
        """Bytes of packed constants that both a gather and a product read."""
        readers: dict[str, set[str]] = {}
        for layer in self._layers:
            if (kind := _kind(layer)) == "GATHER" or kind in PRODUCTS:
                for tensor in _inputs(layer):
                    origin = self._origin(tensor, PASSED_THROUGH)
                    readers.setdefault(origin.name, set()).add("GATHER" if kind == "GATHER" else "PRODUCT")
        packed = (tensor for tensor in self._constants() if _type(tensor) in _SMALL)
        return sum(_nbytes(tensor) for tensor in packed if len(readers.get(tensor.name, ())) > 1)

    def _constants(self) -> list[Any]:
        return [layer.get_output(0) for layer in self._layers if _kind(layer) == "CONSTANT"]

    def products(self) -> Iterator[_Product]:
        for layer in self._layers:
            if _kind(layer) not in PRODUCTS:
                continue
            stored = [self._stored(tensor) for tensor in _inputs(layer)[:2]]
            constants = [kind for kind, constant in stored if constant]
            others = [kind for kind, constant in stored if not constant]
            weights = constants[0] if constants else (others[-1] if others else "")
            yield _Product(_node(layer) or layer.name, weights, (others or constants)[0], bool(constants))

    def _stored(self, tensor: Any) -> tuple[str, bool]:
        """Type in which a constant is stored, or activations are multiplied; and whether it is a constant."""
        layer = self._maker.get(self._origin(tensor, PASSED_THROUGH).name)
        constant = layer is not None and _kind(layer) == "CONSTANT"
        way = self._way(tensor, PASSED_THROUGH if constant else NUMBERS_KEPT)
        return _type(min(way, key=_bits)), constant

    def _origin(self, tensor: Any, layers: frozenset[str]) -> Any:
        """The tensor that this one is after some layers."""
        return list(self._way(tensor, layers))[-1]

    def _way(self, tensor: Any, layers: frozenset[str]) -> Iterator[Any]:
        """The tensor and those before it, through layers of these kinds."""
        yield tensor
        while (layer := self._maker.get(tensor.name)) is not None and _kind(layer) in layers:
            tensor = layer.get_input(0)
            yield tensor


def _asked_types(model: onnx.ModelProto) -> dict[str, str]:
    """Float types of the graph's values by name."""
    inferred = onnx.shape_inference.infer_shapes(model)
    names = {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.FLOAT8E4M3FN: "fp8",
        TensorProto.INT8: "int8",
        TensorProto.INT4: "int4",
    }
    values = (*inferred.graph.value_info, *inferred.graph.output)
    return {v.name: names[v.type.tensor_type.elem_type] for v in values if v.type.tensor_type.elem_type in names}


def _node(layer: Any) -> str:
    found = ONNX_LAYER.search(layer.metadata or "")
    return found[1] if found else ""


def _kind(layer: Any) -> str:
    return str(layer.type).rpartition(".")[2]


def _type(tensor: Any) -> str:
    return TYPES.get(_dtype(tensor), (_dtype(tensor).lower(), 0))[0]


def _bits(tensor: Any) -> int:
    return TYPES.get(_dtype(tensor), ("", 32))[1]


def _nbytes(tensor: Any) -> int:
    return int(-(-math.prod(tensor.shape) * _bits(tensor) // 8))


def _inputs(layer: Any) -> list[Any]:
    return [tensor for number in range(layer.num_inputs) if (tensor := layer.get_input(number)) is not None]


def _outputs(layer: Any) -> list[Any]:
    return [tensor for number in range(layer.num_outputs) if (tensor := layer.get_output(number)) is not None]


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).rpartition(".")[2]
