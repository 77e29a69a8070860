"""The command ``llmc``: its commands in the order of use, and how each of them ends.

In: a command line. Out: what the command shows, and an exit code (see :mod:`llmc.compiler.cli.failures`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from llmc.compiler.base.versions import llmc_version
from llmc.compiler.cli.commands.bench_command import bench
from llmc.compiler.cli.commands.build_command import build
from llmc.compiler.cli.commands.compile_command import compile_
from llmc.compiler.cli.commands.cost_command import cost
from llmc.compiler.cli.commands.doctor_command import doctor
from llmc.compiler.cli.commands.eval_command import eval_
from llmc.compiler.cli.commands.export_command import export
from llmc.compiler.cli.commands.generate_command import generate
from llmc.compiler.cli.commands.inspect_command import inspect
from llmc.compiler.cli.commands.lint_command import lint
from llmc.compiler.cli.commands.load_command import load
from llmc.compiler.cli.commands.optimize_command import optimize
from llmc.compiler.cli.commands.push_command import push
from llmc.compiler.cli.commands.report_command import report as report_
from llmc.compiler.cli.commands.verify_command import verify
from llmc.compiler.cli.failures import InterruptError, report, wants_json
from llmc.compiler.cli.signature import flat
from llmc.compiler.cli.streams import settle_process

LICENCE_NOTE = (
    "Licence: the built-in model gemma3-270m comes under the Gemma Terms of Use (https://ai.google.dev/gemma/terms), "
    "which are not an open-source licence; installing its package is how you accept them. smollm2-135m: Apache-2.0."
)


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: As it is typed.
        function: What it does; its docstring is its description.
        examples: Whole command lines.
        takes_model: Whether it takes a MODEL, whose licence is the user's to know.
    """

    name: str
    function: Callable[..., None]
    examples: tuple[str, ...]
    takes_model: bool = False

    @property
    def epilog(self) -> str:
        """What stands below the options in ``--help``: one paragraph a line."""
        examples = "\n\n".join(f"  {example}" for example in self.examples)
        return f"Examples:\n\n{examples}" + (f"\n\n{LICENCE_NOTE}" if self.takes_model else "")


COMMANDS = (
    Command(
        "export",
        export,
        (
            "llmc export smollm2-135m -o out/portable",
            "llmc export HuggingFaceTB/SmolLM2-135M-Instruct -o out/portable --dtype fp16",
            "llmc export ./model.gguf -o out/portable --overwrite",
        ),
        takes_model=True,
    ),
    Command(
        "optimize",
        optimize,
        (
            "llmc optimize out/portable -o out/int4 --target cpu --precision int4",
            "llmc optimize out/portable -o out/fp32 --logits all --strict --dump out/graphs",
            "llmc optimize out/portable --precision int8 --dry-run",
        ),
    ),
    Command("build", build, ("llmc build out/int4 -o out/engine", "llmc build out/int4 -o out/engine --threads 4")),
    Command(
        "compile",
        compile_,
        (
            "llmc compile smollm2-135m -o out/engine --target cpu --precision int4",
            "llmc compile ./my-model -o out/engine --precision int8 --context 4096 --strict",
            "llmc compile gemma3-270m -o out/gemma --precision int4 --model-path ~/packages",
            "llmc compile ./my-model -o out/gpu --target cuda --precision int4 --kv-precision fp8 --strict",
        ),
        takes_model=True,
    ),
    Command("verify", verify, ("llmc verify out/engine", "llmc verify out/engine --json")),
    Command(
        "eval",
        eval_,
        (
            "llmc eval out/int4 out/int8 --reference smollm2-135m",
            "llmc eval out/int4 --reference ./my-model --text mine.txt --tokens 20000 --json quality.json",
            "llmc eval out/int4 --reference ./my-model --peer llamacpp-python=venv/bin/python:my-model-Q4_K_M.gguf",
        ),
        takes_model=True,
    ),
    Command(
        "generate",
        generate,
        (
            "llmc generate out/engine -p 'The moon pulls the sea, and so the tide' --max-tokens 96",
            "llmc generate out/engine --chat --system 'Answer in one sentence.'",
            "llmc generate out/engine -p - --temperature 0.8 --top-p 0.95 --seed 7 < prompt.txt",
            "llmc generate out/engine -p 'One prompt' -p 'and another, in one batch' --quiet",
        ),
    ),
    Command(
        "bench",
        bench,
        (
            "llmc bench out/engine",
            "llmc bench out/int4 out/int8 --prompt 128,512 --gen 128 --batch 1,4 --runs 5",
            "llmc bench out/engine --prompt 512 --gen 64 --threads 2 --json results.json",
            "llmc bench out/engine --batch 4 --generate 16 --temperature 0.7",
            "llmc bench out/new --baseline out/old --fail-if 'decode_tps < 0.97*baseline' --junit gate.xml",
            "llmc bench out/gpu --peer transformers/compile=venv/bin/python:./my-model --one-at-a-time",
            "llmc bench out/engine --prompts chats.jsonl --mode text --gen 64",
            "llmc bench out/int4 out/int8 --batch 1,4,16 --html report.html",
            "llmc bench out/int4 out/int8 --price 0.2/h --format md --output speed.md --json speed.json",
        ),
    ),
    Command(
        "load",
        load,
        (
            "llmc load out/engine --users 1,2,4,8 --input-len 128 --output-len 64 --html load.html",
            "llmc load out/engine --rate 0.5,1,2 --slo ttft=500ms,tpot=50ms --json load.json",
            "llmc load --url http://127.0.0.1:8000/v1 --tokenizer out/engine --users 1,2,4,8",
            "llmc load out/engine --trace trace.jsonl --speed 2",
            "llmc load out/engine --users 4 --fail-if 'ttft_p99 > 500' --duration 20",
        ),
    ),
    Command(
        "report",
        report_,
        (
            "llmc report results.json -o report.html",
            "llmc report laptop.json server.json quality.json -o report.html",
        ),
    ),
    Command(
        "cost",
        cost,
        (
            "llmc cost small.json large.json --price 0.2/h --price 2.5/h",
            "llmc cost results.json --price '900 EUR/month' --json",
        ),
    ),
    Command(
        "inspect",
        inspect,
        (
            "llmc inspect out/engine",
            "llmc inspect model.onnx --json",
            "llmc inspect out/portable --diff out/int4",
            "llmc inspect out/gpu --context 8192 --batch 1,8",
        ),
    ),
    Command(
        "lint",
        lint,
        (
            "llmc lint model.onnx --target openvino-2026",
            "llmc lint model.onnx --target tensorrt-rtx-1.7 --format sarif",
            "llmc lint out/portable/model.onnx --target ort-1.24 --format json",
        ),
    ),
    Command(
        "push",
        push,
        (
            "llmc push out/engine me/my-model-int4 --dry-run",
            "llmc push out/engine me/my-model-int4 --private --bench results.json",
        ),
    ),
    Command(
        "doctor",
        doctor,
        ("llmc doctor", "llmc doctor --json", "llmc doctor --model out/gpu --context 8192 --batch 8"),
    ),
)


class Group(TyperGroup):
    """Ends every command the same way: with one sentence and an exit code, whatever was raised in it."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C passes through typer as an exception that typer does not swallow."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise InterruptError from error

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Parse and run; without arguments, help."""
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        extra["standalone_mode"] = False
        try:
            code = super().main(arguments, *rest, **extra)
            sys.stdout.flush()
        except Exception as error:  # noqa: BLE001  (the one place where every error ends)
            code = report(error, as_json=wants_json(arguments))
        sys.exit(code if isinstance(code, int) else 0)

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order of use, not of the alphabet."""
        return list(self.commands)


def describe(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    """Compile a language model into an engine that runs fast here, prove that it still says the same, measure it."""
    if version:
        typer.echo(f"llmc {llmc_version()}")
        raise typer.Exit


def make_app() -> typer.Typer:
    """The typer application."""
    application = typer.Typer(
        name="llmc",
        cls=Group,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Start with: llmc compile smollm2-135m -o out/engine --precision int4",
    )
    application.callback(invoke_without_command=True)(describe)
    for command in COMMANDS:
        application.command(command.name, epilog=command.epilog)(flat(command.function))
    return application


app = make_app()


def main() -> None:
    """The console script."""
    settle_process()
    app()
