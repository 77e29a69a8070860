"""What went wrong with the Hugging Face hub, in one sentence each.

In: what ``huggingface_hub``, its HTTP client or the disk raised. Out: a sentence that says what to do; no address in
it has a query, since a signature or a token may stand there.
"""

from __future__ import annotations

import errno
import importlib
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmc.compiler.base.errors import first_line

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_LOG_IN = "log in with hf auth login"
_PROXY_VARIABLES = "HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
_WRONG_TOKEN = "Invalid credentials"
_ADDRESS = re.compile(r"(\w+://)(?:[^\s/'\"@]*@)?([^\s?'\"]*)(?:\?[^\s'\"]*)?")


def transport_errors() -> tuple[type[Exception], ...]:
    """What the HTTP client beneath ``huggingface_hub`` raises: no connection, a timeout, a proxy, a bad address."""
    from huggingface_hub import errors

    # Which client that is changes with its releases; the base of its errors is what the hub's own derive from.
    base: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    client = importlib.import_module(base.__module__.partition(".")[0])
    return (base, client.InvalidURL)


def caught_errors() -> tuple[type[Exception], ...]:
    """Everything that a call of ``huggingface_hub`` raises for a reason outside of this program.

    ValueError and ImportError are how its client says that a proxy's address is none, or needs another package.
    """
    return (*transport_errors(), OSError, ValueError, ImportError)


def is_unreachable(error: Exception) -> bool:
    """Whether nobody answered, or the hub itself is down: what is in the cache may then be taken."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, errors.OfflineModeIsEnabled) or (
        isinstance(error, transport_errors()) and type(error).__name__ != "ProxyError"
    )


def hub_sentence(error: Exception, repository: str) -> str:
    """What ``error`` means for ``repository``, with what to do about it."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{repository} is gated on the Hugging Face hub; accept its terms there and {_LOG_IN}."
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return _unknown(repository)
    if isinstance(error, errors.DisabledRepoError):
        return f"{repository} is disabled on the Hugging Face hub; use another repository."
    if isinstance(error, errors.HfHubHTTPError):
        return _of_response(error, repository)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full while {repository} is fetched; free some space, or set HF_HOME to a folder on another "
            "disk; what is there already is kept."
        )
    if type(error).__name__ == "ProxyError":
        return f"the proxy does not let {repository} through ({plain(error)}); check {_PROXY_VARIABLES}."
    if isinstance(error, transport_errors()):
        return (
            f"the Hugging Face hub cannot be reached for {repository} ({plain(error)}); check the network, "
            f"{_PROXY_VARIABLES} and HF_ENDPOINT, and try again: what is there already is kept."
        )
    if isinstance(error, ValueError | ImportError):
        return f"the Hugging Face hub cannot be asked for {repository} ({plain(error)}); check {_PROXY_VARIABLES}."
    return (
        f"{repository} cannot be had from the Hugging Face hub ({plain(error)}); try again later: what is there "
        "already is kept."
    )


def plain(error: BaseException) -> str:
    """The first line of an error's text; addresses in it without name, password and query."""
    return _ADDRESS.sub(r"\1\2", first_line(error)).rstrip(". ")


def _unknown(repository: str) -> str:
    return (
        f"{repository} is neither a path here nor a repository on the Hugging Face hub that you may read; check the "
        f"name, and if it is private, {_LOG_IN}."
    )


def _of_response(error: HfHubHTTPError, repository: str) -> str:
    status = error.response.status_code
    if status == HTTPStatus.UNAUTHORIZED and _WRONG_TOKEN in error.response.headers.get("X-Error-Message", ""):
        return f"the Hugging Face hub does not accept your token for {repository}; {_LOG_IN} again."
    if status == HTTPStatus.UNAUTHORIZED:
        return _unknown(repository)
    if status == HTTPStatus.FORBIDDEN:
        return f"your token may not do this with {repository} on the Hugging Face hub; {_LOG_IN} with one that may."
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return f"the Hugging Face hub takes no more requests for {repository} at present; try again later."
    return (
        f"{repository} cannot be had from the Hugging Face hub ({plain(error)}); try again later: what is there "
        "already is kept."
    )
