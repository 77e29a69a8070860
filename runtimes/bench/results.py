"""What a latency benchmark is asked and what it answers, as plain data.

In: nothing. Out: :class:`BenchCase`, :class:`Subject`, and :class:`BenchReport`, which is the document that a
benchmark writes: what is a field here is a key there (``document.py`` reads it back). A new figure is a field with a
default, in a record of a module of its own.

Terms (vLLM's and llama-bench's, in this order of preference):

* TTFT: seconds from the prompt's submission to the first token; tokenization excluded.
* prefill tok/s (``pp``): ``batch * prompt / TTFT``.
* TPOT: ``(end-to-end latency - TTFT) / (output tokens - 1)``, milliseconds (vLLM).
* ITL: the single gaps between tokens, all runs together, as percentiles, milliseconds.
* decode tok/s (``tg``): ``batch * (output tokens - 1) / (end-to-end latency - TTFT)``: llama-bench's ``tg`` at the
  depth of the prompt (its ``-d``).
* joules per output token, average power (aiperf's): of the GPU or the processor, over the decode steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmc.compiler.base.json_record import encode
from llmc.runtimes.bench.artifact_facts import ArtifactFacts
from llmc.runtimes.bench.case import BenchCase as BenchCase  # records of other modules have cases too
from llmc.runtimes.bench.ceilings import Ceilings
from llmc.runtimes.bench.gate.record import GateRecord
from llmc.runtimes.bench.load.records import LoadRecord
from llmc.runtimes.bench.operators import OperatorTimes
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.prompts import PromptFacts
from llmc.runtimes.bench.quality import SubjectQuality
from llmc.runtimes.bench.ratio_interval import RatioInterval
from llmc.runtimes.bench.roofline import Roofline
from llmc.runtimes.bench.sweep import Sweep
from llmc.runtimes.bench.text_mode import TextComparison, TextRecord, TextResult
from llmc.runtimes.bench.token_cost import Price, TokenCost
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.copy_bandwidth import CopyBandwidth
from llmc.runtimes.machine.fingerprint import MachineFingerprint
from llmc.runtimes.machine.gpu import GpuLoad
from llmc.runtimes.machine.powercap import EnergyFacts
from llmc.runtimes.machine.summary import Percentiles, Summary

SCHEMA_VERSION: Literal[2] = 2

CONVENTIONS: Mapping[str, str] = {
    "ttft": "submission of the prompt's token ids to the first token's logits; tokenization excluded",
    "tokens": "prompts and decode steps get seeded random token ids, or those of a text where there is one, the same "
    "for every subject with that vocabulary",
    "text": "the loop that users run, one prompt after the other: from the text handed over to each token's text "
    "given out; chat template, tokenization, sampling and detokenization included; TTFT to the first character; the "
    "end token is not heeded",
    "sampling": "excluded on the CPU: a step ends with an arg-max whose token is not fed back, llama.cpp's with its "
    "logits computed (llama-bench's tg); included in llmc's steps on a device and in both genais': greedy, the token "
    "is fed back",
    "generation": "the loop of llmc generate, sampling included: as many requests at a time as a case has rows, the "
    "next one when one ends; TTFT counts from a request's arrival, tokens/s are those of all requests of a round",
    "rounds": "one run of each subject in turn, case by case, then the next round; one at a time: half of the rounds "
    "of each subject, then the second halves in reverse order; figures are medians (min - max)",
    "peak_rss": "VmHWM of a fresh process that loads, warms up and runs the case once; file-backed pages included; "
    "one at a time: of one process that ran the cases before it too",
    "load": "from the request to an open session in a fresh process; the files are in the page cache",
    "bandwidth_share": "(weights + KV cache that one decode step reads) / TPOT / measured read bandwidth of memory; "
    "on a GPU the measured bandwidth of copies there, bytes read and bytes written",
    "device_peak": "most GPU memory of the process of peak_rss, its CUDA context included; where its own share is "
    "hidden, what the GPU had in use beyond what it had before",
    "energy": "during the decode steps, idle power included: of the whole GPU for a subject on one, the host's "
    "excluded (NVML); else of the processor's packages and the memory beside them (RAPL), what other processes draw "
    "included; J/token counts the tokens of all rows",
}


@dataclass(frozen=True)
class Subject:
    """Something to measure: a path, and the command of the worker that opens it."""

    label: str
    path: Path
    command: tuple[str, ...]


@dataclass(frozen=True)
class SubjectRecord:
    """What is known of a subject after it was opened.

    Attributes:
        label, path: Its name in this report, and what was opened.
        info: Fields of :class:`~llmc.runtimes.session.engine.EngineInfo`.
        load_s: Seconds to load, over the fresh processes; None of a server, which was there before.
        base_rss_bytes: Resident bytes of the worker before it loaded anything: interpreter and imports; None
        likewise. artifact: Size, hash and bits per weight of what was opened; None where nobody knows.
        quality: What it has lost against its model; None where nobody has measured it.
    """

    label: str
    path: str
    info: Mapping[str, Any]
    load_s: Summary | None
    base_rss_bytes: int | None
    artifact: ArtifactFacts | None = None
    quality: SubjectQuality | None = None


@dataclass(frozen=True)
class SampleRecord:
    """One run of one case by one subject, as it was measured.

    Attributes:
        round: From 0; what subjects measured in the same round stands side by side.
        first_token_s: Seconds from the prompt's submission to the first token.
        step_s: Seconds of each decode step.
        other_load: Share of the cores that other processes used during the run.
        decode_window: Seconds since 1970 at the begin and the end of the decode steps, where the subject told them.
        energy_j: Joules of the decode steps; None when not measured.
    """

    label: str
    case: BenchCase
    round: int
    first_token_s: float
    step_s: tuple[float, ...]
    other_load: float
    decode_window: tuple[float, ...] | None = None
    energy_j: float | None = None


@dataclass(frozen=True)
class RequestRecord:
    """One request that went through the generation loop.

    Attributes:
        round: From 0.
        ticks_ns: Nanoseconds of its worker's clock at the arrival and at each of its tokens.
    """

    label: str
    case: BenchCase
    round: int
    ticks_ns: tuple[int, ...]


@dataclass(frozen=True)
class OtherLoad:
    """Share of the cores that other processes used before and after the benchmark."""

    before: float
    after: float


@dataclass(frozen=True)
class GpuLoads:
    """Who used the GPU before and after the benchmark."""

    before: GpuLoad
    after: GpuLoad


@dataclass(frozen=True)
class BenchResult:
    """One subject's figures for one case; the terms are this module's.

    Attributes:
        prefill_tokens_per_s, decode_tokens_per_s: All rows together.
        itl_ms: Percentiles of the gaps of all runs.
        peak_rss_bytes: None when not measured.
        step_bytes: Bytes of weights and KV cache that one decode step reads, at the mean depth of the case.
        bandwidth_share: Share of the memory's measured bandwidth (of a GPU's for a subject that runs there) that
            decoding reaches; None when the subject does not say how many bytes it reads, or the GPU's is not known.
        other_load: Share of the cores that other processes used during each run.
        device_peak_bytes: Most GPU memory; None on a CPU or when not measured.
        joules_per_token: Joules per decoded token, all rows' tokens counted, of the GPU or else of the processor;
            None when not measured.
        power_w: Average watts of the same during the decode steps; None when not measured.
    """

    label: str
    case: BenchCase
    ttft_s: Summary
    prefill_tokens_per_s: Summary
    tpot_ms: Summary
    itl_ms: Percentiles
    decode_tokens_per_s: Summary
    peak_rss_bytes: int | None
    step_bytes: int
    bandwidth_share: float | None
    other_load: Summary
    device_peak_bytes: int | None = None
    joules_per_token: Summary | None = None
    power_w: Summary | None = None


@dataclass(frozen=True)
class GenerationResult:
    """One subject's figures for requests that went through the generation loop, all rounds together.

    Attributes:
        case: Tokens of each request's prompt and answer, and how many requests ran at a time.
        ttft_ms, tpot_ms: Of each request; the former from its arrival to its first token.
        tokens_per_s: New tokens of all requests of a round, from the first arrival to the last token.
    """

    label: str
    case: BenchCase
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    itl_ms: Percentiles
    tokens_per_s: Summary


@dataclass(frozen=True)
class Comparison:
    """First subject over another, round by round; a ratio of throughputs, above 1 when the first is faster.

    Attributes:
        numerator, denominator: Labels of the two.
        metric: ``prefill`` or ``decode``.
        rounds, ratio: Ratio of each round; their median, least and most.
        interval: Where the median of such rounds lies; None of a single round.
        standing: How the numerator's loss stands to the denominator's: ``equal or better``, ``worse``, or empty where
            that is not known.
    """

    numerator: str
    denominator: str
    case: BenchCase
    metric: str
    rounds: tuple[float, ...]
    ratio: Summary
    interval: RatioInterval | None = None
    standing: str = ""


@dataclass(frozen=True)
class BenchReport:
    """A whole benchmark, all that is needed to read its figures later, or to work them out again.

    ``copy_bandwidth`` and ``gpu_load`` are None unless a subject runs on a GPU; ``generations`` and ``requests`` are
    empty unless they were asked for. A report of version 1 had neither samples nor what stands behind them here.

    Attributes:
        conventions: What each figure means.
        samples: Every run, of which ``results`` are the figures.
        requests: Every request, of which ``generations`` are the figures.
        ceilings: What the machine can do at most; ``bandwidth`` is the better of its reads.
        roofline: How near the subjects come to that.
        curve, contexts: Steps of more tokens, and behind more; None unless they were asked for.
        operators: Where the time goes by kind of operator; None unless it was asked for.
        llmc: Version of llmc that measured.
        prompts: The file that tokens or texts came from; None: they were random.
        text_results, texts, text_comparisons: Figures of the loop that users run, each answer, and the first subject
            over the others; empty unless it was asked for.
        energy: Which counters of the processor were read, or why none; a GPU's is NVML's.
        price, costs: What the machine costs, and so a million tokens; None and empty where no price was given.
        gate: What decided whether it failed, and the figures of each process; None where nothing was asked.
        load: Requests that arrived while others ran (``llmc load``); then ``results`` are empty.
        command: The command line that asked for it; empty where it was asked for from Python.
        created: When the benchmark began, UTC, as ``2026-11-30T12:00:00+00:00``.
    """

    machine: MachineFingerprint
    bandwidth: Bandwidth
    options: BenchOptions
    subjects: tuple[SubjectRecord, ...]
    results: tuple[BenchResult, ...]
    comparisons: tuple[Comparison, ...]
    other_load: OtherLoad
    warnings: tuple[str, ...]
    copy_bandwidth: CopyBandwidth | None = None
    gpu_load: GpuLoads | None = None
    generations: tuple[GenerationResult, ...] = ()
    cases: tuple[BenchCase, ...] = ()
    samples: tuple[SampleRecord, ...] = ()
    requests: tuple[RequestRecord, ...] = ()
    prompts: PromptFacts | None = None
    text_results: tuple[TextResult, ...] = ()
    texts: tuple[TextRecord, ...] = ()
    text_comparisons: tuple[TextComparison, ...] = ()
    energy: EnergyFacts | None = None
    price: Price | None = None
    costs: tuple[TokenCost, ...] = ()
    llmc: str = ""
    created: str = ""
    command: str = ""
    ceilings: Ceilings | None = None
    roofline: Roofline | None = None
    curve: Sweep | None = None
    contexts: Sweep | None = None
    operators: OperatorTimes | None = None
    gate: GateRecord | None = None
    load: LoadRecord | None = None
    conventions: Mapping[str, str] = field(default_factory=lambda: CONVENTIONS)
    schema_version: Literal[2] = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return {"schema_version": self.schema_version, "llmc": self.llmc, "created": self.created} | encode(self)
