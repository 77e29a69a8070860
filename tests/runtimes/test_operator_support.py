from __future__ import annotations

from llmc.runtimes.operator_support import has_attribute, has_input


def test_it_answers_for_the_installed_build() -> None:
    assert has_input("com.microsoft", "MatMulNBits", "scales")
    assert has_attribute("com.microsoft", "MatMulNBits", "block_size")


def test_what_is_not_there() -> None:
    assert not has_input("com.microsoft", "MatMulNBits", "block_size")
    assert not has_attribute("com.microsoft", "MatMulNBits", "scales")
    assert not has_input("com.microsoft", "NoSuchOperator", "x")
    assert not has_attribute("com.microsoft", "NoSuchOperator", "x")
