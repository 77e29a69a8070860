"""Geometry read from configurations: of transformers, and of anything that looks like one."""

from __future__ import annotations

import dataclasses
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.errors import ArtifactError, UnsupportedModelError
from llmc.compiler.base.geometry import ModelGeometry
from llmc.compiler.base.json_record import decode, encode

SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}


def read(**values: Any) -> ModelGeometry:
    return ModelGeometry.from_config(SimpleNamespace(**{"model_type": "toy", **SMALL, **values}))


def test_what_a_configuration_leaves_out_follows_transformers_rules() -> None:
    geometry = read()
    assert geometry == ModelGeometry(
        model_type="toy",
        num_layers=2,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        value_head_dim=16,
        vocab_size=100,
        intermediate_size=256,
        max_position_embeddings=None,
        sliding_windows=(None, None),
        tie_word_embeddings=False,
    )


def test_smollm2() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    geometry = ModelGeometry.from_config(config)
    assert (geometry.num_heads, geometry.num_kv_heads, geometry.head_dim) == (9, 3, 64)
    assert geometry.sliding_windows == (None,) * 30
    assert geometry.tie_word_embeddings


def test_gemma3_keeps_its_windows_and_its_head_size() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma3TextConfig(
        num_hidden_layers=6, hidden_size=640, num_attention_heads=4, num_key_value_heads=1, head_dim=256
    )
    geometry = ModelGeometry.from_config(config)
    window = config.sliding_window
    assert geometry.sliding_windows == (window, window, window, window, window, None)
    assert geometry.head_dim == 256


def test_a_multimodal_configuration_gives_its_text_model() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma3Config(text_config={"num_hidden_layers": 2, "hidden_size": 128})
    assert ModelGeometry.from_config(config).hidden_size == 128


def test_names_of_older_configurations() -> None:
    transformers = pytest.importorskip("transformers")
    geometry = ModelGeometry.from_config(transformers.GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=128))
    assert (geometry.num_layers, geometry.num_heads, geometry.hidden_size) == (3, 4, 64)
    assert (geometry.intermediate_size, geometry.max_position_embeddings) == (256, 128)
    opt = ModelGeometry.from_config(transformers.OPTConfig(ffn_dim=512))
    assert opt.intermediate_size == 512


def test_latent_attention_has_narrower_values() -> None:
    geometry = read(head_dim=8, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12)
    assert (geometry.head_dim, geometry.value_head_dim) == (24, 12)


def test_sizes_of_a_cache_whose_factors_all_differ() -> None:
    """5 layers, 3 key heads of 24 and value heads of 10."""
    sizes = {"num_hidden_layers": 5, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 24}
    geometry = read(**sizes, v_head_dim=10)
    assert (geometry.num_layers, geometry.num_heads, geometry.num_kv_heads) == (5, 6, 3)
    assert (geometry.head_dim, geometry.value_head_dim) == (24, 10)


# Names of configurations that have no translation to transformers' own, and what each stands for.
NAMES = {
    "num_layers": ["num_hidden_layers", "n_layer", "n_layers", "num_layers"],
    "hidden_size": ["hidden_size", "n_embd", "d_model"],
    "num_heads": ["num_attention_heads", "n_head", "n_heads", "num_heads"],
    "num_kv_heads": ["num_key_value_heads", "num_kv_heads", "n_head_kv"],
    "intermediate_size": [
        *("intermediate_size", "ffn_dim", "n_inner", "d_ff", "decoder_ffn_dim", "ffn_hidden_size"),
    ],
    "max_position_embeddings": [
        *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length"),
    ],
}


@pytest.mark.parametrize("field", list(NAMES))
def test_every_name_of_a_size_and_the_order_of_them(field: str) -> None:
    others = {key: value for key, value in SMALL.items() if key not in NAMES[field]}
    for place, name in enumerate(NAMES[field]):
        # A later name with another number, which does not count.
        later = dict.fromkeys(NAMES[field][place + 1 :], 16)
        config = SimpleNamespace(model_type="toy", **others, **{name: 8}, **later)
        if field == "num_kv_heads":
            config.num_attention_heads = 16
        assert getattr(ModelGeometry.from_config(config), field) == 8, name


def test_no_limit_of_positions() -> None:
    """XLNet says so by -1."""
    for unlimited in (-1, 0, None):
        assert read(max_position_embeddings=unlimited).max_position_embeddings is None
    assert read(max_position_embeddings=1).max_position_embeddings == 1
    assert read(n_positions=77).max_position_embeddings == 77


@pytest.mark.parametrize(
    ("whole", "text", "tied"),
    [(True, False, True), (False, True, False), (None, True, True), (None, None, False), (True, None, True)],
)
def test_the_whole_model_says_whether_embeddings_are_tied(whole: Any, text: Any, tied: bool) -> None:
    """Its text model says so where the whole one does not; what is asked for is the decoder's."""
    asked: list[dict[str, Any]] = []
    inner = SimpleNamespace(model_type="toy_text", **SMALL, tie_word_embeddings=text)

    def get_text_config(**options: Any) -> Any:
        asked.append(options)
        return inner

    outer = SimpleNamespace(model_type="toy", get_text_config=get_text_config, tie_word_embeddings=whole)
    geometry = ModelGeometry.from_config(outer)
    assert (geometry.tie_word_embeddings, geometry.model_type) == (tied, "toy_text")
    assert asked == [{"decoder": True}]


def test_settings_per_layer() -> None:
    """A configuration that refuses to give one number where its layers differ."""

    class PerLayer(SimpleNamespace):
        per_layer_config = (SimpleNamespace(num_key_value_heads=2), SimpleNamespace(num_key_value_heads=4))

        def __getattr__(self, name: str) -> Any:
            if name == "num_key_value_heads":
                raise RuntimeError("layers differ")
            raise AttributeError(name)

    geometry = ModelGeometry.from_config(PerLayer(model_type="toy", **SMALL))
    assert geometry.num_kv_heads == 4


def test_a_truth_value_is_no_number() -> None:
    assert read(num_key_value_heads=True).num_kv_heads == 4
    assert read(sliding_window=True).sliding_windows == (None, None)


@pytest.mark.parametrize("name", ["head_dim", "d_kv", "kv_channels"])
def test_names_of_a_head_s_width(name: str) -> None:
    assert read(**{name: 24}).head_dim == 24


def test_widths_of_latent_attention_are_used_only_together() -> None:
    assert read(head_dim=8, qk_rope_head_dim=4).head_dim == 8
    assert read(head_dim=8, qk_nope_head_dim=16).head_dim == 8
    assert read(head_dim=8, qk_nope_head_dim=0, qk_rope_head_dim=4).head_dim == 4


@pytest.mark.parametrize(
    ("values", "windows"),
    [
        ({"sliding_window": 32}, (32, 32)),
        ({"sliding_window": None}, (None, None)),
        ({"sliding_window": 0}, (None, None)),
        ({"sliding_window": 32, "use_sliding_window": False}, (None, None)),
        ({"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}, (32, None)),
        ({"sliding_window": 32, "layer_types": ["chunked_attention", "full_attention"]}, (None, None)),
    ],
)
def test_sliding_windows(values: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert read(**values).sliding_windows == windows


def test_multi_query() -> None:
    assert read(multi_query=True, num_kv_heads=4).num_kv_heads == 1
    assert read(multi_query=True, num_kv_heads=2, new_decoder_architecture=True).num_kv_heads == 2


def test_heads_that_differ_by_layer_need_not_divide_each_other() -> None:
    """The most of each, which are of different layers."""
    geometry = read(num_attention_heads=[4, 6], num_key_value_heads=[4, 2])
    assert (geometry.num_heads, geometry.num_kv_heads) == (6, 4)


def test_lists_over_layers() -> None:
    assert read(num_key_value_heads=[2, 2]).num_kv_heads == 2
    assert read(intermediate_size=[128, 256]).intermediate_size == 256
    assert read(num_key_value_heads=[2, 4]).num_kv_heads == 4


def test_no_attention() -> None:
    made = read(num_attention_heads=None)
    assert (made.num_heads, made.num_kv_heads, made.head_dim, made.value_head_dim) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": None}, "states no hidden size"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"layer_types": ["full_attention"]}, "1 layer types for 2 layers"),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read(**values)


@pytest.mark.parametrize(
    "name", ["num_layers", "hidden_size", "vocab_size", "intermediate_size", "num_kv_heads", "head_dim"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_each_size_is_positive(geometry: ModelGeometry, name: str, value: int) -> None:
    with pytest.raises(UnsupportedModelError, match=f"llama: {name} is {value}, not positive"):
        dataclasses.replace(geometry, **{name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_head_dim": 0}, "value_head_dim is 0, not positive"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0, not positive"),
        ({"sliding_windows": (None, 0, None)}, "sliding window is 0, not positive"),
        ({"sliding_windows": (512, None, -4)}, "sliding window is -4, not positive"),
        ({"sliding_windows": (None, 512)}, "2 layer types for 3 layers"),
    ],
)
def test_what_no_decoder_can_have(geometry: ModelGeometry, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        dataclasses.replace(geometry, **change)


def test_without_attention_heads_have_no_width(geometry: ModelGeometry) -> None:
    dataclasses.replace(geometry, num_heads=0, num_kv_heads=0, head_dim=0, value_head_dim=0)


def test_round_trip(geometry: ModelGeometry) -> None:
    assert decode(ModelGeometry, encode(geometry), "geometry") == geometry
    with pytest.raises(ArtifactError, match="unknown key 'rope'"):
        decode(ModelGeometry, {**encode(geometry), "rope": 1}, "geometry")
    with pytest.raises(dataclasses.FrozenInstanceError):
        geometry.num_layers = 4  # type: ignore[misc]


def test_every_default_configuration_gives_a_geometry_or_a_reason() -> None:
    pytest.importorskip("transformers")
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    understood = 0
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                config = CONFIG_MAPPING[model_type]()
        except StrictDataclassError:  # a few cannot be made without arguments
            continue
        try:
            geometry = ModelGeometry.from_config(config)
        except UnsupportedModelError:
            continue
        assert decode(ModelGeometry, encode(geometry), "geometry") == geometry
        understood += 1
    assert understood > 0.85 * len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
