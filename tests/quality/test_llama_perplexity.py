"""The comparison with llama-perplexity: its output read, its tokens compared, a stand-in for both programs."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from . import llama_perplexity as module
from .llama_perplexity import LlamaPerplexity, beyond, check, read_figures, read_tokens, same_windows

OUTPUT = """
====== Perplexity statistics ======
Mean PPL(Q)                   :  20.776102 ±   0.551
Mean PPL(base)                :  19.777310 ±   0.518
Cor(ln(PPL(Q)), ln(PPL(base))):  99.27%
Mean ln(PPL(Q)/PPL(base))     :   0.049268 ±   0.003
Mean PPL(Q)/PPL(base)         :   1.050502 ±   0.003
====== KL divergence statistics ======
Mean    KLD:   0.045712 ±   0.000525
Maximum KLD:   1.234500
99.9%   KLD:   0.512000
99.0%   KLD:   0.220100
95.0%   KLD:   0.121000
90.0%   KLD:   0.090100
Median  KLD:   0.030200
10.0%   KLD:   0.004000
 1.0%   KLD:   0.000300
Minimum KLD:   0.000001

====== Token probability statistics ======
Mean    Δp: -0.510 ± 0.040 %
Maximum Δp: 50.000%
RMS Δp    :  4.012 ± 0.060 %
Same top p: 87.801 ± 0.324 %
"""
FIGURES = {
    "ppl": 20.776102,
    "reference ppl": 19.77731,
    "ppl_ratio": 1.050502,
    "mean_kl": 0.045712,
    "max_kl": 1.2345,
    "kl_p999": 0.512,
    "kl_p99": 0.2201,
    "kl_p95": 0.121,
    "kl_p90": 0.0901,
    "median_kl": 0.0302,
    "mean_delta_p": -0.0051,
    "rms_delta_p": 0.04012,
    "top1_agreement": 0.87801,
}
WINDOWS = np.arange(24).reshape(3, 8)


def test_figures_have_our_names_and_units() -> None:
    assert read_figures(OUTPUT) == pytest.approx(FIGURES)
    damaged = OUTPUT.replace("Mean    KLD", "Mean    XYZ")
    with pytest.raises(ValueError, match="printed no mean_kl"):
        read_figures(damaged)
    assert read_figures(damaged, ["ppl", "kl_p99"]) == {"ppl": 20.776102, "kl_p99": 0.2201}


def write_base(path: Path, tokens: Any) -> None:
    content = np.asarray(tokens, "<i4")
    path.write_bytes(
        b"_logits_" + struct.pack("<Iii", content.shape[1], 50, len(content)) + content.tobytes() + b"..."
    )


def test_tokens_of_a_base_file(tmp_path: Path) -> None:
    write_base(tmp_path / "base", WINDOWS)
    np.testing.assert_array_equal(read_tokens(tmp_path / "base"), WINDOWS)
    (tmp_path / "base").write_bytes(b"GGUF....")
    with pytest.raises(ValueError, match="holds no logits"):
        read_tokens(tmp_path / "base")


def changed(row: int, column: int) -> Any:
    other = WINDOWS.copy()
    other[row, column] = 99
    return other


def test_only_what_begins_a_later_window_may_differ() -> None:
    assert same_windows(WINDOWS, WINDOWS.copy())
    assert same_windows(WINDOWS, changed(1, 0))
    assert not same_windows(WINDOWS, changed(0, 0))
    assert not same_windows(WINDOWS, changed(2, 7))
    assert not same_windows(WINDOWS, WINDOWS[:2])


@pytest.mark.parametrize(("name", "factor"), [("mean_kl", 1.021), ("ppl", 0.9985), ("top1_agreement", 1.006)])
def test_a_difference_beyond_tolerance_is_named(name: str, factor: float) -> None:
    assert beyond(FIGURES, FIGURES) == []
    assert beyond(FIGURES, {**FIGURES, name: FIGURES[name] * factor}) == [name]
    assert beyond(FIGURES, {**FIGURES, name: FIGURES[name] * (1 + (factor - 1) / 2)}) == []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both programs without running any; ``made`` has what was run, ``tokens`` the base file's."""
    made = SimpleNamespace(calls=[], tokens=WINDOWS, figures=dict(FIGURES))

    def run(self: LlamaPerplexity, *arguments: str) -> str:
        made.calls.append(arguments)
        if "--kl-divergence" not in arguments:
            write_base(tmp_path / "base", made.tokens)
        return OUTPUT

    monkeypatch.setattr(LlamaPerplexity, "_run", run)
    monkeypatch.setattr(module, "open_reference", lambda *_: SimpleNamespace(tokenizer=None))
    monkeypatch.setattr(module, "text_windows", lambda *_, **__: WINDOWS)
    monkeypatch.setattr(module, "our_figures", lambda model, peers, _: [made.figures] * len(peers))
    return made


def options(tmp_path: Path) -> Any:
    files: dict[str, Any] = {"binary": Path("bin"), "base": tmp_path / "base", "float": Path("float.gguf")}
    rest = {"text": None, "tokens": None, "window": 8, "threads": 1, "peer_python": Path("python"), "model": "hf"}
    return SimpleNamespace(gguf=[Path("a.gguf"), Path("b.gguf")], **files, **rest)


def test_agreement(programs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(options(tmp_path), tmp_path) == 0
    wanted = [("-m", "float.gguf"), ("-m", "a.gguf", "--kl-divergence"), ("-m", "b.gguf", "--kl-divergence")]
    assert programs.calls == wanted
    assert "the two programs agree" in capsys.readouterr().out
    assert check(options(tmp_path), tmp_path) == 0
    assert programs.calls[3:] == wanted[1:], "a base file that is there is taken"


def test_disagreement(programs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs.figures["mean_kl"] *= 1.05
    assert check(options(tmp_path), tmp_path) == 1
    assert "beyond tolerance: a.gguf: mean_kl, b.gguf: mean_kl" in capsys.readouterr().out


def test_other_tokens(programs: Any, tmp_path: Path) -> None:
    programs.tokens = changed(1, 3)
    assert check(options(tmp_path), tmp_path) == 1
    assert len(programs.calls) == 1, "nothing is compared"


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    script = tmp_path / "fails"
    script.write_text("#!/bin/sh\necho no model >&2\nexit 3\n")
    script.chmod(0o755)
    program = LlamaPerplexity(script, tmp_path / "text", tmp_path / "base", 1, 512, 3)
    with pytest.raises(ValueError, match=r"failed \(3\):\nno model"):
        program.compare(tmp_path / "m.gguf")
