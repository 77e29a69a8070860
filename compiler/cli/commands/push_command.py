"""``llmc push``: an artifact to the Hugging Face hub, with a card."""

from __future__ import annotations

from typing import Annotated

import typer

from llmc.compiler.base.push_options import PushOptions
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import Directory
from llmc.compiler.cli.tables.push_table import push_table


def push(
    directory: Directory,
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="Repository of the hub, as owner/name.", show_default=False)
    ],
    *,
    options: PushOptions,
    shown: Output,
) -> None:
    """Upload an artifact to the Hugging Face hub in one commit, with a model card of what was measured of it.

    The card says what the artifact keeps of its model, how it was made and how it is used. Files are compared with
    the manifest first. The token is the one of hf auth login, or HF_TOKEN.
    """
    with shown.working() as progress:
        from llmc.compiler.driver.push import push as push_artifact

        report = push_artifact(directory, repository, options, progress=progress)
    if options.dry_run:
        shown.show_text(report.card, report.to_json())
    else:
        shown.show(lambda: push_table(report), report.to_json())
