"""A network as TensorRT's parser leaves it, made by hand: for rules about networks that no parser makes on demand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import onnx


@dataclass(frozen=True)
class Tensor:
    """A value of the network."""

    name: str
    dtype: str = "DataType.FLOAT"
    shape: tuple[int, ...] = (2, 3)


@dataclass(frozen=True)
class Layer:
    """What makes values of others."""

    name: str
    type: str = "LayerType.ELEMENTWISE"
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    metadata: str = ""

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]


@dataclass
class Network:
    """Layers in their order."""

    layers: list[Layer] = field(default_factory=list)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]


@dataclass
class Parsed:
    """A network and the parser that made it, a layer for each node and for each initializer.

    Attributes:
        dropped: (node, index of the input): left out of the node's layer.
        ranks: Value -> dimensions, where they are not one.
        integers: Values that are int64.
    """

    model: onnx.ModelProto
    dropped: Iterable[tuple[str, int]] = ()
    ranks: dict[str, int] = field(default_factory=dict)
    integers: frozenset[str] = frozenset()
    network: Network = field(default_factory=Network)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.network.layers += [Layer(t.name, outputs=(Tensor(f"({t.name})"),)) for t in graph.initializer]
        constants = {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            kept = [n for i, n in enumerate(node.input) if n and (node.name, i) not in self.dropped]
            inputs = tuple(Tensor(f"({name})" if name in constants else name) for name in kept)
            self.network.layers.append(Layer(node.name, inputs=inputs, outputs=tuple(map(self._tensor, node.output))))

    def _tensor(self, name: str) -> Tensor:
        kind = "DataType.INT64" if name in self.integers else "DataType.FLOAT"
        return Tensor(name, kind, (1,) * self.ranks.get(name, 1))

    def rename_layer(self, old: str, new: str) -> None:
        """Another name for a layer, as the parser gives where one is taken."""
        layers = self.network.layers
        layers[:] = [replace(layer, name=new) if layer.name == old else layer for layer in layers]

    def get_layer_output_tensor(self, node: str, index: int) -> Tensor | None:
        layer = next((layer for layer in self.network.layers if layer.name == node), None)
        return layer.outputs[index] if layer and index < len(layer.outputs) else None
