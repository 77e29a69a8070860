import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.workers import peer_genai
from llmc.runtimes.bench.workers.peer_genai import (
    GenaiTarget,
    graph_facts,
    guess_facts,
    prompt_array,
    read_geometry,
    read_graph,
)
from llmc.runtimes.bench.workers.protocol import RunRequest
from llmc.runtimes.bench.workers.remote import WorkerProcess, peer_command

VOCAB, HIDDEN = 40, 16
CONFIG = {
    "model": {
        "context_length": 64,
        "decoder": {
            "session_options": {"provider_options": [{"cuda": {"enable_cuda_graph": "1"}}]},
            "filename": "model.onnx",
            "head_size": 8,
            "hidden_size": HIDDEN,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
        },
        "pad_token_id": 39,
        "vocab_size": VOCAB,
    }
}


def save_graph(path, *, tied=False, bits=None, pruned=True):
    """What the builder makes of a model without layers but one attention."""
    half = np.float16
    weights = [numpy_helper.from_array(np.zeros((VOCAB, HIDDEN), half), "model.embed_tokens.weight")]
    nodes = [helper.make_node("Gather", ["model.embed_tokens.weight", "input_ids"], ["x"])]
    if tied:
        weights = []
        nodes = [
            helper.make_node("Transpose", ["lm_head.MatMul.weight"], ["table"]),
            helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        ]
    attention = ["x", "", "", "past_key_values.0.key", "past_key_values.0.value", "s", "t", "cos_cache", "sin_cache"]
    nodes.append(helper.make_node("GroupQueryAttention", attention, ["y"], domain="com.microsoft"))
    weights += [numpy_helper.from_array(np.zeros((64, 4), half), name) for name in ("cos_cache", "sin_cache")]
    if bits:
        head = ["y", "lm_head.MatMul.weight_Q4", "lm_head.MatMul.weight_scales"]
        nodes.append(helper.make_node("MatMulNBits", head, ["logits"], domain="com.microsoft", bits=bits))
        weights.append(numpy_helper.from_array(np.zeros((VOCAB, 1, HIDDEN * bits // 8), np.uint8), head[1]))
        weights.append(numpy_helper.from_array(np.zeros((VOCAB, 1), half), head[2]))
    else:
        nodes.append(helper.make_node("MatMul", ["y", "lm_head.MatMul.weight"], ["logits"], "/lm_head/prune/MatMul"))
        weights.append(numpy_helper.from_array(np.zeros((HIDDEN, VOCAB), half), "lm_head.MatMul.weight"))
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"]),
        helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT16, ["b", 1, "p", 8]),
    ]
    shape = ["b", 1 if pruned else "s", VOCAB]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT16, shape)]
    onnx.save_model(helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, weights)), path)


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "genai_config.json").write_text(json.dumps(CONFIG))
    save_graph(tmp_path / "model.onnx")
    return tmp_path


HEAD_BYTES = VOCAB * HIDDEN * 2


@pytest.mark.parametrize(
    ("options", "weight_bytes", "precision", "logits"),
    [
        ({}, HEAD_BYTES, "fp16", "last"),
        ({"pruned": False}, HEAD_BYTES, "fp16", "all"),
        ({"tied": True}, HEAD_BYTES, "fp16", "last"),
        ({"bits": 4}, VOCAB * (HIDDEN // 2 + 2), "int4", "last"),
        ({"bits": 8}, VOCAB * (HIDDEN + 2), "int8", "last"),
    ],
)
def test_graph_facts(tmp_path, options, weight_bytes, precision, logits):
    save_graph(tmp_path / "model.onnx", **options)
    facts = graph_facts(onnx.load(tmp_path / "model.onnx").graph)
    assert facts.weight_bytes == weight_bytes
    assert (facts.precision, facts.logits, facts.cache_item_bytes) == (precision, logits, 2)


def test_external_data_need_not_be_there(tmp_path, directory):
    model = onnx.load(directory / "model.onnx")
    inside = graph_facts(model.graph)
    onnx.save_model(model, tmp_path / "out.onnx", save_as_external_data=True, location="d", size_threshold=0)
    (tmp_path / "d").unlink()
    assert read_graph(tmp_path / "out.onnx", read_geometry(directory), "cuda") == inside


def test_without_onnx_the_size_is_asked(directory, monkeypatch):
    geometry = read_geometry(directory)
    (directory / "model.onnx.data").write_bytes(bytes(10_000))
    monkeypatch.setitem(sys.modules, "onnx", None)
    facts = read_graph(directory / "model.onnx", geometry, "cuda")
    assert facts.weight_bytes == 10_000 - HEAD_BYTES
    assert "size" in facts.source
    assert (facts.precision, facts.logits, facts.cache_item_bytes) == ("fp16", "last", 2)
    save_graph(directory / "model.onnx", tied=True, bits=4)
    facts = guess_facts(directory / "model.onnx", geometry, 4)
    assert facts.weight_bytes == 10_000
    assert (facts.precision, facts.logits, facts.cache_item_bytes) == ("int4 or int8", "all", 4)


def graph(nodes, weights):
    """A graph of nodes (operator, inputs, attributes) over float16 and other weights (name, shape, type)."""
    made = [helper.make_node(name, inputs, [f"y{place}"], **more) for place, (name, inputs, more) in enumerate(nodes)]
    initializers = [numpy_helper.from_array(np.zeros(shape, dtype), name) for name, shape, dtype in weights]
    return helper.make_graph(made, "g", [], [], initializers)


LOOK_UP = ("Gather", ["table", "input_ids"], {})


def test_a_table_counts_where_the_head_reads_it_too():
    table = ("table", (40, 16), np.float16)
    tied = graph([LOOK_UP, ("MatMul", ["x", "table"], {})], [table])
    assert graph_facts(tied).weight_bytes == 40 * 16 * 2
    assert graph_facts(graph([LOOK_UP], [table])).weight_bytes == 0
    other = graph([("Gather", ["table", "positions"], {})], [table])
    assert graph_facts(other).weight_bytes == 40 * 16 * 2
    quantized = ("GatherBlockQuantized", ["table", "input_ids", "scales", "zeros"], {})
    blocks = [("table", (40, 8), np.uint8), ("scales", (40, 1), np.float16), ("zeros", (40, 1), np.uint8)]
    assert graph_facts(graph([quantized], [*blocks, ("norm", (16,), np.float16)])).weight_bytes == 32


def test_the_precision_is_that_of_the_fewest_bits_else_of_the_most_bytes():
    products = [("MatMulNBits", ["x", "w"], {"bits": bits}) for bits in (8, 4)]
    assert graph_facts(graph(products, [("w", (4,), np.uint8)])).precision == "int4"
    many = [(f"norm{place}", (4,), np.float32) for place in range(5)]
    assert graph_facts(graph([LOOK_UP], [*many, ("w", (64, 64), np.float16)])).precision == "fp16"
    assert graph_facts(graph([LOOK_UP], [*many, ("w", (2, 2), np.float16)])).precision == "fp32"


def test_geometry(directory):
    geometry = read_geometry(directory)
    assert (geometry.vocab, geometry.hidden, geometry.layers) == (VOCAB, HIDDEN, 3)
    assert (geometry.kv_heads, geometry.head_size, geometry.context) == (1, 8, 64)
    assert geometry.provider_options == {"cuda": {"enable_cuda_graph": "1"}}


@pytest.mark.parametrize("text", ["", "[]", '{"model": {"decoder": {}}}'])
def test_other_directories_are_refused(tmp_path, text):
    with pytest.raises(RuntimeError, match="not a directory that GenAI can open"):
        read_geometry(tmp_path)
    (tmp_path / "genai_config.json").write_text(text)
    with pytest.raises(RuntimeError, match="not a directory that GenAI can open"):
        read_geometry(tmp_path)


def test_prompts_are_the_protocols_but_for_padding(directory):
    request = RunRequest(prompt=200, gen=2, batch=3)
    prompt = prompt_array(request, read_geometry(directory))
    wanted = np.array(request.prompt_tokens(VOCAB))
    assert prompt.shape == (3, 200)
    assert prompt.dtype == np.int32
    assert prompt.flags.c_contiguous
    assert (wanted == 39).any()
    assert (prompt == np.where(wanted == 39, 0, wanted)).all()


class Native(ModuleType):
    """The part of onnxruntime_genai that the peer calls; it records the calls."""

    __version__ = "0.18.0"

    def __init__(self):
        super().__init__("onnxruntime_genai")
        self.calls, self.now = [], 100.0

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: Recorder(self, name, arguments, options)


SECONDS = {"append_tokens": 10.0, "generate_next_token": 1.0, "get_next_tokens": 2.0}


class Recorder:
    """An object of the library; its calls take :data:`SECONDS`, others a thousand."""

    device_type = "CUDA"

    def __init__(self, library, name, arguments, options):
        self.library = library
        library.now += SECONDS.get(name, 1000.0)
        library.calls.append((name, *(a for a in arguments if not isinstance(a, Recorder)), *options.items()))

    def __getattr__(self, name):
        return lambda *arguments, **options: Recorder(self.library, name, arguments, options)


@pytest.fixture
def native(monkeypatch):
    module = Native()
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", module)
    return module


def test_open_on_cuda_keeps_the_configured_options(native, directory):
    info = GenaiTarget().open(str(directory), 8)
    assert native.calls == [
        ("disable_telemetry_events",),
        ("Config", str(directory)),
        ("clear_providers",),
        ("append_provider", "cuda"),
        ("set_provider_option", "cuda", "enable_cuda_graph", "1"),
        ("Model",),
    ]
    assert info["runtime"] == "onnxruntime-genai-cuda"
    assert info["cache_bytes_per_token"] == 2 * 3 * 1 * 8 * 2
    assert info["weight_bytes"] == HEAD_BYTES
    assert (info["threads"], info["max_context"], info["logits"]) == (0, 64, "last")
    assert info["details"]["cuda_graph"] is True
    json.dumps(info)


def test_open_on_the_cpu_sets_threads(native, directory):
    info = GenaiTarget("cpu").open(str(directory), 3)
    (overlay,) = [call for call in native.calls if call[0] == "overlay"]
    assert json.loads(overlay[1])["model"]["decoder"]["session_options"] == {"intra_op_num_threads": 3}
    assert info["threads"] == 3
    assert info["details"]["cuda_graph"] is False
    assert not [call for call in native.calls if call[0] == "append_provider"]


def test_a_run_warms_rewinds_and_reads_every_token(native, directory):
    target = GenaiTarget()
    target.open(str(directory), None)
    native.calls.clear()
    times = target.run(RunRequest(prompt=5, gen=3, batch=2, warm_steps=1))
    assert len(times.step_s) == 2
    assert times.first_token_s > 0
    parameters, options, generator, *rest = native.calls
    assert (parameters[0], generator[0]) == ("GeneratorParams", "Generator")
    wanted = {
        "batch_size": 2,
        "max_length": 8,
        "min_length": 8,
        "do_sample": False,
        "past_present_share_buffer": True,
    }
    assert wanted.items() <= dict(options[1:]).items()
    token = ["generate_next_token", "get_next_tokens"]
    assert [call[0] for call in rest] == ["append_tokens", *token * 2, "rewind_to", "append_tokens", *token * 3]
    short, whole = (call[1] for call in rest if call[0] == "append_tokens")
    assert short.shape == (2, 2)
    assert whole.shape == (2, 5)
    assert ("rewind_to", 0) in rest


def test_a_token_is_there_when_it_is_on_the_host(native, directory, monkeypatch):
    clock = SimpleNamespace(perf_counter=lambda: native.now, time=lambda: native.now + 7)
    monkeypatch.setattr(peer_genai, "time", clock)
    target = GenaiTarget()
    target.open(str(directory), None)
    times = target.run(RunRequest(prompt=5, gen=4, batch=2, warm_steps=2))
    assert times.first_token_s == 10 + 1 + 2
    assert times.step_s == (3, 3, 3)
    assert times.decode_window == (native.now + 7 - 9, native.now + 7)


def test_without_a_cuda_graph_every_kernel_is_launched(native, directory):
    info = GenaiTarget("cuda", "launches").open(str(directory), None)
    assert ("set_provider_option", "cuda", "enable_cuda_graph", "0") in native.calls
    assert info["details"]["cuda_graph"] is False


def test_a_case_that_just_fills_the_context(native, directory):
    target = GenaiTarget()
    target.open(str(directory), None)
    assert len(target.run(RunRequest(prompt=60, gen=4, batch=1)).step_s) == 3


def test_a_run_without_warm_steps_starts_at_once(native, directory):
    target = GenaiTarget()
    target.open(str(directory), None)
    native.calls.clear()
    target.run(RunRequest(prompt=1, gen=2, batch=1, warm_steps=0))
    names = [call[0] for call in native.calls]
    assert names.count("append_tokens") == 1
    assert "rewind_to" not in names


def test_warm_steps_stay_within_the_length(native, directory):
    target = GenaiTarget()
    target.open(str(directory), None)
    native.calls.clear()
    target.run(RunRequest(prompt=1, gen=2, batch=1, warm_steps=50))
    names = [call[0] for call in native.calls]
    assert names[: names.index("rewind_to")].count("generate_next_token") == 2


def test_what_cannot_run_is_named(native, directory, tmp_path):
    target = GenaiTarget("cpu")
    with pytest.raises(RuntimeError, match="run before open"):
        target.run(RunRequest(prompt=1, gen=2, batch=1))
    target.open(str(directory), None)
    with pytest.raises(RuntimeError, match="beyond the context 64"):
        target.run(RunRequest(prompt=60, gen=5, batch=1))
    with pytest.raises(ValueError, match="unknown provider 'rocm'"):
        GenaiTarget("rocm")
    (directory / "model.onnx").unlink()
    with pytest.raises(RuntimeError, match=r"model\.onnx does not exist"):
        target.prepare(str(directory), str(tmp_path))
    target.close()
    with pytest.raises(RuntimeError, match="run before open"):
        target.run(RunRequest(prompt=1, gen=2, batch=1))


def test_prepare_names_the_precision_and_what_fits_the_provider(native, directory, tmp_path):
    prepared = GenaiTarget().prepare(str(directory), str(tmp_path))
    assert (prepared.path, prepared.details) == (
        str(directory),
        {"ftype": "fp16", "variants": ["graph", "launches"]},
    )
    config = json.loads(json.dumps(CONFIG))
    config["model"]["decoder"]["session_options"]["provider_options"] = []
    (directory / "genai_config.json").write_text(json.dumps(config))
    assert GenaiTarget().prepare(str(directory), str(tmp_path)).details["variants"] == ["cpu"]


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_genai") is not None, reason="onnxruntime_genai is installed here"
)
def test_an_interpreter_without_the_peer_is_named():
    command = peer_command(Path(sys.executable), peer_genai.__name__)
    with WorkerProcess("genai", command) as worker, pytest.raises(EngineError) as caught:
        worker.request("prepare", source="x", cache="y")
    assert "No module named 'onnxruntime_genai'" in str(caught.value)


class Generator:
    """GenAI's, whose logits are those of its last token alone: its number in the place of its position."""

    def __init__(self, library, parameters):
        self.given = []
        library.generators.append(self)

    def append_tokens(self, ids):
        assert ids.flags.c_contiguous
        self.given.append(ids.tolist()[0])

    def get_logits(self):
        text = [token for piece in self.given for token in piece]
        values = np.zeros((1, 1, VOCAB), np.float16)
        values[0, 0, len(text) - 1] = text[-1]
        return values


def test_logits_of_the_scored_positions(native, directory, monkeypatch, tmp_path):
    native.generators = []
    monkeypatch.setattr(native, "Generator", lambda model, parameters: Generator(native, parameters), raising=False)
    target = GenaiTarget("cpu")
    with pytest.raises(RuntimeError, match="logits before open"):
        target.logits([1, 2], 0, "none")
    target.open(str(directory), 1)
    for _ in range(2):
        target.logits([7, 30, 2, 9, 11, 1], 2, str(tmp_path / "logits"))
        found = np.fromfile(tmp_path / "logits", np.float32).reshape(-1, VOCAB)
        assert [(row.argmax(), row.max()) for row in found] == [(2, 2.0), (3, 9.0), (4, 11.0)]
    first, second = native.generators
    assert first.given == second.given == [[7, 30, 2], [9], [11]], "each text has a cache of its own"
    options = dict(next(call for call in native.calls if call[0] == "set_search_options")[1:])
    assert (options["batch_size"], options["max_length"]) == (1, 6)
    with pytest.raises(RuntimeError, match="65 tokens are beyond the context 64"):
        target.logits([1] * 65, 2, "none")
    with pytest.raises(RuntimeError, match="token 39, which GenAI takes for padding"):
        target.logits([1, 39, 2, 3], 2, "none")
