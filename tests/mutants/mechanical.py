"""Mechanical mutants of the files that matter most, made and run by mutmut.

In: ``mechanical.toml``: source files, and the tests that are near to each. Out: a :class:`Mutant` for each of a
sample, with what its tests said.

mutmut wants a package as it is imported, and this checkout's folders are mapped (``compiler`` is ``llmc.compiler``),
so it works in a folder where they lie that way. A file has hundreds of mutants; a sample of fixed size, drawn with
the file's name as its seed, bounds the time, and is the same as long as the file is.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .faults import DOOR, FOLDERS, MARKERS, ROOT

TABLE = Path(__file__).parent / "mechanical.toml"
MUTMUT = (sys.executable, "-m", "mutmut")
KILLED = ("killed", "timeout", "segfault", "suspicious")
"""mutmut's words for a mutant that a test noticed; suspicious is an exit code that it does not know."""
LEFT_ALONE = [r"^\s*raise ", r"\blog\.", r"NearMiss\(", r"#: "]
"""Lines without mutants: what they change is the text of a message."""


@dataclass(frozen=True)
class Target:
    """A source file, and what runs against its mutants."""

    file: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Accepted:
    """A change that may survive: its lines without surrounding blanks, and why."""

    file: str
    old: str
    new: str
    why: str


@dataclass(frozen=True)
class Mutant:
    """One mutant of the sample.

    Attributes:
        name: mutmut's, as ``mutmut show`` takes it.
        status: mutmut's word.
        old: The lines that were changed; empty where it was killed.
        new: What stood there instead.
        why: Why it may survive; empty where nobody said.
    """

    name: str
    file: str
    status: str
    old: str = ""
    new: str = ""
    why: str = ""

    @property
    def noticed(self) -> bool:
        """Whether a test failed, crashed or did not end."""
        return self.status in KILLED


def load_table(names: Sequence[str] = (), table: Path = TABLE) -> tuple[tuple[Target, ...], tuple[Accepted, ...]]:
    """The files to mutate (or those that are named), and the changes that may survive."""
    content = tomllib.loads(table.read_text(encoding="utf-8"))
    targets = [Target(row["file"], tuple(row["tests"])) for row in content["target"]]
    accepted = tuple(Accepted(**row) for row in content.get("accepted", []))
    return tuple(t for t in targets if not names or any(name in t.file for name in names)), accepted


def run_mutmut(
    targets: Sequence[Target], accepted: Sequence[Accepted], per_file: int, jobs: int, budget: float, folder: Path
) -> list[Mutant]:
    """Mutate, run, read the results.

    Args:
        per_file: Mutants of one file, at most.
        budget: Seconds after which mutmut is interrupted; what it did until then counts.

    Raises:
        FileNotFoundError: mutmut is not installed.
        RuntimeError: the tests fail without a mutant.
    """
    _lay_out(targets, folder)
    names = {name: target.file for target in targets for name in _sample(folder, target.file, per_file)}
    log = folder / "mutmut.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*MUTMUT, "run", "--max-children", str(jobs), *names],
            cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            process.wait(budget)
        except subprocess.TimeoutExpired:
            process.send_signal(2)
            process.wait()
    statuses = dict(_statuses(folder))
    if not any(statuses.get(name, "not checked") != "not checked" for name in names):
        raise RuntimeError("mutmut checked nothing:\n" + log.read_text(errors="replace")[-3000:])
    return [_mutant(name, file, statuses.get(name, "not checked"), accepted, folder) for name, file in names.items()]


def _mutant(name: str, file: str, status: str, accepted: Sequence[Accepted], folder: Path) -> Mutant:
    if status in (*KILLED, "not checked"):
        return Mutant(name, file, status)
    old, new = _difference(name, folder)
    why = next((a.why for a in accepted if (a.file, a.old, a.new) == (file, old, new)), "")
    return Mutant(name, file, status, old, new, why)


def _lay_out(targets: Sequence[Target], folder: Path) -> None:
    """The checkout as it is imported, with mutmut's configuration."""
    folder.mkdir(parents=True)
    kept = shutil.ignore_patterns("__pycache__")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "llmc" / name, ignore=kept)
    shutil.copy(ROOT / DOOR, folder / "llmc")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=kept)
    settings = {
        "source_paths": ["llmc"],
        "only_mutate": [f"llmc/{target.file}" for target in targets],
        "do_not_mutate_patterns": LEFT_ALONE,
        "pytest_add_cli_args_test_selection": sorted({test for target in targets for test in target.tests}),
        "pytest_add_cli_args": ["-m", MARKERS, "-p", "no:xdist", "-p", "no:cacheprovider"],
        "process_isolation": "forkserver",  # torch's and ONNX Runtime's threads do not survive a fork
        "use_git_change_detection": False,
        "track_dependencies": False,
    }
    lines = [f"{key} = {_toml(value)}" for key, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text("\n".join([project, "[tool.mutmut]", *lines, ""]), encoding="utf-8")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else f"'{value}'"


def _sample(folder: Path, file: str, count: int) -> list[str]:
    """Names of mutants, as mutmut will give them."""
    code = (
        "import sys; from mutmut.mutation.file_mutation import mutate_file_contents as f; p = sys.argv[1]\n"
        "print(*f(p, open(p).read()).mutant_names, sep='\\n')"
    )
    made = _output([sys.executable, "-c", code, f"llmc/{file}"], folder)
    module = f"llmc/{file}".removesuffix(".py").replace("/", ".")
    names = [f"{module}.{name}" for name in made.split()]
    return random.Random(file).sample(names, min(count, len(names)))


def _statuses(folder: Path) -> Iterator[tuple[str, str]]:
    for line in _output([*MUTMUT, "results", "--all", "true"], folder).splitlines():
        name, colon, status = line.strip().partition(": ")
        if colon:
            yield name, status


def _difference(name: str, folder: Path) -> tuple[str, str]:
    """Lines taken out and put in, each without surrounding blanks."""
    sides: dict[str, list[str]] = {"-": [], "+": []}
    for line in _output([*MUTMUT, "show", name], folder).splitlines():
        if re.match(r"[-+](?![-+]{2} )", line):
            sides[line[0]].append(line[1:].strip())
    return "\n".join(sides["-"]), "\n".join(sides["+"])


def _library() -> Path:
    """mutmut has a folder of its own (``make mutants`` makes it), so that it changes no version in use elsewhere."""
    library = Path(sys.prefix) / "mutmut"
    if not library.is_dir():
        raise FileNotFoundError(f"mutmut is not installed in {library}: run `make mutants`")
    return library


def _output(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=_environment(), check=True, capture_output=True)
    return done.stdout.decode()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_library()), "PYTHONDONTWRITEBYTECODE": "1"}
