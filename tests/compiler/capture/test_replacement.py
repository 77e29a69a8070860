"""Attributes that are replaced for a while come back."""

from __future__ import annotations

import types

import pytest
import torch

from llmc.compiler.capture.replacement import replaced


def test_what_an_object_had_comes_back_also_after_an_error() -> None:
    owner = types.SimpleNamespace(first=1, second=2)
    with replaced((owner, "first", 3), (owner, "second", 4)):
        assert (owner.first, owner.second) == (3, 4)
    assert (owner.first, owner.second) == (1, 2)
    with pytest.raises(ZeroDivisionError), replaced((owner, "first", 3), (owner, "second", 4)):
        raise ZeroDivisionError
    assert (owner.first, owner.second) == (1, 2)


def test_a_method_is_its_classs_again() -> None:
    module = torch.nn.Identity()
    with replaced((module, "forward", lambda x: x + 1)):
        assert module(torch.ones(1)) == 2
    assert module(torch.ones(1)) == 1
    assert "forward" not in vars(module)


def test_one_attribute_that_is_replaced_twice_is_what_it_was_first() -> None:
    owner = types.SimpleNamespace(x=0)
    with replaced((owner, "x", 1)), replaced((owner, "x", 2)):
        assert owner.x == 2
    assert owner.x == 0
