"""docs/commands.md is what the commands say."""

from __future__ import annotations

from pathlib import Path

from llmc.compiler.cli.app import COMMANDS
from llmc.compiler.cli.reference import main, reference

PAGE = Path(__file__).parents[3] / "docs" / "commands.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_every_command_and_option_is_there() -> None:
    text = reference()
    assert [line.removeprefix("## llmc ") for line in text.splitlines() if line.startswith("## llmc ")] == [
        command.name for command in COMMANDS
    ]
    for words in ("`--output`, `-o` `DIR`", "`--precision` `auto\\|fp32\\|fp16\\|", "`--symmetric/--asymmetric`"):
        assert words in text
    assert "| `--temperature` `FLOAT` | 0 is greedy; higher is more random. | `0.0` |" in text
    assert "LLMC_MODEL_PATH" in text
    assert "| 8 | `VerificationError` |" in text


def test_lines_that_are_no_table_fit() -> None:
    assert all(len(line) <= 120 for line in reference().splitlines() if not line.startswith("|"))


def test_it_writes_a_file(tmp_path: Path) -> None:
    main([str(tmp_path / "docs" / "x.md")])
    assert (tmp_path / "docs" / "x.md").read_text(encoding="utf-8") == reference()
