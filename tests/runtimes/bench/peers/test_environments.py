"""What peers are installed from: fixed versions of everything, and names that fit the workers."""

from __future__ import annotations

import re

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.peers.environments import ENVIRONMENTS, chosen_environments
from llmc.runtimes.bench.workers.peers import PEERS


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_package_has_a_fixed_version(name):
    environment = ENVIRONMENTS[name]
    lines = environment.lock.read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[^+\s]+", line) for line in lines), "a local version is of one index"
    locked = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    asked = {*environment.packages, *([environment.source] if environment.source else [])}
    assert asked <= locked
    assert environment.torch is None or f"torch=={environment.torch}" in lines
    assert not locked & set(environment.unwanted)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_peer_by_name_has_a_worker_and_a_converter(name):
    environment = ENVIRONMENTS[name]
    variants = PEERS[environment.peer].variants
    assert set(environment.variants or ()) <= set(variants)
    assert environment.script is None or environment.script.is_file()
    assert len(set(environment.types)) == len(environment.types) > 0


def test_the_default_of_llama_cpp_is_what_its_users_take():
    assert ENVIRONMENTS["llama.cpp"].types[0] == "Q4_K_M"


def test_all_are_those_for_a_processor():
    names = [each.name for each in chosen_environments("all")]
    assert "vllm" not in names
    assert len(names) == len(ENVIRONMENTS) - 1


def test_names_are_chosen_once_in_their_order():
    assert [each.name for each in chosen_environments("vllm, ctranslate2,vllm")] == ["vllm", "ctranslate2"]


@pytest.mark.parametrize("names", ["", ",", "nobody", "ctranslate2,nobody"])
def test_another_name_is_refused(names):
    with pytest.raises(UsageError, match=r"known: llama\.cpp, onnxruntime-genai"):
        chosen_environments(names)


def test_the_key_follows_versions_and_packages(make_environment):
    first = make_environment().key
    assert make_environment().key == first
    assert make_environment("fakepeer==1.1\n").key != first
    assert make_environment(unwanted=("x",)).key != first
    assert make_environment(packages=("fakepeer", "y")).key != first
