"""The lm-evaluation-harness's model, with a stand-in for the harness and an engine of a tiny model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import MissingDependencyError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model
from llmc.runtimes.evaluation import harness
from llmc.runtimes.evaluation.harness import generation_settings
from llmc.runtimes.evaluation.perplexity import log_softmax

from ...compiler.tiny_text_model import text_model
from ...shared import Shared


class TemplateLM:
    """What the harness's class does for a model, as far as ours relies on it."""

    def __init__(self) -> None:
        self.partial: list[Any] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *entry: self.partial.append(entry))

    @property
    def tokenizer_name(self) -> str:
        raise NotImplementedError


def rolling_windows(tokens: list[int], prefix: int, length: int, context: int) -> Any:
    assert context == 1
    for begin in range(0, len(tokens), length):
        yield [*([prefix] if not begin else tokens[begin - 1 : begin])], tokens[begin : begin + length]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The harness, as far as it is used; what was registered, and whether its command ran."""
    registered: dict[str, Any] = {}
    modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model")}
    modules |= {name: ModuleType(name) for name in ("lm_eval.api.registry", "lm_eval.utils", "lm_eval.__main__")}
    modules["lm_eval.models"] = ModuleType("lm_eval.models")
    modules["lm_eval.api.model"].TemplateLM = TemplateLM  # type: ignore[attr-defined]
    modules["lm_eval"].utils = modules["lm_eval.utils"]  # type: ignore[attr-defined]
    utils: Any = modules["lm_eval.utils"]
    utils.get_rolling_token_windows, utils.make_disjoint_window = rolling_windows, lambda pair: pair
    registry: Any = modules["lm_eval.api.registry"]
    registry.register_model = lambda name: lambda model: registered.__setitem__(name, model)
    command: Any = modules["lm_eval.__main__"]
    command.cli_evaluate = lambda: registered.__setitem__("ran", True)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    harness.model_class.cache_clear()
    yield registered
    harness.model_class.cache_clear()


@pytest.fixture(scope="module")
def engine(shared: Shared) -> Path:
    options = CompileOptions(ExportOptions(verify="off"), OptimizeOptions())
    return shared.make("tiny-harness", lambda path: compile_model(str(text_model(shared)), path, options))


@pytest.fixture
def model(installed: dict[str, Any], engine: Path) -> Any:
    harness.register()
    return installed["llmc"](path=str(engine), max_length=16, device="cuda", batch_size="auto")


def losses(shared: Shared, tokens: list[int]) -> Any:
    """Logarithms of the probabilities of all tokens but the first, in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(text_model(shared))(torch.tensor([tokens])).logits[0].numpy()
    return log_softmax(logits[:-1])[np.arange(len(tokens) - 1), tokens[1:]]


def test_continuations_are_scored_as_the_model_scores_them(shared: Shared, model: Any) -> None:
    context, continuation = model.tok_encode("w5 w6 w7"), model.tok_encode("w8 w9")
    ((total, greedy),) = model._loglikelihood_tokens([(("a", "b"), context, continuation)])
    assert total == pytest.approx(losses(shared, context + continuation)[-2:].sum(), rel=1e-4)
    assert isinstance(greedy, bool)
    assert model.partial == [("loglikelihood", ("a", "b"), (total, greedy))]


def test_a_long_text_is_scored_in_windows(shared: Shared, model: Any) -> None:
    """Every token once: the first after the token that begins a text, later windows after a token of the text."""
    tokens = model.tok_encode(" ".join(f"w{number}" for number in range(5, 25)))
    (total,) = model.loglikelihood_rolling([SimpleNamespace(args=(" ".join(f"w{n}" for n in range(5, 25)),))])
    first = losses(shared, [model.prefix_token_id, *tokens[:15]]).sum()
    second = losses(shared, [tokens[14], *tokens[15:]]).sum()
    assert total == pytest.approx(first + second, rel=1e-4)


def test_texts_end_where_the_task_says(model: Any) -> None:
    (whole,) = model.generate_until([SimpleNamespace(args=("w5 w6 w7", {"until": [], "max_gen_toks": 6}))])
    words = whole.split()
    stop = next(word for word in words[1:] if word != words[0])
    (cut,) = model.generate_until([SimpleNamespace(args=("w5 w6 w7", {"until": [stop], "max_gen_toks": 6}))])
    assert whole.startswith(cut)
    assert stop not in cut.split()


def test_what_the_harness_asks_of_a_model(model: Any, engine: Path) -> None:
    assert (model.max_length, model.tokenizer_name) == (16, str(engine))
    assert model.prefix_token_id == model.eot_token_id == 2
    assert model.apply_chat_template([{"role": "user", "content": "w5"}]) == "user w5 assistant"


@pytest.mark.parametrize(
    ("wanted", "stop", "count", "temperature"),
    [
        ({}, [], 256, 0.0),
        ({"until": "\n\n", "max_gen_toks": 9}, ["\n\n"], 9, 0.0),
        ({"until": ["a", ""], "max_new_tokens": 3, "temperature": 0.0}, ["a"], 3, 0.0),
        ({"until": ["a"], "do_sample": True, "temperature": 0.7}, ["a"], 256, 0.7),
        ({"do_sample": False, "temperature": 0.7}, [], 256, 0.0),
    ],
)
def test_settings_of_a_task(wanted: dict[str, Any], stop: list[str], count: int, temperature: float) -> None:
    found = generation_settings(wanted)
    assert (found[0], found[1], found[2].temperature) == (stop, count, temperature)


def test_the_harness_runs_with_our_model(installed: dict[str, Any]) -> None:
    harness.main()
    assert installed["ran"]
    assert installed["llmc"] is harness.model_class()


def test_without_the_harness_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    harness.model_class.cache_clear()
    with pytest.raises(MissingDependencyError, match="pip install lm_eval"):
        harness.register()
    with pytest.raises(SystemExit) as ended:
        harness.main()
    assert ended.value.code == MissingDependencyError.exit_code
    assert "lm_eval is not installed" in capsys.readouterr().err
