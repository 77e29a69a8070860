"""Which steps are done: what a killed walk finds again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.calibration.journal import NAME, Journal


def test_a_walk_goes_on_with_what_its_steps_left(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "walk")
    assert journal.done == 0
    spools = journal.open_spools(2)
    for number, spool in enumerate(spools):
        for name in ("kept", "freed"):
            spool.write(name, 0, np.full(2, number, np.float32))
    journal.finish(3, spools, ["freed"])
    spools[0].write("half done", 0, np.ones(2, np.float32))

    again = Journal(tmp_path / "walk")
    assert again.done == 3
    for number, spool in enumerate(again.open_spools(2)):
        assert list(spool.entries) == ["kept"]
        assert spool.read("kept", 0).tolist() == [number, number]
        assert len(list(spool.directory.iterdir())) == 1


def test_a_value_leaves_the_disk_only_when_no_journal_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    (spool,) = journal.open_spools(1)
    spool.write("x", 0, np.ones(2, np.float32))
    journal.finish(1, [spool], [])
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        journal.finish(2, [spool], ["x"])
    monkeypatch.undo()
    (found,) = Journal(tmp_path).open_spools(1)
    assert found.read("x", 0).tolist() == [1, 1]


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_journal_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    assert Journal(tmp_path).done == 0
