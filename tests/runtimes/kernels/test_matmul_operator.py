"""llmc.cpu::MatMulNBits and GatedMatMulNBits: norm, residual, bias, activation and shapes around the product.

An identity as weight shows what is multiplied; a weight of nothing leaves the bias, which then is what is activated.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from .operators import exact_rows, identity, nothing, product, random_weight

pytestmark = pytest.mark.usefixtures("variant")


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def rms_norm(x, gamma, epsilon):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gamma


def assert_rounded(y, expected, block_size=32):
    """``y`` is ``expected`` to half an int8 step of its block, and to float32 where that has its largest value."""
    assert y.shape == expected.shape
    for start in range(0, y.shape[-1], block_size):
        mine, theirs = (side[..., start : start + block_size] for side in (y, expected))
        largest = np.abs(theirs).max(-1, keepdims=True)
        assert (np.abs(mine - theirs) <= largest * (0.5001 / 127)).all()
        top = np.abs(theirs) == largest
        np.testing.assert_allclose(mine[top], theirs[top], rtol=2e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 15, 16, 20])
@pytest.mark.parametrize("k", [32, 100, 17])
@pytest.mark.parametrize("outputs", [1, 2])
def test_norm_of_the_sum_and_the_sum(outputs, k, rows, threads):
    a, skip, gamma = normal(rows, k), normal(rows, k, seed=1) * 3, normal(k, seed=2)
    node = product(identity(k), given=["gamma", "skip"], outputs=outputs, threads=threads, epsilon=1e-5)
    feeds, shapes = {"a": a, "skip": skip, "gamma": gamma}, {"y": (rows, k), "sum": (rows, k)}
    made = node(feeds, shapes)
    if outputs == 2:
        np.testing.assert_array_equal(made["sum"], a + skip)
    assert_rounded(made["y"], rms_norm(a + skip, gamma, 1e-5))


@pytest.mark.parametrize("size", [1e-4, 3e-3, 1.0, 1e4])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6, 0.25])
@pytest.mark.parametrize("given", [["gamma"], ["gamma", "skip"]])
def test_epsilon_is_added_to_the_mean_of_the_squares(given, epsilon, size):
    """Of rows so small that it counts, as of large ones."""
    a, skip, gamma = normal(3, 96) * np.float32(size), normal(3, 96, seed=1) * np.float32(size), normal(96, seed=2)
    feeds = {"a": a, "gamma": gamma, "skip": skip}
    y = product(identity(96), given=given, epsilon=epsilon)(feeds, {"y": (3, 96)})["y"]
    assert_rounded(y, rms_norm(a + skip if "skip" in given else a, gamma, epsilon))


def test_without_the_attribute_there_is_no_epsilon():
    a, gamma = normal(2, 32) * np.float32(1e-5), np.ones(32, np.float32)
    y = product(identity(32), given=["gamma"])({"a": a, "gamma": gamma}, {"y": (2, 32)})["y"]
    assert_rounded(y, rms_norm(a, gamma, 0))


def test_a_row_of_zeros_has_a_norm_of_zeros():
    a, gamma = np.zeros((2, 32), np.float32), np.ones(32, np.float32)
    y = product(identity(32), given=["gamma"], epsilon=1e-6)({"a": a, "gamma": gamma}, {"y": (2, 32)})["y"]
    assert not y.any()


@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_residual_without_a_norm_is_added(outputs, rows):
    a, skip = normal(rows, 70), normal(rows, 70, seed=1)
    node = product(identity(70), given=["skip"], outputs=outputs)
    made = node({"a": a, "skip": skip}, {"y": (rows, 70), "sum": (rows, 70)})
    assert_rounded(made["y"], (a + skip).astype(np.float64))
    if outputs == 2:
        np.testing.assert_array_equal(made["sum"], a + skip)


@pytest.mark.parametrize("kind", ["plain", "zeros", "offsets"])
@pytest.mark.parametrize("given", [[], ["bias"], ["skip"], ["bias", "skip"]])
def test_optional_inputs_beside_each_kind_of_weight(given, kind):
    generator = np.random.default_rng(3)
    weight = random_weight(generator, 19, 70, 4, 32, kind)
    a, skip = exact_rows(generator, 6, 70, 32), np.zeros((6, 70), np.float32)
    bias = normal(19) * 100
    y = product(weight, given=given)({"a": a, "skip": skip, "bias": bias}, {"y": (6, 19)})["y"]
    expected = a.astype(np.float64) @ weight.values().T + (bias if "bias" in given else 0)
    size = np.abs(a.astype(np.float64)) @ np.abs(weight.values()).T + 100
    assert (np.abs(y - expected) <= size * 2.0**-21).all()


@pytest.mark.parametrize("n", [1, 16, 35])
def test_bias_by_column(n):
    bias = np.arange(1, n + 1, dtype=np.float32)
    y = product(nothing(n), given=["bias"])({"a": normal(3, 32), "bias": bias}, {"y": (3, n)})["y"]
    np.testing.assert_array_equal(y, np.broadcast_to(bias, (3, n)))


@pytest.mark.parametrize(
    "leading", [(), (5,), (2, 3), (3, 1), (2, 3, 4), (1, 2, 1, 2, 1, 2, 3), (0,), (2, 0), (16, 5), (3, 43)]
)
def test_activations_of_one_to_eight_axes(leading):
    generator = np.random.default_rng(4)
    weight = random_weight(generator, 18, 40, 8, 32)
    rows = int(np.prod(leading))
    a = exact_rows(generator, max(rows, 1), 40, 32)[:rows]
    y = product(weight, rank=len(leading) + 1)({"a": a.reshape(*leading, 40)}, {"y": (*leading, 18)})["y"]
    expected = a.astype(np.float64) @ weight.values().T
    np.testing.assert_allclose(y.reshape(rows, 18), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(initial=0))


SILU, GELU = 1, 2


def activated(activation, gate):
    """In float64, by the formulas of the papers."""
    gate = gate.astype(np.float64)
    if activation == SILU:
        return gate / (1 + np.exp(np.minimum(-gate, 700)))
    return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))


def activate(activation, gate, up):
    """The operator on a gate and an upper half that are its bias."""
    node = product(nothing(2 * len(gate)), op="GatedMatMulNBits", given=["bias"], activation=activation)
    bias = np.concatenate([gate, up]).astype(np.float32)
    return node({"a": normal(2, 32), "bias": bias}, {"y": (2, len(gate))})["y"]


def test_silu_to_the_last_bits():
    gate = np.concatenate([np.linspace(-80, 90, 1201), np.linspace(-1, 1, 383), [0, -1e-30, 1e-30] * 5, [1e30]])
    gate = gate.astype(np.float32)[:1600]
    up = np.linspace(0.5, 3, 1600).astype(np.float32)
    y = activate(SILU, gate, up)
    expected = activated(SILU, gate) * up
    # 2e-7 of exp, and an addition, a division and a product.
    np.testing.assert_allclose(y, np.broadcast_to(expected, y.shape), rtol=3.8e-7, atol=0)


def test_gelu_to_the_last_bits():
    gate = np.linspace(-5, 30, 1600).astype(np.float32)
    up = np.linspace(-3, 0.5, 1600).astype(np.float32)
    y = activate(GELU, gate, up)
    # The exponent is a float32 up to 16: its rounding is a relative error of the result where that is small. And the
    # formula of the paper itself has no digits left where tanh is nearly -1, so it is written as a sigmoid.
    z = 2 * np.sqrt(2 / np.pi) * (gate.astype(np.float64) + 0.044715 * gate.astype(np.float64) ** 3)
    expected = gate / (1 + np.exp(-z)) * up
    error = np.abs(y - expected)
    assert (error <= np.abs(expected) * (6e-7 + 3e-7 * np.maximum(0, -z))).all()
    ours, paper = gate > -2, activated(GELU, gate) * up
    np.testing.assert_allclose(y[0][ours], paper[ours], rtol=3e-6, atol=0)


@pytest.mark.parametrize("activation", [SILU, GELU])
def test_activations_far_from_zero(activation):
    gate = np.asarray([-1e4, -200, -89, -88, 88.4, 200, 1e12, np.nan] * 2, np.float32)
    y = activate(activation, gate, np.full(16, 2.0))[0]
    assert (np.abs(y[:4]) <= 1e-33).all()
    np.testing.assert_allclose(y[4:7], gate[4:7] * 2, rtol=1e-6)
    assert np.isnan(y[7])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("activation", [SILU, GELU])
@pytest.mark.parametrize("half", [16, 48])
@pytest.mark.parametrize("given", [["bias"], []])
def test_gate_and_upper_half_of_one_product(given, half, activation, threads):
    generator = np.random.default_rng(5)
    weight = random_weight(generator, 2 * half, 70, 4, 32, "zeros", exponent=-9)
    node = product(weight, op="GatedMatMulNBits", given=given, activation=activation, threads=threads)
    bias = normal(2 * half) * 3 if given else np.zeros(2 * half, np.float32)
    for rows in (130, 1, 9, 64, 65, 16):
        a = exact_rows(generator, rows, 70, 32)
        y = node({"a": a, "bias": bias}, {"y": (rows, half)})["y"]
        gate, up = np.split(a.astype(np.float64) @ weight.values().T + bias, 2, axis=1)
        size = np.abs(a.astype(np.float64)) @ np.abs(weight.values()).T + np.abs(bias)
        gate_size, up_size = np.split(size, 2, axis=1)
        # Slopes of both activations stay below 1.2; each half is right to a few units in the last place of its terms.
        bound = 1.2 * gate_size * np.abs(up) + np.abs(activated(activation, gate)) * up_size
        assert (np.abs(y - activated(activation, gate) * up) <= bound * 2.0**-20 + 1e-30).all()


@pytest.mark.parametrize("rows", [1, 20])
def test_norm_residual_gate_and_bias_together(rows):
    a, skip, gamma, bias = normal(rows, 96), normal(rows, 96, seed=1), normal(96, seed=2), normal(192, seed=3)
    whole = identity(96)
    weight = replace(
        whole, levels=np.concatenate([whole.levels, 256 - whole.levels]), scales=np.ones((192, 3), np.float32)
    )
    node = product(
        weight, op="GatedMatMulNBits", given=["bias", "gamma", "skip"], outputs=2, activation=SILU, epsilon=1e-5
    )
    feeds = {"a": a, "skip": skip, "gamma": gamma, "bias": bias}
    made = node(feeds, {"y": (rows, 96), "sum": (rows, 96)})
    np.testing.assert_array_equal(made["sum"], a + skip)
    plain = product(whole, given=["gamma", "skip"], epsilon=1e-5)(feeds, {"y": (rows, 96)})["y"]
    expected = activated(SILU, plain + bias[:96]) * (bias[96:].astype(np.float64) - plain)
    np.testing.assert_allclose(made["y"], expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"K": None}, "unsupported bits, block size or shape"),
        ({"K": -64}, "unsupported bits, block size or shape"),
        ({"N": None}, "unsupported bits, block size or shape"),
        ({"N": -16}, "unsupported bits, block size or shape"),
        ({"bits": None}, "unsupported bits, block size or shape"),
        ({"bits": 2}, "unsupported bits, block size or shape"),
        ({"bits": 5}, "unsupported bits, block size or shape"),
        ({"bits": 16}, "unsupported bits, block size or shape"),
        ({"block_size": None}, "unsupported bits, block size or shape"),
        ({"block_size": 16}, "unsupported bits, block size or shape"),
        ({"block_size": 48}, "unsupported bits, block size or shape"),
        ({"block_size": -32}, "unsupported bits, block size or shape"),
        ({"op": "GatedMatMulNBits", "activation": 3}, "unsupported activation"),
        ({"op": "GatedMatMulNBits", "activation": -1}, "unsupported activation"),
        ({"op": "GatedMatMulNBits", "activation": 1, "N": 16}, "halves that are no multiple of 16"),
    ],
)
def test_attributes_that_the_kernel_lacks_are_refused(options, reason):
    weight = random_weight(np.random.default_rng(6), 32, 64, 4, 32)
    with pytest.raises(Exception, match=reason):
        product(weight, **options)


@pytest.mark.parametrize("absent", ["w", "scales"])
def test_weights_that_are_no_constants_are_refused(absent):
    weight = random_weight(np.random.default_rng(7), 16, 64, 4, 32)
    constants = {name: value for name, value in weight.constants().items() if name != absent}
    with pytest.raises(Exception, match="weights must be constants"):
        product(weight, constants=constants)


@pytest.mark.parametrize("kind", ["zeros", "offsets"])
def test_zero_points_that_are_no_constants_are_refused(kind):
    """They would be left out, and the numbers be wrong."""
    weight = random_weight(np.random.default_rng(8), 16, 64, 4, 32, kind)
    constants = weight.constants()
    fed = constants.pop(kind)
    node = product(weight, constants=constants, given=[kind])
    with pytest.raises(Exception, match="zero points and offsets must be constants"):
        node({"a": normal(1, 64), kind: fed}, {"y": (1, 16)})


@pytest.mark.parametrize("width", [1, 63, 65, 128])
def test_activations_of_another_width_are_refused(width):
    node = product(random_weight(np.random.default_rng(9), 16, 64, 4, 32))
    with pytest.raises(Exception, match="activations do not have the weight's input features"):
        node({"a": normal(2, width)}, {"y": (2, 16)})


@pytest.mark.parametrize("shape", [(), (1,) * 8 + (64,)])
def test_scalars_and_nine_axes_are_refused(shape):
    node = product(random_weight(np.random.default_rng(9), 16, 64, 4, 32), rank=len(shape))
    with pytest.raises(Exception, match="inputs must have 1 to 8 axes"):
        node({"a": np.ones(shape, np.float32)}, {"y": (*shape[:-1], 16)})


@pytest.mark.parametrize("given", ["constant", "fed"])
@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("bias", (15,), "the bias does not have the weight's output features"),
        ("bias", (17,), "the bias does not have the weight's output features"),
        ("gamma", (1,), "the norm's weight does not have the activations' features"),
        ("gamma", (65,), "the norm's weight does not have the activations' features"),
    ],
)
def test_vectors_of_another_length_are_refused(name, shape, reason, given):
    """What would be read behind their end is no part of them."""
    weight = random_weight(np.random.default_rng(12), 16, 64, 4, 32)
    vector = normal(*shape)
    constants = weight.constants() | ({name: vector} if given == "constant" else {})
    node = product(weight, given=[name], constants=constants, epsilon=1e-5)
    with pytest.raises(Exception, match=reason):
        node({"a": normal(2, 64), name: vector}, {"y": (2, 16)})


@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (2, 32), (2, 65), (2, 1)])
def test_a_residual_of_another_shape_is_refused(shape):
    node = product(random_weight(np.random.default_rng(12), 16, 64, 4, 32), given=["skip"])
    with pytest.raises(Exception, match="the residual is not shaped like the activations"):
        node({"a": normal(2, 64), "skip": normal(*shape)}, {"y": (2, 16)})


@pytest.mark.parametrize("more", [1, -1])
def test_a_residual_with_other_axes_is_refused(more):
    weight = random_weight(np.random.default_rng(12), 16, 64, 4, 32)
    node = product(weight, given=["skip"], ranks={"skip": 2 + more})
    with pytest.raises(Exception, match="the residual is not shaped like the activations"):
        node({"a": normal(1, 64), "skip": normal(*[1] * (1 + more), 64)}, {"y": (1, 16)})


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("plain", "w", "the weight does not have K x N levels"),
        ("plain", "scales", "there is not one scale a block"),
        ("zeros", "zeros", "there is not one zero point a block"),
        ("offsets", "offsets", "there is not one offset a block"),
    ],
)
def test_weights_of_another_size_are_refused(kind, name, reason):
    """They would be read behind their end when they are packed."""
    weight = random_weight(np.random.default_rng(13), 16, 64, 4, 32, kind)
    constants = weight.constants()
    for changed in (constants[name][:-1], np.concatenate([constants[name], constants[name][:1]])):
        with pytest.raises(Exception, match=reason):
            product(weight, constants={**constants, name: changed})
    product(weight, constants=constants)


def test_zero_points_beside_offsets_are_refused():
    both = {}
    for kind in ("zeros", "offsets"):
        both |= random_weight(np.random.default_rng(14), 16, 64, 4, 32, kind).constants()
    with pytest.raises(Exception, match="a weight has zero points or offsets, not both"):
        product(random_weight(np.random.default_rng(14), 16, 64, 4, 32), constants=both)


@pytest.mark.parametrize("name", ["K", "N", "block_size"])
def test_sizes_of_no_matrix_are_refused(name):
    weight = random_weight(np.random.default_rng(15), 16, 64, 4, 32)
    with pytest.raises(Exception, match="unsupported bits, block size or shape"):
        product(weight, **{name: 2**32 + {"K": 64, "N": 16, "block_size": 32}[name]})


def test_memory_grows_with_the_call():
    """In a thread of its own, whose memory no earlier test has made large."""
    generator = np.random.default_rng(10)
    weight = random_weight(generator, 32, 512, 4, 32)
    node, wrong = product(weight), []

    def calls():
        for rows in (1, 8, 300, 2000, 3, 2000):
            a = exact_rows(generator, rows, 512, 32)
            expected = a.astype(np.float64) @ weight.values().T
            y = node({"a": a}, {"y": (rows, 32)})["y"]
            size = np.abs(a.astype(np.float64)) @ np.abs(weight.values()).T
            wrong.append(not (np.abs(y - expected) <= size * 2.0**-20).all())

    run_in_threads(calls, 1)
    assert wrong == [False] * 6


def test_two_sessions_at_the_same_time():
    generator = np.random.default_rng(11)
    weight = random_weight(generator, 64, 256, 4, 32)
    wrong, start = [], threading.Barrier(2)

    def calls():
        own = np.random.default_rng(threading.get_ident() % 1000)
        node, a = product(weight), exact_rows(own, 500, 256, 32)
        expected = node({"a": a}, {"y": (500, 64)})["y"]
        start.wait()
        wrong.extend(not np.array_equal(node({"a": a}, {"y": (500, 64)})["y"], expected) for _ in range(30))

    run_in_threads(calls, 2)
    assert wrong == [False] * 60


def run_in_threads(work, count):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
