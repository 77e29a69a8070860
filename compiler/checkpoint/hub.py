"""Checkpoints of the Hugging Face hub, fetched into its usual cache.

In: a repository id such as ``org/model``. Out: the directory of a snapshot with weights, configuration and tokenizer.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from llmc.compiler.base.errors import CheckpointError, first_line

log = logging.getLogger(__name__)

_ALLOWED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "README.md")
# Folders and Mistral's second copy of the weights would double the download.
_IGNORED = ("*/*", "consolidated*")
_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def is_hub_id(text: str) -> bool:
    """Whether ``text`` has the form of a repository id: ``name`` or ``owner/name``."""
    return _ID.fullmatch(text) is not None


def fetch_snapshot(repository: str, *, allow_download: bool = True, with_code: bool = False) -> Path:
    """Directory with the newest snapshot of ``repository``: safetensors, JSON and tokenizer files only.

    Args:
        repository: ``owner/name``.
        allow_download: False: only what the hub's cache already holds.
        with_code: Also the repository's Python files.

    Raises:
        CheckpointError: no such repository, no access, no network, or not in the cache.
    """
    import huggingface_hub
    from huggingface_hub import errors

    patterns = [*_ALLOWED, *(("*.py",) if with_code else ())]
    try:
        directory = huggingface_hub.snapshot_download(
            repository,
            allow_patterns=patterns,
            ignore_patterns=list(_IGNORED),
            local_files_only=not allow_download,
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated on the Hugging Face hub; accept its terms there and log in with hf auth login."
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise CheckpointError(
            f"{repository} is neither a path here nor a repository on the Hugging Face hub that you may read; check "
            "the name."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        # Raised without a network as well as when only the cache may be used.
        reason = "the hub cannot be reached" if allow_download else "downloads are not allowed"
        raise CheckpointError(
            f"{repository} is no path here and not in the Hugging Face cache, and {reason}; fetch it where there is "
            "a network (hf download), or name a local directory or .gguf file."
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{repository} cannot be fetched from the Hugging Face hub ({first_line(error)}); try again later."
        ) from error
    log.info("%s is in %s", repository, directory)
    return Path(directory)
