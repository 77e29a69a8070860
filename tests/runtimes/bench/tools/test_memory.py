import json
import sys

import ml_dtypes
import numpy as np
import pytest

from llmc.compiler.base.errors import ArtifactError, EngineError, UsageError
from llmc.runtimes.bench.tools import memory
from llmc.runtimes.bench.tools.memory import CompileMemory, MemoryReport, measure_compile, render_memory
from llmc.runtimes.bench.tools.process_memory import run_measured
from llmc.runtimes.bench.tools.random_weights import check_disk
from llmc.runtimes.bench.tools.synthetic import LlamaGeometry, write_checkpoint

TINY = LlamaGeometry(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=50)

GRANDCHILD = """
import subprocess, sys, time
child = "import time; kept = b'x' * (200 << 20); time.sleep(0.4)"
subprocess.run([sys.executable, "-c", child])
"""
# Its memory is sampled from outside, so it must be there for a while, on a busy machine too.
COPY_COMPILER = """
import pathlib, sys, time
time.sleep(0.5)
source, flag, output = sys.argv[1:4]
assert flag == "-o" and sys.argv[4:] == ["--target", "cpu", "--precision", "int4", "--verify", "off"]
pathlib.Path(output).mkdir()
pathlib.Path(output, "model.onnx").write_bytes(pathlib.Path(source, "config.json").read_bytes())
"""


def read_shard(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    body = data[8 + length :]
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], ml_dtypes.bfloat16).reshape(entry["shape"])
        for name, entry in header.items()
    }


def test_checkpoint_is_what_its_index_and_config_say(tmp_path):
    write_checkpoint(tmp_path, TINY, shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert {shard.name for shard in shards} == set(index["weight_map"].values())
    tensors = {name: value for shard in shards for name, value in read_shard(shard).items()}
    assert {name: value.shape for name, value in tensors.items()} == TINY.shapes()
    assert sum(value.nbytes for value in tensors.values()) == index["metadata"]["total_size"] == TINY.checkpoint_bytes
    up = tensors["model.layers.1.mlp.up_proj.weight"].astype(np.float32)
    assert up.std() == pytest.approx(64**-0.5, rel=0.05)
    assert abs(up.mean()) < 0.01
    assert (tensors["model.norm.weight"] == 1).all()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["rope_parameters"]["rope_theta"] == 500000.0


def test_safetensors_reads_the_shards(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    write_checkpoint(tmp_path, TINY)
    with safetensors.safe_open(tmp_path / "model-00001-of-00001.safetensors", framework="np") as file:
        assert set(file.keys()) == set(TINY.shapes())
        assert file.get_slice("lm_head.weight").get_shape() == [50, 64]


def test_checkpoint_is_reused_and_repeatable(tmp_path):
    write_checkpoint(tmp_path / "a", TINY)
    shard = tmp_path / "a" / "model-00001-of-00001.safetensors"
    first, changed = shard.read_bytes(), shard.stat().st_mtime_ns
    write_checkpoint(tmp_path / "a", TINY)
    assert shard.stat().st_mtime_ns == changed
    write_checkpoint(tmp_path / "b", TINY)
    assert (tmp_path / "b" / shard.name).read_bytes() == first


def test_a_directory_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(ArtifactError, match="not empty"):
        write_checkpoint(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_8b_geometry():
    billions = LlamaGeometry(layers=32).checkpoint_bytes / 2 / 1e9
    assert billions == pytest.approx(8.03, abs=0.01)
    with pytest.raises(UsageError):
        LlamaGeometry(layers=0)


def test_peak_counts_descendants():
    usage = run_measured(["sh", "-c", '"$0" -c "$1"; true', sys.executable, GRANDCHILD])
    assert usage.returncode == 0
    assert usage.wall_s > 0.4
    assert 200 << 20 < usage.peak_rss_bytes < 350 << 20
    assert usage.peak_anonymous_bytes > 200 << 20


def test_peak_does_not_start_from_this_process():
    kept = np.ones(300 << 20, np.uint8)
    usage = run_measured([sys.executable, "-c", "import time; time.sleep(0.1)"])
    assert kept.all()
    assert 1 << 20 < usage.peak_rss_bytes < 150 << 20


def test_a_command_that_hangs_or_does_not_exist():
    with pytest.raises(EngineError, match="ran longer than"):
        run_measured([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)
    with pytest.raises(EngineError, match="cannot start"):
        run_measured(["/no/such/program"])


def test_measure_compile_cleans_up(tmp_path):
    measured = measure_compile(TINY, tmp_path, command=(sys.executable, "-c", COPY_COMPILER))
    assert measured.layers == 2
    assert measured.artifact_bytes == len(json.dumps(TINY.config(), indent=2)) + 1
    assert measured.peak_rss_bytes > 1 << 20
    assert measured.wall_s > 0
    assert list(tmp_path.iterdir()) == []
    measure_compile(TINY, tmp_path, command=(sys.executable, "-c", COPY_COMPILER), keep=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failing_compile_is_told_with_its_output(tmp_path):
    with pytest.raises(EngineError, match=r"(?s)status 7.*no such pass"):
        measure_compile(TINY, tmp_path, command=(sys.executable, "-c", "print('no such pass'); raise SystemExit(7)"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_writing(tmp_path):
    with pytest.raises(ArtifactError, match="GB are needed"):
        check_disk(tmp_path, 1 << 60)


def test_report(bandwidth, monkeypatch, tmp_path):
    def fake_measure(geometry, workspace, *, options, keep):
        assert options == memory.COMPILE_OPTIONS
        return CompileMemory(geometry.layers, 10, 5, 1000 + geometry.layers, 900, 1.0)

    monkeypatch.setattr(memory, "measure_compile", fake_measure)
    assert memory.main(["--layers", "10,20", "--workspace", str(tmp_path), "--json", str(tmp_path / "r.json")]) == 0
    loaded = json.loads((tmp_path / "r.json").read_text())
    assert loaded["peak_ratios"] == [1.0, 1020 / 1010]
    with pytest.raises(SystemExit):
        memory.main(["--layers", "ten"])
    compiles = (CompileMemory(8, 1, 1, 4, 3, 1.0),)
    assert render_memory(MemoryReport(memory.machine_fingerprint(), ("--x",), compiles)).row_count == 1
