from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from llmc.compiler.base.contract import DATA, GRAPH
from llmc.compiler.graph import write_model as module
from llmc.compiler.graph.lazy_weight import LazyWeight, MappedWeight, TensorWeight, transposed_weight
from llmc.compiler.graph.write_model import ALIGNMENT, INLINE_BYTES, PAGED_BYTES, SMALL_ALIGNMENT, write_model

Array = npt.NDArray[Any]
HIDDEN, VOCABULARY = 32, 24


def draw(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


class Broken(LazyWeight):
    """A weight whose checkpoint has gone."""

    def rows(self, start: int, stop: int) -> Array:
        raise OSError("the disk went away")


def lazy(array: Array, *, transposed: bool = False) -> TensorWeight:
    return TensorWeight(ir.tensor(array), ir.DataType.from_numpy(array.dtype), transposed=transposed)


def make_model(**tensors: ir.TensorProtocol) -> ir.Model:
    """y = x · table, + the sum of nothing else: the other tensors are initializers that no node reads."""
    x = ir.val("x", ir.DataType.FLOAT, ["n", HIDDEN])
    initializers = [ir.val(name, const_value=tensor) for name, tensor in tensors.items()]
    table = next(value for value in initializers if value.name == "table")
    node = ir.node("MatMul", [x, table])
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=initializers, opset_imports={"": 23}, name="main_graph"
    )
    return ir.Model(graph, ir_version=10)


def places(directory: Path) -> dict[str, tuple[int, int]]:
    """Offset and length of each external tensor."""
    proto = onnx.load_model(directory / GRAPH, load_external_data=False)
    found = {}
    for tensor in proto.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            assert entries["location"] == DATA
            found[tensor.name] = (int(entries["offset"]), int(entries["length"]))
    return found


def read_back(directory: Path) -> dict[str, Array]:
    proto = onnx.load_model(directory / GRAPH)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_every_kind_of_tensor_is_read_back(tmp_path: Path) -> None:
    arrays: dict[str, Array] = {
        "table": draw(HIDDEN, VOCABULARY),
        "turned": draw(40, 30, seed=1),
        "half": draw(40, 30, seed=2).astype(np.float16),
        "plain": draw(300, seed=3),
        "small": draw(4, seed=4),
        "small_plain": draw(4, seed=5),
        "bytes": np.arange(2000, dtype=np.uint8).reshape(20, 100),
    }
    turned = transposed_weight(lazy(np.ascontiguousarray(arrays["turned"].T)))
    bfloat = arrays["half"].astype(ml_dtypes.bfloat16)
    model = make_model(
        table=lazy(arrays["table"]),
        turned=turned,
        half=lazy(arrays["half"]),
        plain=ir.tensor(arrays["plain"]),
        small=lazy(arrays["small"]),
        small_plain=ir.tensor(arrays["small_plain"]),
        bytes=lazy(arrays["bytes"]),
        bfloat=lazy(bfloat),
        turned_bfloat=transposed_weight(lazy(bfloat)),
    )
    write_model(model, tmp_path)
    found = read_back(tmp_path)
    for name, array in arrays.items():
        assert np.array_equal(found[name], array), name
        assert found[name].dtype == array.dtype
    assert np.array_equal(found["bfloat"].view(np.uint16), bfloat.view(np.uint16))
    assert np.array_equal(found["turned_bfloat"].view(np.uint16), bfloat.view(np.uint16).T)
    session = ort.InferenceSession(tmp_path / GRAPH, providers=["CPUExecutionProvider"])
    x = draw(2, HIDDEN, seed=6)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ arrays["table"], rtol=1e-5, atol=1e-5)


def test_tensors_lie_in_the_order_of_their_names(tmp_path: Path) -> None:
    arrays = {name: draw(300 + i, seed=i) for i, name in enumerate(["zeta", "alpha", "middle"])}
    model = make_model(table=lazy(draw(HIDDEN, VOCABULARY)), **{n: lazy(a) for n, a in arrays.items()})
    written = write_model(model, tmp_path)
    found = places(tmp_path)
    assert sorted(found, key=found.__getitem__) == ["alpha", "middle", "table", "zeta"]
    assert all(offset % SMALL_ALIGNMENT == 0 for offset, _ in found.values())
    assert {name: length for name, (_, length) in found.items()} == {
        **{name: array.nbytes for name, array in arrays.items()},
        "table": HIDDEN * VOCABULARY * 4,
    }
    assert written == (tmp_path / DATA).stat().st_size == sum(found["zeta"])


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    """Up to 1 KiB."""
    model = make_model(table=lazy(draw(HIDDEN, VOCABULARY)), at=lazy(draw(256)), above=lazy(draw(257)))
    write_model(model, tmp_path)
    assert places(tmp_path) == {"above": (0, 257 * 4), "table": (17 * 64, HIDDEN * VOCABULARY * 4)}
    assert (INLINE_BYTES, SMALL_ALIGNMENT) == (1024, 64)


def test_large_tensors_begin_at_pages(tmp_path: Path) -> None:
    """From 128 KiB on; a page is 4 KiB, on which a runtime that maps the file counts."""
    large, below = draw(1 << 15), draw((1 << 15) - 1, seed=1)
    names = {"a": draw(300), "b": large, "c": draw(257, seed=2), "d": below, "e": draw(1 << 15, seed=3)}
    write_model(make_model(table=lazy(draw(4, 4)), **{name: lazy(array) for name, array in names.items()}), tmp_path)
    found = {name: start for name, (start, _) in places(tmp_path).items()}
    assert (ALIGNMENT, PAGED_BYTES) == (4096, 1 << 17)
    third, fourth = 4096 + (1 << 17), 4096 + (1 << 17) + 17 * 64
    assert found == {"a": 0, "b": 4096, "c": third, "d": fourth, "e": -(-(fourth + below.nbytes) // 4096) * 4096}


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for run, names in enumerate((("a", "b"), ("b", "a"))):
        directory = tmp_path / str(run)
        directory.mkdir()
        arrays = {name: draw(500, seed=ord(name)) for name in names}
        model = make_model(table=lazy(draw(HIDDEN, VOCABULARY)), **{n: lazy(arrays[n]) for n in sorted(names)})
        write_model(model, directory)
        write_model(model, directory)
        contents.append([(directory / name).read_bytes() for name in (GRAPH, DATA)])
    assert contents[0] == contents[1]


def test_equal_bytes_are_stored_once(tmp_path: Path) -> None:
    array, plain = draw(VOCABULARY, HIDDEN), ir.tensor(draw(400))
    base = lazy(array)

    def packed(*shape: int) -> MappedWeight:
        return MappedWeight(base, shape, ir.DataType.FLOAT, lambda rows: rows, ("packed",))

    model = make_model(
        table=transposed_weight(base),
        lookup=packed(VOCABULARY, HIDDEN),
        product=packed(VOCABULARY, 2, HIDDEN // 2),
        first=plain,
        second=plain,
    )
    written = write_model(model, tmp_path)
    found = places(tmp_path)
    assert found["lookup"] == found["product"]
    assert found["first"] == found["second"]
    assert found["table"] != found["lookup"]
    assert len(set(found.values())) == 3
    assert written <= 3 * ALIGNMENT
    tensors = read_back(tmp_path)
    assert np.array_equal(tensors["product"].reshape(array.shape), array)
    assert np.array_equal(tensors["lookup"], array)


def test_what_is_lazy_is_put_back(tmp_path: Path) -> None:
    model = make_model(table=lazy(draw(HIDDEN, VOCABULARY)), other=ir.tensor(draw(400)), small=lazy(draw(3)))
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    write_model(model, tmp_path)
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before


def test_a_failure_while_weights_are_written_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = make_model(
        table=lazy(draw(HIDDEN, VOCABULARY)), beyond=Broken((400,), ir.DataType.FLOAT), zeta=lazy(draw(400))
    )
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    with pytest.raises(OSError, match="the disk went away"):
        write_model(model, tmp_path)
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before
    assert not (tmp_path / GRAPH).exists(), "a graph without its weights looks like a model"


def test_a_failure_while_the_graph_is_written_leaves_the_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(table=lazy(draw(HIDDEN, VOCABULARY)))
    before = model.graph.initializers["table"].const_value

    def refuse(_: ir.Model) -> onnx.ModelProto:
        assert isinstance(model.graph.initializers["table"].const_value, ir.ExternalTensor)
        raise MemoryError

    monkeypatch.setattr(module.ir, "to_proto", refuse)
    with pytest.raises(MemoryError):
        write_model(model, tmp_path)
    assert model.graph.initializers["table"].const_value is before


def test_a_tensor_of_the_wrong_length_is_noticed(tmp_path: Path) -> None:
    short = MappedWeight(lazy(draw(10, 60)), (10, 60), ir.DataType.FLOAT, lambda rows: rows[:-1], ("short",))
    model = make_model(table=lazy(draw(HIDDEN, VOCABULARY)), short=short)
    with pytest.raises(AssertionError, match="short wrote 2160 bytes, not 2400"):
        write_model(model, tmp_path)


@pytest.mark.parametrize("weights", [True, False])
def test_tensors_of_one_identity_and_two_lengths_are_noticed(weights: bool, tmp_path: Path) -> None:
    """Whichever is written: one of them would read what follows it in the file."""
    base = lazy(draw(10, 60))
    parts = [MappedWeight(base, (rows, 60), ir.DataType.FLOAT, lambda r: r, ("part",)) for rows in (10, 5)]
    model = make_model(table=lazy(draw(HIDDEN, VOCABULARY)), first=parts[0], second=parts[1])
    with pytest.raises(AssertionError, match="second wrote 2400 bytes, not 1200"):
        write_model(model, tmp_path, weights=weights)


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    """Those of small tensors among them."""
    model = make_model(table=lazy(draw(HIDDEN, VOCABULARY)), other=lazy(draw(400)), above=lazy(draw(8)))
    seen: list[tuple[int, int]] = []
    write_model(model, tmp_path, lambda done, total: seen.append((done, total)))
    assert seen == [(1632, 4704), (4704, 4704)]


# --- the graph alone ------------------------------------------------------------------------------------------------


def tied_model() -> ir.Model:
    base, plain = lazy(draw(VOCABULARY, HIDDEN)), ir.tensor(draw(400))
    table = transposed_weight(base)
    return make_model(
        table=table, again=table, first=plain, second=plain, small=lazy(draw(4)), beyond=lazy(draw(500))
    )


def test_without_weights_the_graph_is_the_same(tmp_path: Path) -> None:
    """Places included, so that weights drawn elsewhere fit; and ties are kept."""
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    written = []
    for directory, weights in ((whole, True), (alone, False)):
        directory.mkdir()
        written.append(write_model(tied_model(), directory, weights=weights))
    assert (whole / GRAPH).read_bytes() == (alone / GRAPH).read_bytes()
    assert [path.name for path in alone.iterdir()] == [GRAPH]
    assert written == [(whole / DATA).stat().st_size] * 2
    found = places(alone)
    assert set(found) == {"table", "again", "first", "second", "beyond"}
    assert found["table"] == found["again"]
    assert found["first"] == found["second"]


def test_without_weights_nothing_large_is_read(tmp_path: Path) -> None:
    model = make_model(table=Broken((HIDDEN, VOCABULARY), ir.DataType.FLOAT), small=lazy(draw(4)))
    seen: list[tuple[int, int]] = []
    write_model(model, tmp_path, lambda done, total: seen.append((done, total)), weights=False)
    assert places(tmp_path) == {"table": (0, HIDDEN * VOCABULARY * 4)}
    assert seen[-1][0] == seen[-1][1]
    proto = onnx.load_model(tmp_path / GRAPH, load_external_data=False)
    small = next(tensor for tensor in proto.graph.initializer if tensor.name == "small")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(small), draw(4))
