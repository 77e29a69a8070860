from __future__ import annotations

import errno

import pytest

from llmc.compiler.checkpoint.hub_errors import caught_errors, hub_sentence, is_unreachable, plain, transport_errors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("403 for url 'https://cdn.hf.co/a/b?Signature=abc&Key=1'", "403 for url 'https://cdn.hf.co/a/b'"),
        ("proxy http://me:secret@proxy:3128 says no", "proxy http://proxy:3128 says no"),
        ("Bad gateway\nRequest ID: 1", "Bad gateway"),
    ],
)
def test_addresses_hold_no_secrets(text: str, said: str) -> None:
    assert plain(ValueError(text)) == said


def error_named(name: str) -> Exception:
    """An error of the HTTP client beneath the hub's library."""
    base = transport_errors()[0]
    kind = next(kind for kind in descendants(base) if kind.__name__ == name)
    return kind("no")


def descendants(kind: type[Exception]) -> set[type[Exception]]:
    return {kind, *(below for child in kind.__subclasses__() for below in descendants(child))}


@pytest.mark.parametrize(
    ("error", "unreachable", "said"),
    [
        ("ConnectError", True, "cannot be reached for o/m"),
        ("ReadTimeout", True, "cannot be reached for o/m"),
        ("ProxyError", False, "the proxy does not let o/m through"),
        (OSError(errno.ENOSPC, "full"), False, "the disk is full while o/m is fetched"),
        (OSError(errno.EDQUOT, "full"), False, "the disk is full while o/m is fetched"),
        (PermissionError(13, "no"), False, "o/m cannot be had"),
        (ValueError("Unknown scheme for proxy URL"), False, "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"),
        (ImportError("socksio"), False, "the Hugging Face hub cannot be asked for o/m"),
    ],
)
def test_each_cause_has_its_sentence(error: str | Exception, unreachable: bool, said: str) -> None:
    raised = error_named(error) if isinstance(error, str) else error
    assert isinstance(raised, caught_errors())
    assert is_unreachable(raised) is unreachable
    sentence = hub_sentence(raised, "o/m")
    assert said in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
