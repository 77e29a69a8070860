from __future__ import annotations

from llmc.runtimes.onnxruntime.operator_support import has_attribute, has_input


def test_it_answers_for_the_installed_build() -> None:
    assert has_input("com.microsoft", "MatMulNBits", "scales")
    assert has_attribute("com.microsoft", "MatMulNBits", "block_size")


def test_what_is_not_there() -> None:
    assert not has_input("com.microsoft", "MatMulNBits", "block_size")
    assert not has_attribute("com.microsoft", "MatMulNBits", "scales")
    assert not has_input("com.microsoft", "NoSuchOperator", "x")
    assert not has_attribute("com.microsoft", "NoSuchOperator", "x")


def test_the_newest_schema_is_asked() -> None:
    """Of version 10, the inputs of Resize are X and scales."""
    assert has_input("", "Resize", "roi")
    assert has_attribute("", "Resize", "keep_aspect_ratio_policy")


def test_an_operator_is_asked_in_its_own_domain() -> None:
    assert has_attribute("com.microsoft", "Attention", "num_heads")
    assert not has_attribute("", "Attention", "num_heads")
    assert has_attribute("", "Attention", "q_num_heads")
    assert not has_attribute("com.microsoft", "Attention", "q_num_heads")
