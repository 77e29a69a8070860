"""An artifact, uploaded to the Hugging Face hub with a card.

In: an artifact's directory and the name of a repository. Out: :class:`~llmc.compiler.artifact.reports.PushReport`;
the repository has all files in one commit, or it is as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from llmc.compiler.artifact.artifact import Artifact, open_artifact
from llmc.compiler.artifact.manifest import MANIFEST_NAME
from llmc.compiler.artifact.model_card import model_card, read_speed
from llmc.compiler.artifact.reports import PushReport
from llmc.compiler.base.errors import HubError, UsageError
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.base.push_options import PushOptions
from llmc.compiler.checkpoint.hub import HubName
from llmc.compiler.checkpoint.hub_errors import caught_errors, hub_sentence, is_unreachable, plain
from llmc.compiler.checkpoint.hub_files import without_bars

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

CARD_NAME = "README.md"


def push(
    directory: Path, repository: str, options: PushOptions | None = None, *, progress: Progress = NO_PROGRESS
) -> PushReport:
    """Upload an artifact, its manifest and a model card in one commit.

    Every file is compared with the manifest before anything is sent. What another push left in the repository and
    this artifact has not stays there.

    Args:
        directory: Any artifact.
        repository: ``owner/name``; it is made where it is missing.
        options: Where to, and what is said.
        progress: Told the bytes.

    Raises:
        UsageError: ``repository`` is no such name, or the benchmark is none of this artifact.
        ArtifactError: the artifact is damaged.
        HubError: no token, no access, no network, or the repository is public where a private one was asked for.
    """
    options = options or PushOptions()
    name = HubName.parse(repository)
    if name is None or name.revision is not None or "/" not in repository:
        raise UsageError(
            f"{repository} names no repository of the hub; give owner/name, and a branch with --revision"
        )
    artifact = open_artifact(directory)
    progress.start("Checking files")
    artifact.check_hashes()
    speed = read_speed(options.bench, directory) if options.bench is not None else None
    card = model_card(artifact.manifest, repository, options.revision, speed)
    sizes = {file: record.bytes for file, record in artifact.manifest.files.items() if file != CARD_NAME}
    sizes[MANIFEST_NAME] = (directory / MANIFEST_NAME).stat().st_size
    commit, address = (
        (None, None) if options.dry_run else _upload(artifact, repository, options, card, sizes, progress)
    )
    return PushReport(repository, options.revision, commit, address, dict(sorted(sizes.items())), card)


def _upload(
    artifact: Artifact,
    repository: str,
    options: PushOptions,
    card: str,
    sizes: Mapping[str, int],
    progress: Progress,
) -> tuple[str, str]:
    """Send everything; the commit's hash and address."""
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise HubError("there is no token for the Hugging Face hub; log in with hf auth login, or set HF_TOKEN.")
    api = huggingface_hub.HfApi()
    additions = [
        huggingface_hub.CommitOperationAdd(path_in_repo=file, path_or_fileobj=artifact.path / file) for file in sizes
    ]
    card_file = huggingface_hub.CommitOperationAdd(path_in_repo=CARD_NAME, path_or_fileobj=card.encode())
    try:
        with without_bars():
            _prepare(api, repository, options)
            _send_large(api, repository, options.revision, additions, sizes, progress)
            progress.start("Committing")
            commit = api.create_commit(
                repository,
                [*additions, card_file],
                commit_message=options.message or _message(artifact),
                revision=options.revision,
            )
    except caught_errors() as error:
        _refuse(error, repository)
    return commit.oid, commit.commit_url


def _prepare(api: HfApi, repository: str, options: PushOptions) -> None:
    """Make repository and branch where they are missing."""
    api.create_repo(repository, private=options.private or None, exist_ok=True)
    if options.private and api.model_info(repository).private is not True:
        raise HubError(
            f"{repository} is there and public, and --private asks for a private one; make it private on the hub, or "
            "name another repository."
        )
    if options.revision != "main":
        api.create_branch(repository, branch=options.revision, exist_ok=True)


def _send_large(
    api: HfApi,
    repository: str,
    revision: str,
    additions: list[CommitOperationAdd],
    sizes: Mapping[str, int],
    progress: Progress,
) -> None:
    """Bring large files into the hub's store, one by one; what is there already is not sent again."""
    progress.start(f"Uploading to {repository}", total=sum(sizes.values()), unit="bytes")
    done = 0
    for addition in additions:
        api.preupload_lfs_files(repository, additions=[addition], revision=revision)
        done += sizes[addition.path_in_repo]
        progress.advance(done)


def _message(artifact: Artifact) -> str:
    manifest = artifact.manifest
    target = f" for {manifest.target}" if manifest.target is not None else ""
    return f"{manifest.source.name}, {manifest.weights_label}{target}"


def _refuse(error: Exception, repository: str) -> NoReturn:
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError):
        raise HubError(
            f"{repository} is no repository that your token may write to; check name and token."
        ) from error
    known = isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403, 429)
    if known or (is_unreachable(error) and not isinstance(error, errors.HfHubHTTPError)):
        raise HubError(hub_sentence(error, repository)) from error
    raise HubError(f"{repository} did not take the artifact ({plain(error)}); nothing was committed.") from error
