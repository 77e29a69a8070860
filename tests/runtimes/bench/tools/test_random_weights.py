import errno
import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.runtimes.bench.tools import random_weights
from llmc.runtimes.bench.tools.random_weights import plan_data_files, write_random_weights

ONNXRUNTIME = pytest.importorskip("onnxruntime")
DATA = "model.onnx.data"
BITS = {TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16, TensorProto.INT4: 4}
PARTS = {
    "embedding.weight": (TensorProto.FLOAT, (500, 64)),
    "norm.weight": (TensorProto.FLOAT, (64,)),
    "half": (TensorProto.FLOAT16, (64, 300)),
    "brain": (TensorProto.BFLOAT16, (64, 300)),
    "small": (TensorProto.FLOAT8E4M3FN, (64, 200)),
    "small.weight_scale_inv": (TensorProto.FLOAT, (1, 200)),
    "signed": (TensorProto.INT8, (64, 300)),
    "packed4": (TensorProto.UINT8, (32, 2, 16)),
    "packed4_scales": (TensorProto.FLOAT, (32, 2)),
    "bytes8": (TensorProto.UINT8, (32, 2, 32)),
    "bytes8.weight_scales": (TensorProto.FLOAT, (32, 2)),
    "nibbles": (TensorProto.INT4, (33, 5)),
}


def external(name, kind, shape, offset, *, location=DATA, length=None):
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    whole = -(-math.prod(shape) * BITS.get(kind, 8) // 8)
    for key, value in (("location", location), ("offset", offset), ("length", whole if length is None else length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor, offset + whole


def save(path, initializers, nodes=None, outputs=None):
    """A graph that looks up ``input_ids`` and multiplies with whatever is there, its data file missing."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n"])
    nodes = nodes or [helper.make_node("Identity", ["input_ids"], ["y"])]
    outputs = outputs or [helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])]
    graph = helper.make_graph(nodes, "g", [ids], outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def one(directory, name="w", kind=TensorProto.FLOAT, shape=(8, 8), **more):
    save(directory / "model.onnx", [external(name, kind, shape, 0, **more)[0]])


@pytest.fixture(autouse=True)
def _small_pools(monkeypatch):
    monkeypatch.setattr(random_weights, "POOL_BYTES", 1 << 18)
    monkeypatch.setattr(random_weights, "SMALL_POOL_BYTES", 1 << 16)


@pytest.fixture
def engine(tmp_path):
    """Every kind of tensor, computed with."""
    initializers, offset = [], 0
    for name, (kind, shape) in PARTS.items():
        tensor, end = external(name, kind, shape, offset)
        initializers.append(tensor)
        offset = -(-end // 64) * 64
    initializers.append(external("tied.weight", TensorProto.FLOAT, (64, 500), 0)[0])
    nodes = [
        helper.make_node("Gather", ["embedding.weight", "input_ids"], ["rows"]),
        helper.make_node("Mul", ["rows", "norm.weight"], ["x"]),
        helper.make_node("MatMul", ["x", "tied.weight"], ["logits"]),
        helper.make_node("DequantizeLinear", ["small", "scale_of_one"], ["small_f"]),
        helper.make_node("MatMul", ["x", "small_f"], ["from_small"]),
        helper.make_node("Cast", ["half"], ["half_f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "half_f"], ["from_half"]),
        *(
            helper.make_node(
                "MatMulNBits",
                ["x", weight, scales],
                [f"from_{weight}"],
                domain="com.microsoft",
                K=64,
                N=32,
                bits=bits,
                block_size=32,
            )
            for weight, scales, bits in (("packed4", "packed4_scales", 4), ("bytes8", "bytes8.weight_scales", 8))
        ),
    ]
    initializers.append(numpy_helper.from_array(np.float32(0.002), "scale_of_one"))
    widths = {"logits": 500, "from_small": 200, "from_half": 300, "from_packed4": 32, "from_bytes8": 32}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", w]) for name, w in widths.items()]
    save(tmp_path / "model.onnx", initializers, nodes, outputs)
    return tmp_path


def read(directory):
    """The initializers as float32 (where they are numbers), loaded by onnx."""
    loaded = onnx.load(directory / "model.onnx").graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in loaded}


def test_every_kind_has_its_distribution(engine):
    (file,) = write_random_weights(engine)
    assert file.path == engine / DATA
    assert file.path.stat().st_size == file.size == max(offset + length for offset, length in file.pieces)
    values = {name: value.astype(np.float32) for name, value in read(engine).items()}
    assert {name: value.shape for name, value in values.items() if name in PARTS} == {
        n: s for n, (_, s) in PARTS.items()
    }
    assert all(np.isfinite(value).all() for value in values.values())
    for name in ("embedding.weight", "half", "brain"):
        assert values[name].std() == pytest.approx(0.02, rel=0.05)
        assert abs(values[name].mean()) < 0.001
    assert (values["norm.weight"] == 1).all()
    for name in ("small.weight_scale_inv", "packed4_scales", "bytes8.weight_scales"):
        assert (values[name] >= 0.0015).all()
        assert (values[name] <= 0.0025).all()
        assert len(np.unique(values[name])) > 10
    for name, mean in (("small", 0), ("signed", 0), ("bytes8", 128)):
        assert values[name].mean() == pytest.approx(mean, abs=1)
        assert values[name].std() == pytest.approx(10, rel=0.1)
    assert values["packed4"].min() < 10
    assert values["packed4"].max() > 245
    assert len(np.unique(values["nibbles"])) == 16
    assert (values["tied.weight"].ravel() == values["embedding.weight"].ravel()).all()


def test_onnxruntime_computes_with_them(engine):
    write_random_weights(engine)
    session = ONNXRUNTIME.InferenceSession(engine / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"input_ids": np.array([3, 499])})
    for value in outputs:
        assert np.isfinite(value).all()
        assert value.std() > 0
    assert not np.array_equal(outputs[0][0], outputs[0][1])


def test_a_seed_decides_the_bytes(engine):
    write_random_weights(engine)
    first = (engine / DATA).read_bytes()
    write_random_weights(engine, overwrite=True)
    assert (engine / DATA).read_bytes() == first
    write_random_weights(engine, overwrite=True, seed=1)
    assert (engine / DATA).read_bytes() != first


def test_a_tensor_longer_than_its_pool_does_not_repeat_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(random_weights, "POOL_BYTES", 4096)
    one(tmp_path, shape=(100, 128))
    write_random_weights(tmp_path)
    rows = read(tmp_path)["w"]
    assert rows.std() == pytest.approx(0.02, rel=0.1)
    assert len(np.unique(rows, axis=0)) > 50  # a pool holds 8 rows


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("FLOAT8E4M3FNUZ", "float8_e4m3fnuz"),
        ("FLOAT8E5M2", "float8_e5m2"),
        ("FLOAT8E5M2FNUZ", "float8_e5m2fnuz"),
        ("FLOAT8E8M0", "float8_e8m0fnu"),
    ],
)
def test_other_small_floats_are_finite(tmp_path, name, dtype):
    one(tmp_path, kind=TensorProto.DataType.Value(name), shape=(64, 64))
    write_random_weights(tmp_path)
    values = np.frombuffer((tmp_path / DATA).read_bytes(), getattr(ml_dtypes, dtype)).astype(np.float32)
    assert np.isfinite(values).all()
    assert (values != 0).any()


def test_graphs_of_a_directory_share_a_data_file(tmp_path):
    one(tmp_path)
    later = external("longer", TensorProto.FLOAT, (8, 16), 256)[0]
    elsewhere = external("other", TensorProto.FLOAT16, (4, 4), 0, location="other.data")[0]
    save(tmp_path / "engine.onnx", [later, elsewhere])
    sizes = {file.path.name: file.size for file in write_random_weights(tmp_path)}
    assert sizes == {DATA: 256 + 512, "other.data": 32}
    (alone,) = plan_data_files(tmp_path / "model.onnx")
    assert alone.size == 256


def test_subgraphs_are_seen(tmp_path):
    tensor, _ = external("inner", TensorProto.FLOAT, (8, 8), 0)
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, (8, 8))
    branch = helper.make_graph([], "branch", [], [value], [tensor])
    constant = helper.make_node("Constant", [], ["k"], value=external("k", TensorProto.FLOAT, (4,), 256)[0])
    yes = helper.make_node("Constant", [], ["yes"], value_int=1)
    choice = helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)
    save(tmp_path / "model.onnx", [], [constant, yes, choice, helper.make_node("Identity", ["input_ids"], ["y"])])
    (file,) = plan_data_files(tmp_path)
    assert file.size == 272


def test_progress_ends_at_the_total(engine):
    told = []
    (file,) = write_random_weights(engine, progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (file.size, file.size)


def test_progress_and_room_are_those_of_all_files(tmp_path, monkeypatch):
    tensors = [external(name, TensorProto.FLOAT, (8, 8), 0, location=f"{name}.data")[0] for name in "ab"]
    save(tmp_path / "model.onnx", tensors)
    room = SimpleNamespace(free=511)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with pytest.raises(ArtifactError, match="GB are needed"):
        write_random_weights(tmp_path)
    room.free, told = 512, []
    write_random_weights(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(256, 512), (512, 512)]


@pytest.mark.parametrize(("kind", "name", "mean"), [("INT8", "levels", 0), ("UINT8", "levels128", 128)])
def test_levels_are_rounded_to_the_nearest(kind, name, mean):
    """Cut, they would lie half a level lower, or nearer to 0."""
    drawn = random_weights._draw(random_weights.Kind(kind, name), 200_000, np.random.default_rng(0))
    exact = np.random.default_rng(0).standard_normal(200_000, dtype=np.float32) * 10 + mean
    error = drawn.view(np.int8 if kind == "INT8" else np.uint8) - exact
    assert np.abs(error).max() <= 0.5001
    assert abs(error.mean()) < 0.01


def test_a_file_that_is_there_is_kept(tmp_path):
    one(tmp_path)
    (tmp_path / DATA).write_bytes(b"precious")
    with pytest.raises(ArtifactError, match="is there already"):
        write_random_weights(tmp_path)
    assert (tmp_path / DATA).read_bytes() == b"precious"
    write_random_weights(tmp_path, overwrite=True)
    assert (tmp_path / DATA).stat().st_size == 256


def test_what_goes_wrong_half_way_leaves_nothing(engine):
    def stop(done, total):
        raise KeyboardInterrupt

    (engine / DATA).write_bytes(b"precious")
    with pytest.raises(KeyboardInterrupt):
        write_random_weights(engine, overwrite=True, progress=stop)
    assert sorted(path.name for path in engine.iterdir()) == ["model.onnx", DATA]
    assert (engine / DATA).read_bytes() == b"precious"


def test_a_full_disk_is_named(engine, monkeypatch):
    def full(done, total):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match="the disk is full"):
        write_random_weights(engine, progress=full)
    assert [path.name for path in engine.iterdir()] == ["model.onnx"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ArtifactError, match="GB are needed"):
        write_random_weights(engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": TensorProto.INT64, "shape": (1,)}, r"w \(INT64\) .* keep it in the graph"),
        ({"location": "../model.onnx.data"}, "not in the graph's directory"),
        ({"location": "/etc/model.onnx.data"}, "not in the graph's directory"),
        ({"location": "sub/../../model.onnx.data"}, "not in the graph's directory"),
        ({"length": 255}, "255 bytes, its type and shape say 256"),
    ],
)
def test_graphs_that_cannot_be_filled(tmp_path, options, message):
    one(tmp_path, **options)
    with pytest.raises(ArtifactError, match=message):
        write_random_weights(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_sources_without_anything_to_fill(tmp_path):
    with pytest.raises(UsageError, match="holds no ONNX graph"):
        plan_data_files(tmp_path)
    with pytest.raises(UsageError, match="holds no ONNX graph"):
        plan_data_files(tmp_path / "missing.onnx")
    save(tmp_path / "model.onnx", [numpy_helper.from_array(np.ones(3, np.float32), "inside")])
    with pytest.raises(ArtifactError, match="has no external data"):
        plan_data_files(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 20)
    with pytest.raises(ArtifactError, match="cannot be read"):
        plan_data_files(tmp_path)


def test_command_line(tmp_path, capsys):
    one(tmp_path)
    assert random_weights.main([str(tmp_path)]) == 0
    assert DATA in capsys.readouterr().out
    assert random_weights.main([str(tmp_path)]) == ArtifactError.exit_code
    assert "--overwrite" in capsys.readouterr().err
    assert random_weights.main([str(tmp_path), "--overwrite"]) == 0


def test_nothing_but_numpy_ml_dtypes_and_onnx_is_loaded():
    code = "import sys, json, llmc.runtimes.bench.tools.random_weights; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"rich", "psutil", "torch", "transformers", "onnxruntime", "onnx_ir", "onnxscript"}
