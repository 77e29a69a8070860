import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.bench.results import Subject
from llmc.runtimes.bench.workers import peer_genai, peers
from llmc.runtimes.bench.workers.gguf_header import read_gguf
from llmc.runtimes.bench.workers.peer_llamacpp import LlamaCppTarget
from llmc.runtimes.bench.workers.peer_transformers import VARIANTS
from llmc.runtimes.bench.workers.peers import PeerChoice, distinct_labels, peer_subjects
from llmc.runtimes.bench.workers.protocol import RunRequest
from llmc.runtimes.bench.workers.remote import WorkerProcess, peer_command

GGUF = pytest.importorskip("gguf", reason="the gguf package comes with the extra [gguf]")


def write_gguf(path, *, tied):
    writer = GGUF.GGUFWriter(str(path), "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float16))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((64, 32), np.float32))
    if not tied:
        writer.add_tensor("output.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("tied", "output"), [(True, "F16 (tied to the token embedding)"), (False, "F32")])
def test_gguf_header(tmp_path, tied, output):
    write_gguf(tmp_path / "model.gguf", tied=tied)
    found = read_gguf(tmp_path / "model.gguf").describe()
    assert found["output_tensor_type"] == output
    assert found["token_embedding_type"] == "F16"
    assert found["ftype"] == "F32"
    assert found["elements_by_type"]["F16"] == 128


def test_what_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"nonsense" * 10)
    with pytest.raises(ValueError, match="not a GGUF file"):
        read_gguf(tmp_path / "model.gguf")


class Native:
    """The part of llama_cpp.llama_cpp that the peer calls; it records decodes."""

    def __init__(self):
        self.decoded, self.cleared, self.contexts, self.refuse = [], 0, [], False
        self.llama_log_callback = lambda function: function

    def __getattr__(self, name):
        if not name.startswith("llama_"):
            raise AttributeError(name)
        return lambda *arguments: None

    def llama_batch_init(self, tokens, _embedding, _sequences):
        empty = [0] * tokens
        return SimpleNamespace(
            n_tokens=0,
            token=[*empty],
            pos=[*empty],
            n_seq_id=[*empty],
            seq_id=[[0] for _ in empty],
            logits=[*empty],
        )

    def llama_decode(self, _context, batch):
        count = batch.n_tokens
        sequences = [each[0] for each in batch.seq_id[:count]]
        self.decoded.append((batch.pos[:count], sequences, [bool(each) for each in batch.logits[:count]]))
        return 1 if self.refuse else 0

    def llama_memory_clear(self, _memory, _data):
        self.cleared += 1
        self.decoded.append("clear")

    def llama_vocab_n_tokens(self, _vocab):
        return 50

    def llama_context_default_params(self):
        return SimpleNamespace(n_batch=2048, n_threads=4, flash_attn_type=-1)

    def llama_init_from_model(self, _model, parameters):
        self.contexts.append(parameters)
        return object()


@pytest.fixture
def llama(monkeypatch):
    native = Native()
    package = ModuleType("llama_cpp")
    monkeypatch.setitem(sys.modules, "llama_cpp", package)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_cpp", native)
    target = LlamaCppTarget("off")
    target._model, target._threads = object(), 2
    return target, native


def test_llamacpp_decodes_what_llama_bench_would(llama):
    target, native = llama
    times = target.run(RunRequest(prompt=3, gen=3, batch=2, warm_steps=1))
    assert len(times.step_s) == 2
    clear, warm, clear_again, prefill, first, second = native.decoded
    assert clear == clear_again == "clear"
    assert len(warm[0]) == 2
    assert prefill == ([0, 1, 2] * 2, [0, 0, 0, 1, 1, 1], [False, False, True] * 2)
    assert first == ([3, 3], [0, 1], [True, True])
    assert second[0] == [4, 4]
    (context,) = native.contexts
    assert context.flash_attn_type == 0
    assert (context.n_ctx, context.n_seq_max, context.n_threads, context.n_threads_batch) == (2 * 5, 2, 2, 2)


def test_llamacpp_keeps_its_context_while_the_shape_stays(llama):
    target, native = llama
    for gen in (3, 3, 4):
        target.run(RunRequest(prompt=3, gen=gen, batch=1))
    assert len(native.contexts) == 2


def test_llamacpp_failure_is_named(llama):
    target, native = llama
    native.refuse = True
    with pytest.raises(RuntimeError, match="status 1"):
        target.run(RunRequest(prompt=3, gen=3, batch=1))


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is not None, reason="llama_cpp is installed here")
def test_an_interpreter_without_the_peer_is_named():
    command = peer_command(Path(sys.executable), peers.PEERS["llamacpp-python"].module)
    with WorkerProcess("llamacpp-python", command) as worker, pytest.raises(EngineError) as caught:
        worker.request("prepare", source="x", cache="y")
    assert "No module named 'llama_cpp'" in str(caught.value)


@pytest.fixture
def prepared(monkeypatch):
    """Peers prepare whatever they are asked to, in no process; the commands that would have been started."""
    started = []

    class Worker(WorkerProcess):
        def __init__(self, label, command):
            started.append(command)

        def __exit__(self, *error):
            return None

        def request(self, command, **fields):
            genai = {"variants": ["graph", "launches"]}
            return {"path": fields["source"], "details": genai if "genai" in started[-1][-1] else {"ftype": "Q4_0"}}

    monkeypatch.setattr(peers, "WorkerProcess", Worker)
    return started


def test_each_variant_is_a_subject(prepared, tmp_path):
    on, off = peer_subjects(PeerChoice("llamacpp-python", Path(sys.executable), tmp_path), tmp_path)
    assert on.label == "llamacpp-python Q4_0, flash attention"
    assert on.path == tmp_path
    assert (on.command[-1], off.command[-1]) == ("on", "off")
    assert on.command[:-1] == off.command[:-1] == prepared[0], "nothing is to be made"


def test_a_type_that_is_to_be_made_is_told_to_the_worker_that_makes_it(prepared, tmp_path):
    choice = PeerChoice("llamacpp-python", Path(sys.executable), tmp_path, quantize="Q5_0")
    subjects = peer_subjects(choice, tmp_path)
    assert prepared[0][-2:] == ("auto", "Q5_0")
    assert [subject.command[-1] for subject in subjects] == ["on", "off"]


def test_a_virtual_environment_s_python_is_started_as_it_is_named(prepared, tmp_path):
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    subjects = peer_subjects(PeerChoice("llamacpp-python", link, tmp_path), tmp_path)
    assert {command[0] for command in (*prepared, *(subject.command for subject in subjects))} == {str(link)}


def test_one_variant_or_the_only_one(prepared, tmp_path):
    (chosen,) = peer_subjects(PeerChoice("transformers", Path(sys.executable), tmp_path, "compile"), tmp_path)
    assert chosen.label == "transformers Q4_0, compile"
    assert chosen.command[-2:] == ("llmc.runtimes.bench.workers.peer_transformers", "compile")
    graph, launches = peer_subjects(PeerChoice("genai", Path(sys.executable), tmp_path), tmp_path)
    assert (graph.label, launches.label) == ("genai, graph", "genai, launches")
    assert graph.command[-1] == "cuda"
    assert launches.command[-2:] == ("cuda", "launches")
    (cpu,) = peer_subjects(PeerChoice("genai", Path(sys.executable), tmp_path, "cpu"), tmp_path)
    assert (cpu.label, cpu.command[-1]) == ("genai, cpu", "cpu")


def test_the_peers_variants_are_those_of_its_worker():
    variants = peers.PEERS["transformers"].variants
    assert dict(variants) == {name: (name,) for name in VARIANTS}
    assert list(peers.PEERS["genai"].variants) == [name for names in peer_genai.VARIANTS.values() for name in names]


def test_subjects_of_the_same_label_are_told_apart():
    subjects = [
        Subject("genai", Path("m/int4"), ()),
        Subject("genai", Path("m/fp16"), ()),
        Subject("a", Path("b"), ()),
    ]
    assert [subject.label for subject in distinct_labels(subjects)] == ["genai, int4", "genai, fp16", "a"]


def test_what_the_option_says():
    choice = PeerChoice.parse("transformers=/venv/bin/python:dir/model")
    assert choice == PeerChoice("transformers", Path("/venv/bin/python"), Path("dir/model"))
    assert PeerChoice.parse("transformers/compile=python:m").variant == "compile"
    choice = PeerChoice.parse("llamacpp-python/no flash attention=python:m.gguf")
    assert (choice.variant, choice.quantize) == ("no flash attention", None)


@pytest.mark.parametrize(
    ("source", "file", "quantize"),
    [
        ("a/m.gguf@Q4_0", "a/m.gguf", "Q4_0"),
        ("a@b/m.gguf", "a@b/m.gguf", None),
        ("m@2.gguf", "m@2.gguf", None),
        ("m@2.gguf@IQ4_XS", "m@2.gguf", "IQ4_XS"),
    ],
)
def test_a_type_behind_the_file(source, file, quantize):
    choice = PeerChoice.parse(f"llamacpp-python=python:{source}")
    assert (choice.source, choice.quantize) == (Path(file), quantize)


def test_peers_that_make_no_files_take_the_name_as_it_is():
    assert PeerChoice.parse("transformers=python:model@Q4_0").source == Path("model@Q4_0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("transformers=python", r"add what transformers opens \(a directory with config.json.*python:SOURCE"),
        ("transformers", "is not NAME=PYTHON:SOURCE"),
        ("=python:x", "is not NAME=PYTHON:SOURCE"),
        ("nobody=python:x", "unknown peer 'nobody'; known: llamacpp-python, transformers, genai"),
        ("llamacpp-python=python:m.gguf@Q4", "Q4 is no type of GGUF files"),
        ("transformers/fast=python:x", "no variant 'fast'; it has: eager, compile, loop, generate"),
    ],
)
def test_options_that_say_something_else(text, message):
    with pytest.raises(UsageError, match=message):
        PeerChoice.parse(text)


def test_paths_are_checked_before_anything_starts(prepared, tmp_path):
    with pytest.raises(UsageError, match=r"missing\.gguf does not exist"):
        peer_subjects(PeerChoice("llamacpp-python", Path(sys.executable), tmp_path / "missing.gguf"), tmp_path)
    with pytest.raises(UsageError, match="no/python does not exist"):
        peer_subjects(PeerChoice("genai", Path("no/python"), tmp_path), tmp_path)
    assert not prepared
