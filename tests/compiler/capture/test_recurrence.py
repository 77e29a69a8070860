from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from llmc.compiler.base.errors import CaptureError, UnsupportedModelError
from llmc.compiler.capture.cache_layout import PROBE_SEQ, discover_cache
from llmc.compiler.capture.fake_model import FakeModel
from llmc.compiler.capture.recurrence import RecurrenceCapture, Step, _axis_of_tokens
from llmc.compiler.graph.operators import recurrence

from .small_models import SMALL, TOLERANCE, Array, Captured, Result, Toy, capture_small, random_model

ROWS = (9, 2, 5)
"""Tokens of each row's prompt."""


def state_space_config() -> Any:
    from transformers import Mamba2Config

    sizes = {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4, "conv_kernel": 4}
    return Mamba2Config(vocab_size=64, hidden_size=16, num_hidden_layers=2, expand=2, **sizes)


def convolution_config() -> Any:
    from transformers import Lfm2Config

    settings = {**SMALL, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3}
    return Lfm2Config(**settings, block_auto_adjust_ff_dim=False)


@pytest.fixture(scope="module")
def state_space(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return capture_small(random_model(state_space_config()), tmp_path_factory.mktemp("state_space"))


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return capture_small(random_model(convolution_config()), tmp_path_factory.mktemp("convolution"))


@pytest.fixture(params=["state_space", "convolution"])
def captured(request: pytest.FixtureRequest) -> Captured:
    found: Captured = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk", [0, 3], ids=["whole", "in chunks"])
def test_the_graph_says_what_the_model_says(captured: Captured, side: str, chunk: int) -> None:
    """Rows of unequal length, then three tokens through the cache."""
    assert captured.error(ROWS, side=side, chunk=chunk) < TOLERANCE


def test_one_token_is_a_prompt(captured: Captured) -> None:
    assert captured.error((1,), steps=4) < TOLERANCE


def test_each_layer_is_one_node(state_space: Captured, convolution: Captured) -> None:
    assert state_space.operators() == ["Recurrence", "Recurrence"]
    assert convolution.operators() == ["Recurrence", "CachedAttention", "Recurrence"]
    assert state_space.trace.arithmetic is None
    assert convolution.trace.arithmetic is None


def calls(captured: Captured) -> list[ir.Node]:
    return [node for node in captured.trace.model.graph if recurrence.is_recurrence(node)]


def bodies(model: ir.Model) -> list[str]:
    return [overload for _, name, overload in model.functions if name == recurrence.NAME]


def test_equal_layers_share_a_function(captured: Captured) -> None:
    overloads = {node.overload for node in calls(captured)}
    assert len(calls(captured)) == 2
    assert bodies(captured.trace.model) == list(overloads)
    assert len(overloads) == 1


def test_each_call_has_its_own_weights(captured: Captured) -> None:
    one, two = (
        {value.name for value in node.inputs if value is not None and value.is_initializer()}
        for node in calls(captured)
    )
    assert one
    assert len(one) == len(two)
    assert not one & two


def states(captured: Captured) -> dict[str, Array]:
    return {name: value for name, value in captured.graph._cache.items() if name.endswith("_state")}


def test_a_row_of_padding_leaves_its_state_as_it_was(captured: Captured) -> None:
    graph, rng = captured.graph, np.random.default_rng(1)
    graph.reset(2)
    graph.forward(rng.integers(3, 64, (2, 4)), np.ones((2, 4), np.int64))
    before = states(captured)
    assert all(np.abs(value).max() > 0 for value in before.values())
    graph.forward(rng.integers(3, 64, (2, 3)), np.array([[0, 0, 0], [1, 1, 1]]))
    assert before
    for name, after in states(captured).items():
        np.testing.assert_array_equal(after[0], before[name][0])
        assert not np.array_equal(after[1], before[name][1])


def test_padding_after_a_row_leaves_the_state_of_its_last_token(captured: Captured) -> None:
    graph, ids = captured.graph, np.random.default_rng(2).integers(3, 64, (1, 4))
    graph.reset(1)
    graph.forward(ids, np.ones((1, 4), np.int64))
    expected = states(captured)
    graph.reset(1)
    graph.forward(np.pad(ids, ((0, 0), (0, 2)), constant_values=7), np.array([[1, 1, 1, 1, 0, 0]]))
    for name, value in states(captured).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6)


class Mixer(nn.Module):  # type: ignore[misc]
    """The smallest layer with a state: the sum of its inputs, and what is made of each."""

    def __init__(self, layer: int = 0, **settings: Any) -> None:
        super().__init__()
        self.layer_idx = layer
        self.function: Callable[[torch.Tensor], Any] = torch.tanh
        self.part: nn.Module = nn.Tanh()
        self.limits = (0.0, 1.0)
        for name, value in settings.items():
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)

    def forward(
        self, x: torch.Tensor, cache: Any, other: torch.Tensor | None = None, factor: float | None = None
    ) -> Any:
        past = cache.get_recurrent_state(self.layer_idx) if cache.has_previous_state(self.layer_idx) else 0.0
        cache.update_recurrent_state(past + x.sum(1), layer_idx=self.layer_idx)
        x = x if factor is None else x * factor
        x = x if other is None else x + other
        return self.part(self.function(x.clamp(*self.limits)))


Way = Callable[[Any, torch.Tensor, Any], Any]
"""How a model calls one of its mixers: with a sequence and its cache."""


def plainly(mixer: Any, x: torch.Tensor, cache: Any) -> Any:
    return mixer(x, cache)


def recurrences(*mixers: Mixer, ways: tuple[Way, ...] = ()) -> RecurrenceCapture:
    def body(model: Any, x: torch.Tensor, cache: Any) -> Result:
        for mixer, way in zip(mixers, ways or [plainly] * len(mixers), strict=True):
            way(mixer, x, cache)
        return Result(cache)

    model = Toy(body, mixers=nn.ModuleList(mixers))
    model.config.num_hidden_layers = len(mixers)
    model.config.layer_types = ["linear_attention"] * len(mixers)
    fake = FakeModel(model, FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), {}, {}, {})
    return RecurrenceCapture(fake, discover_cache(fake.model, fake.mode))


@pytest.fixture
def bodies_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bodies that would be exported; telling kinds of layers apart needs none of them."""
    made: list[str] = []

    def export(capture: RecurrenceCapture, module: Any, path: str, overload: str) -> Step:
        made.append(overload)
        return Step(overload, ())

    monkeypatch.setattr(RecurrenceCapture, "_export", export)
    return made


def kinds(made: list[str], *settings: dict[str, Any], ways: tuple[Way, ...] = ()) -> list[str]:
    """Which of the bodies the layers with these settings take."""
    found = recurrences(*(Mixer(layer, **given) for layer, given in enumerate(settings)), ways=ways)
    found.prepare()
    assert made == [f"Mixer_{number}" for number in range(len(made))]
    return [step.overload.removeprefix("Mixer_") for step in found._steps.values()]


@pytest.mark.parametrize(
    "setting",
    [
        {"function": torch.sigmoid},
        {"part": nn.Sigmoid()},
        {"limits": (0.0, 2.0)},
        {"scale": 2.0},
        {"factor": torch.ones(4)},
        {"sizes": [1, 2]},
        {"name": "silu"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_layers_that_differ_have_functions_of_their_own(bodies_made: list[str], setting: dict[str, Any]) -> None:
    assert kinds(bodies_made, {}, setting, {}, setting) == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    ("setting", "one", "other"),
    [
        ("factor", torch.full((4,), 2.0), torch.full((4,), 3.0)),
        ("factor", torch.zeros(4), torch.zeros(2, 2)),
        ("weight", nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))),
        ("weight", nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3).half())),
        ("sizes", [1, 2], [1, 3]),
        ("name", "silu", "gelu"),
    ],
    ids=["a buffer's content", "its shape", "a weight's shape", "its type", "a list", "a name"],
)
def test_layers_share_a_function_where_it_is_equal(
    bodies_made: list[str], setting: str, one: Any, other: Any
) -> None:
    settings = [{setting: value} for value in (one, copy.copy(one), other)]
    assert kinds(bodies_made, *settings) == ["0", "0", "1"]


def test_the_content_of_weights_is_no_kind(bodies_made: list[str]) -> None:
    settings = [{"weight": nn.Parameter(torch.full((3,), value))} for value in (1.0, 2.0)]
    assert kinds(bodies_made, *settings) == ["0", "0"]


WAYS: dict[str, Way] = {
    "with a second sequence": lambda mixer, x, cache: mixer(x, cache, x),
    "of another width": lambda mixer, x, cache: mixer(x[..., :2], cache),
    "with a constant": lambda mixer, x, cache: mixer(x, cache, factor=2.0),
    "with another constant": lambda mixer, x, cache: mixer(x, cache, factor=3.0),
}


def test_layers_that_are_called_in_another_way_have_functions_of_their_own(bodies_made: list[str]) -> None:
    ways = (plainly, *WAYS.values())
    assert kinds(bodies_made, *[{}] * 10, ways=ways * 2) == ["0", "1", "2", "3", "4"] * 2


def test_a_layer_that_is_not_called_a_second_time_is_refused(bodies_made: list[str]) -> None:
    """The first probe saw it, so that it has states; how it is called the second one sees."""
    calls = iter(range(9))
    ways = (plainly, lambda mixer, x, cache: mixer(x, cache) if next(calls) == 0 else x)
    with pytest.raises(UnsupportedModelError, match=r"mixers\.1 keeps a state but is never called with a sequence"):
        recurrences(Mixer(0), Mixer(1), ways=ways).prepare()


@pytest.mark.parametrize("width", [*range(1, 11), 12, 16, 24, 32, 48, 64, 128, 256])
def test_no_usual_width_is_taken_for_the_axis_of_tokens(width: int) -> None:
    assert _axis_of_tokens(torch.zeros(2, width, PROBE_SEQ)) == 2
    assert _axis_of_tokens(torch.zeros(2, PROBE_SEQ, width)) == 1
    assert _axis_of_tokens(torch.zeros(2, width, width)) is None


def test_what_has_no_width_beside_its_tokens_is_no_sequence() -> None:
    """A mask of padding, positions; and the batch is never the axis, however large it is."""
    assert _axis_of_tokens(torch.zeros(2, PROBE_SEQ)) is None
    assert _axis_of_tokens(torch.zeros(PROBE_SEQ, 4, 4)) is None


def test_what_a_call_gives_to_its_node(bodies_made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences, states, the mask, weights; a sequence that all rows share has as many rows as the others."""
    seen: list[Any] = []

    def record(name: str, inputs: Any, attributes: Any, *, dtypes: Any, shapes: Any, **options: Any) -> Any:
        seen.extend(inputs)
        return [torch.full(shape, float(number)) for number, shape in enumerate(shapes)]

    mixer = Mixer(weight=nn.Parameter(torch.zeros(3)))
    found = recurrences(mixer, ways=(lambda mixer, x, cache: mixer(x, cache, x[:1]),))
    found.prepare()
    found._steps["mixers.0"] = Step("Mixer_0", ("weight",))
    cache = SimpleNamespace(past={"0.recurrent_state": torch.ones(3, 4)}, present={})
    mask = torch.ones(3, 5, dtype=torch.bool)
    x, other = torch.randn(3, 5, 4), torch.randn(1, 5, 4)
    monkeypatch.setattr(torch.onnx.ops, "symbolic_multi_out", record)
    with found.captured(lambda: cache, lambda: mask):
        y = mixer(x, cache, other)
    first, second, state, valid, weight = seen
    assert torch.equal(first, x)
    assert torch.equal(second, other.expand(3, -1, -1))
    assert state is cache.past["0.recurrent_state"]
    assert valid is mask
    assert weight is mixer.weight
    assert torch.equal(y, torch.zeros(3, 5, 4))
    assert torch.equal(cache.present["0.recurrent_state"], torch.ones(3, 4))


def test_the_modules_are_as_before() -> None:
    mixers = [Mixer(0), Mixer(1)]
    found = recurrences(*mixers)
    found.prepare()
    assert list(found.layout.mixers) == ["mixers.0", "mixers.1"]
    assert not any("forward" in vars(mixer) for mixer in mixers)


def test_a_module_that_returns_no_sequence_is_refused() -> None:
    """Its result would be that of the last token alone."""
    mixer = Mixer(function=lambda x: x[:, -1])
    with pytest.raises(UnsupportedModelError, match="Mixer keeps a state and returns no sequence"):
        recurrences(mixer).prepare()
    assert "forward" not in vars(mixer)


def test_a_step_that_torch_cannot_export_says_which_module() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == 1:
            raise ValueError("one token is too few")
        return x

    with pytest.raises(CaptureError, match="one step of Mixer: one token is too few"):
        recurrences(Mixer(function=function)).prepare()
