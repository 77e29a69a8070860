"""Arguments and options that several commands share and that are no field of a configuration.

In: nothing. Out: annotated types for the commands' signatures; see :mod:`llmc.compiler.cli.signature` for the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc.compiler.base.options import CompileOptions, OptimizeOptions
from llmc.compiler.cli.signature import field_option

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Hugging Face directory, hub id, .gguf file, or built-in name: smollm2-135m, gemma3-270m.",
        show_default=False,
    ),
]
Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="Directory that an llmc command made.", show_default=False)
]
OutputDirectory = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Directory to make; it appears whole or not at all.", show_default=False
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an artifact that is there, once the new one is complete.")
]
Threads = Annotated[int | None, field_option(CompileOptions, "threads")]
MaxKl = Annotated[float | None, field_option(OptimizeOptions, "max_kl")]
