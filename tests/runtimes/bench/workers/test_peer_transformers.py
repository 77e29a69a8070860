import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.workers import peer_transformers
from llmc.runtimes.bench.workers.peer_transformers import TransformersTarget, random_model, weight_bytes
from llmc.runtimes.bench.workers.protocol import RunRequest
from llmc.runtimes.bench.workers.remote import WorkerProcess, peer_command
from llmc.runtimes.bench.workers.ticks import make_ticks

LLAMA = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint")
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(path)
    return path


@pytest.fixture
def geometry(checkpoint, tmp_path):
    shutil.copy(checkpoint / "config.json", tmp_path)
    return tmp_path


@pytest.fixture
def static(monkeypatch):
    """The variant with a static cache, its step not compiled: compiling takes a minute on a CPU."""
    monkeypatch.setattr(TransformersTarget, "_compiled", lambda self: self._model)
    return TransformersTarget("compile", "float32")


def decoded(target, request, monkeypatch):
    """The logits of every step of a run, those of the warm-up left out: [prefill + steps][batch, vocab]."""
    kept = []
    plain = TransformersTarget._last_logits

    def keep(self, function, tokens, cache):
        kept.append(plain(self, function, tokens, cache))
        return kept[-1]

    monkeypatch.setattr(TransformersTarget, "_last_logits", keep)
    target.run(request)
    monkeypatch.setattr(TransformersTarget, "_last_logits", plain)
    return [each.float().numpy() for each in kept[-request.gen :]]


def test_a_worker_under_another_interpreter(checkpoint):
    command = peer_command(Path(sys.executable), "llmc.runtimes.bench.workers.peer_transformers", "eager", "float32")
    with WorkerProcess("transformers", command) as worker:
        assert worker.request("prepare", source=str(checkpoint), cache="x")["details"] == {"ftype": "fp32"}
        info = worker.request("open", path=str(checkpoint), threads=1)["info"]
        before = time.time()
        answer = worker.request("run", prompt=5, gen=4, batch=2, seed=0, warm_steps=1)
        after = time.time()
        with pytest.raises(EngineError, match=r"needs 75 tokens, the model has 64"):
            worker.request("run", prompt=60, gen=16, batch=1, seed=0, warm_steps=0)
        memory = worker.request("memory")
    assert (info["runtime"], info["precision"], info["cache"], info["threads"]) == ("transformers", "fp32", "grow", 1)
    assert info["cache_bytes_per_token"] == 2 * 2 * 2 * 8 * 4
    assert info["details"]["weights"] == "checkpoint"
    assert info["details"]["attention"] == "sdpa"
    assert len(answer["step_s"]) == 3
    begin, end = answer["decode_window"]
    assert before < begin < end < after
    assert sum(answer["step_s"]) <= end - begin + 1e-3
    assert answer["first_token_s"] > 0
    assert info["details"]["device"].startswith("cuda") or "device_bytes" not in memory


def test_steps_say_what_one_forward_over_all_tokens_says(checkpoint, monkeypatch):
    import numpy as np
    import torch

    target = TransformersTarget("eager", "float32")
    info = target.open(str(checkpoint), 1)
    if info["details"]["device"] != "cpu":
        pytest.skip("compares numbers on the CPU")
    request = RunRequest(prompt=5, gen=4, batch=2, seed=3)
    found = decoded(target, request, monkeypatch)
    steps = np.array(request.step_tokens(info["vocab_size"])).T
    tokens = torch.tensor(np.concatenate([request.prompt_tokens(info["vocab_size"]), steps], axis=1))
    with torch.no_grad():
        expected = target._model(tokens).logits[:, 4:].numpy()
    np.testing.assert_allclose(np.stack(found, axis=1), expected, rtol=1e-4, atol=1e-4)


def test_a_static_cache_says_the_same_every_time(checkpoint, static, monkeypatch):
    import numpy as np

    eager = TransformersTarget("eager", "float32")
    eager.open(str(checkpoint), 1)
    assert static.open(str(checkpoint), 1)["details"]["cache"] == "StaticCache"
    requests = [RunRequest(5, 4, 2, seed=1), RunRequest(7, 3, 1), RunRequest(5, 4, 2, seed=2), RunRequest(1, 2, 1)]
    for request in requests:
        found, expected = (decoded(target, request, monkeypatch) for target in (static, eager))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert len(static._static) == 3, "one cache a shape"


def test_a_loop_is_greedy_search(checkpoint, static, monkeypatch):
    import torch

    static._variant = "loop"
    static.open(str(checkpoint), 1)
    request = RunRequest(prompt=5, gen=6, batch=2, seed=4)
    tokens = torch.tensor(request.prompt_tokens(static._info["vocab_size"]), device=static._model.device)
    found = [logits.argmax(-1) for logits in decoded(static, request, monkeypatch)]
    expected = static._model.generate(tokens, max_new_tokens=6, min_new_tokens=6, do_sample=False)[:, 5:]
    assert [row.tolist() for row in found] == expected.T.tolist()


def recorded(target, monkeypatch):
    """What the target's ``generate`` returns from now on, and the length of its cache: [(tokens, length)]."""
    calls = []
    generate = target._model.generate

    def record(*arguments, **options):
        found = generate(*arguments, **options, return_dict_in_generate=True)
        calls.append((found.sequences, found.past_key_values.get_max_length()))

    monkeypatch.setattr(target._model, "generate", record)
    return calls


def test_generate_makes_the_tokens_of_greedy_search_and_does_not_stop(checkpoint, tmp_path, monkeypatch):
    import torch

    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    settings = {"eos_token_id": list(range(96)), "pad_token_id": 1, "repetition_penalty": 1.7, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    target = TransformersTarget("generate", "float32")
    info = target.open(str(tmp_path), 1)
    if info["details"]["device"] != "cpu":
        pytest.skip("compares tokens on the CPU")
    assert (info["cache"], info["details"]["cache"]) == ("shared", "StaticCache")
    calls = recorded(target, monkeypatch)
    request = RunRequest(prompt=5, gen=9, batch=3, seed=1)
    times = target.run(request)
    tokens = torch.tensor(request.prompt_tokens(96))
    with torch.no_grad():
        for _ in range(9):
            tokens = torch.cat([tokens, target._model(tokens).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(calls[-1][0], tokens)
    assert len(times.step_s) == 8
    assert min(times.first_token_s, *times.step_s) > 0
    begin, end = times.decode_window
    assert end - begin == pytest.approx(sum(times.step_s), abs=1e-5)


def test_generate_is_warmed_in_a_cache_of_the_cases_length(checkpoint, monkeypatch):
    target = TransformersTarget("generate", "float32")
    target.open(str(checkpoint), 1)
    calls = recorded(target, monkeypatch)
    for prompt, gen, batch in ((9, 12, 2), (9, 12, 2), (4, 3, 1), (9, 12, 2)):
        target.run(RunRequest(prompt, gen, batch, warm_steps=2))
    shapes = [(*tokens.shape, length) for tokens, length in calls]
    assert shapes == [
        *[(2, 21, 20)] * 2,
        *[(2, 14, 20), (2, 21, 20)],  # a few steps, in a cache of the same length
        *[(1, 7, 6)] * 2,
        *[(2, 21, 20)] * 2,
    ]


@pytest.mark.parametrize("window", [None, 8])
def test_generate_compiles_each_shape_by_itself_and_not_while_it_is_timed(tmp_path, monkeypatch, window):
    """Compiled on the CPU by force; a sliding window fills up in the first case."""
    import torch
    from transformers import CompileConfig, MistralConfig

    MistralConfig(**LLAMA, sliding_window=window).save_pretrained(tmp_path)
    compiled, timed = [], []

    def backend(graph, inputs):
        values = [node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder")]
        shapes = [value.shape for value in values if isinstance(value, torch.Tensor)]
        compiled.append({tuple(shape) if all(type(size) is int for size in shape) else "dynamic" for shape in shapes})
        return graph.forward

    plain = TransformersTarget._timed_generate

    def watch(self, *arguments):
        before = len(compiled)
        times = plain(self, *arguments)
        timed.append(len(compiled) - before)
        return times

    monkeypatch.setattr(TransformersTarget, "_timed_generate", watch)
    target = TransformersTarget("generate", "float32")
    target.open(str(tmp_path), 1)
    config = CompileConfig(backend=backend, mode=None)
    config._compile_all_devices = True
    target._model.generation_config.compile_config = config
    counts = []
    for prompt, gen, batch in ((5, 12, 2), (5, 12, 2), (3, 9, 3)):
        target.run(RunRequest(prompt, gen, batch))
        counts.append(len(compiled))
    assert timed == [0, 0, 0]
    assert counts[0] == counts[1] < counts[2]
    assert not any("dynamic" in shapes for shapes in compiled)
    lengths = (16, 11) if window is None else (window, window)
    assert (2, 2, lengths[0], 8) in compiled[0]
    assert (3, 2, lengths[1], 8) in compiled[-1]


def test_what_generate_leaves_out_is_named(checkpoint, monkeypatch):
    target = TransformersTarget("generate", "float32")
    target.open(str(checkpoint), 1)
    plain = target._model.generate
    fewer = {"min_new_tokens": 2, "max_new_tokens": 2}
    monkeypatch.setattr(target._model, "generate", lambda *inputs, **options: plain(*inputs, **options | fewer))
    with pytest.raises(RuntimeError, match="made 2 tokens where 4 were asked for"):
        target.run(RunRequest(prompt=3, gen=4, batch=1))


def test_without_weights_they_are_random(geometry):
    import torch

    target = TransformersTarget("eager")
    assert target.prepare(str(geometry), "x").details == {"ftype": "fp16"}
    info = target.open(str(geometry), None)
    assert info["precision"] == "fp16"
    assert info["details"]["weights"].startswith("random")
    assert len(target.run(RunRequest(prompt=3, gen=3, batch=1)).step_s) == 2
    model = random_model(str(geometry), torch.float32, torch.device("cpu"))
    assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert bool((model.model.norm.weight == 1).all())
    assert bool(torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all())
    target.close()
    with pytest.raises(RuntimeError, match="before open"):
        target.run(RunRequest(3, 3, 1))


@pytest.mark.parametrize("tied", [False, True])
def test_weight_bytes(tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=tied))
    layer = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    assert weight_bytes(model, model.config) == 4 * (2 * layer + 32 + 96 * 32)


def test_a_mixture_of_experts_does_not_know_what_it_reads():
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=2))
    assert weight_bytes(model, model.config) == 0


def test_the_checkpoints_own_type(tmp_path):
    def chosen(config, dtype="auto"):
        (tmp_path / "config.json").write_text(config)
        return TransformersTarget("eager", dtype).prepare(str(tmp_path), "x").details["ftype"]

    assert chosen('{"dtype": "bfloat16"}') == "bf16"
    assert chosen('{"torch_dtype": "bfloat16"}') == "bf16"
    assert chosen('{"text_config": {"dtype": "bfloat16"}}') == "bf16"
    assert chosen('{"dtype": "float32"}') == "fp16"
    assert chosen('{"dtype": "bfloat16"}', "float16") == "fp16"


def test_what_is_no_variant_or_no_directory(tmp_path):
    with pytest.raises(ValueError, match="'fast'"):
        TransformersTarget("fast")
    with pytest.raises(ValueError, match="'int4'"):
        TransformersTarget("eager", "int4")
    with pytest.raises(FileNotFoundError):
        TransformersTarget().prepare(str(tmp_path), "x")


def test_gaps_of_cuda_events(monkeypatch):
    """Events are recorded in order and read after the last one has come."""
    import torch

    class Event:
        log = []  # noqa: RUF012

        def __init__(self, enable_timing):
            assert enable_timing
            self.at = None

        def record(self):
            self.at = len(Event.log)
            Event.log.append("record")

        def synchronize(self):
            Event.log.append(f"wait for {self.at}")

        def elapsed_time(self, other):
            return 2.5 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    ticks = make_ticks(torch.device("cuda"))
    for _ in range(3):
        ticks.tick()
    assert ticks.gaps() == (0.0025, 0.0025)
    assert Event.log[-1] == "wait for 2"


@pytest.mark.slow
def test_a_compiled_step_is_compiled_before_it_is_timed(checkpoint):
    target = TransformersTarget("compile", "float32")
    target.open(str(checkpoint), 2)
    request = RunRequest(prompt=6, gen=5, batch=2, warm_steps=0)
    assert max(target.run(request).step_s) < 0.5
    assert max(target.run(request).step_s) < 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("variant", peer_transformers.VARIANTS)
def test_on_a_gpu(checkpoint, variant):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    target = TransformersTarget(variant)
    info = target.open(str(checkpoint), None)
    assert info["details"]["device"] == "cuda:0"
    first = target.run(RunRequest(prompt=8, gen=9, batch=2))
    assert max(first.step_s) < 0.5
    assert sum(first.step_s) <= first.decode_window[1] - first.decode_window[0] + 1e-3
    assert target.device_bytes() > 0


@pytest.mark.parametrize("keeps_last", [True, False])
def test_logits_of_the_scored_positions(checkpoint, tmp_path, keeps_last):
    import numpy as np
    import torch

    target = TransformersTarget("eager", "float32")
    text = [7, 30, 2, 9, 11, 1]
    with pytest.raises(RuntimeError, match="logits before open"):
        target.logits(text, 2, "none")
    target.open(str(checkpoint), 1)
    target._keeps_last = keeps_last
    target.logits(text, 2, str(tmp_path / "logits"))
    found = np.fromfile(tmp_path / "logits", np.float32).reshape(-1, LLAMA["vocab_size"])
    with torch.no_grad():
        wanted = target._model(torch.tensor([text], device=target._model.device)).logits[0, 2:5].cpu().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert found.shape == (3, LLAMA["vocab_size"])
