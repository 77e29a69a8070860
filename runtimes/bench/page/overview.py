"""Section: what was measured, on what, when, and what a reader must know of it.

In: the runs. Out: a section with a list for each document, a table of engines, and warnings.
"""

from __future__ import annotations

from llmc.runtimes.bench.page.parts import Section, paragraph, size_text, table
from llmc.runtimes.bench.page.runs import Document, Engine, Runs
from llmc.runtimes.bench.page.values import Value
from llmc.runtimes.charts.figures import figure
from llmc.runtimes.charts.markup import Markup, element, join


def overview_section(runs: Runs) -> Section:
    """Documents, engines, warnings."""
    parts = [_document(document, alone=len(runs.documents) == 1) for document in runs.documents]
    return Section("measured", "What was measured", join([*parts, _engines(runs)]))


def _document(document: Document, *, alone: bool) -> Markup:
    value = document.value
    facts = {
        "Date": value.at("created").text or value.at("date").text,
        "Command": _command(value.at("command")),
        "Machine": _machine(value.at("machine")),
        "GPU": "; ".join(_gpu(gpu) for gpu in value.at("machine", "gpus")),
        "System": _system(value.at("machine")),
        "Packages": _packages(value),
        "Memory bandwidth": _bandwidth(value),
        "Method": _method(value.at("options")) if value.at("load").raw is None else _load_method(value.at("load")),
        "Other load": _load(value.at("other_load")),
    }
    entries = [
        part
        for name, text in facts.items()
        if text
        for part in (element("dt", name), element("dd", element("code", text) if name == "Command" else text))
    ]
    warnings = [
        element("p", element("strong", "Warning: "), it.text, class_="warning") for it in value.at("warnings")
    ]
    head = None if alone else element("h3", document.name)
    return join([head, element("dl", *entries), *warnings])


def _command(value: Value) -> str:
    return value.text or " ".join(word.text for word in value)


def _machine(machine: Value) -> str:
    cores, memory = machine.at("physical_cores").positive, machine.at("memory_bytes").positive
    parts = [
        machine.at("cpu_model").text,
        f"{cores:.0f} cores" if cores else "",
        f"{memory / 2**30:.0f} GiB" if memory else "",
        " ".join(name.text for name in machine.at("isa")),
    ]
    return ", ".join(part for part in parts if part)


def _gpu(gpu: Value) -> str:
    memory, driver = gpu.at("memory_bytes").positive, gpu.at("driver").text
    parts = [gpu.at("name").text, f"{memory / 2**30:.0f} GiB" if memory else "", f"driver {driver}" if driver else ""]
    return ", ".join(part for part in parts if part)


def _system(machine: Value) -> str:
    python = machine.at("python").text
    parts = [machine.at("operating_system").text, machine.at("architecture").text, python and f"Python {python}"]
    return ", ".join(part for part in parts if part)


def _packages(value: Value) -> str:
    versions = {name: it.text for name, it in value.at("machine", "packages").fields().items() if it.text}
    if value.at("llmc").text:
        versions = {"llmc": value.at("llmc").text} | versions
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _bandwidth(value: Value) -> str:
    read, threads = value.at("bandwidth", "bytes_per_second").spread, value.at("bandwidth", "threads").positive
    copied = value.at("copy_bandwidth", "bytes_per_second").spread
    parts = []
    if read is not None:
        with_threads = f" with {threads:.0f} threads" if threads else ""
        parts.append(f"read {figure(read.median / 1e9)} GB/s{with_threads}")
    if copied is not None:
        parts.append(f"GPU, read and written, {figure(copied.median / 1e9)} GB/s")
    return "; ".join(parts)


def _method(options: Value) -> str:
    runs, threads, seed = (options.at(name).number for name in ("runs", "threads", "seed"))
    if not options.fields():
        return ""
    parts = [
        f"{runs:.0f} rounds" if runs else "",
        "engines one at a time" if options.at("one_at_a_time").raw is True else "engines in turns",
        f"{threads:.0f} threads each" if threads else "each engine's own threads",
        "" if seed is None else f"seed {seed:.0f}",
    ]
    return ", ".join(part for part in parts if part)


def _load_method(load: Value) -> str:
    """How requests came, and how long."""
    options = load.at("options")
    seed, warm_up, duration = (options.at(name).number for name in ("seed", "warm_up", "duration"))
    rows = load.at("rows").number
    parts = [
        "requests under load",
        f"{options.at('arrivals').text} arrivals" if list(options.at("rate")) else "",
        f"trace {load.at('trace', 'file').text}" if load.at("trace", "file").text else "",
        f"prompts of {options.at('input_len').text} and answers of {options.at('output_len').text} tokens",
        "" if duration is None else f"{duration:g} s",
        "" if warm_up is None else f"after {warm_up:g} s that do not count",
        "" if rows is None else f"{rows:.0f} at a time",
        "" if seed is None else f"seed {seed:.0f}",
        "interrupted" if load.at("complete").raw is False else "",
    ]
    return ", ".join(part for part in parts if part)


def _load(load: Value) -> str:
    before, after = load.at("before").number, load.at("after").number
    if before is None or after is None:
        return ""
    return f"{before:.0%} of the cores before, {after:.0%} after"


def _engines(runs: Runs) -> Markup:
    rows = [(engine.title, *(text(engine, runs) for text in _COLUMNS.values())) for engine in runs.engines]
    kept = [i for i in range(len(_COLUMNS)) if any(row[i + 1] for row in rows)]
    names = list(_COLUMNS)
    cells = [(row[0], *(row[i + 1] for i in kept)) for row in rows]
    note = paragraph("Each engine keeps its number, colour and marker through the page.")
    return join([element("h3", "Engines"), note, table(("engine", *(names[i] for i in kept)), cells)])


def _runtime(engine: Engine, runs: Runs) -> str:
    info = engine.value.at("info")
    return " ".join(part for part in (info.at("runtime").text, info.at("version").text) if part)


def _precision(engine: Engine, runs: Runs) -> str:
    return engine.value.at("info", "precision").text


def weight_bytes(engine: Engine) -> float | None:
    """Of its files, else what its runtime says that it holds."""
    return engine.value.at("artifact", "bytes").positive or engine.value.at("info", "weight_bytes").positive


def _size(engine: Engine, runs: Runs) -> str:
    return size_text(weight_bytes(engine))


def _bits(engine: Engine, runs: Runs) -> str:
    bits = engine.value.at("artifact", "bits_per_weight").positive
    return figure(bits) if bits else ""


def _memory(engine: Engine, runs: Runs) -> str:
    peaks = [it.value.at("peak_rss_bytes").positive or 0.0 for it in runs.results() if it.engine is engine]
    return size_text(max(peaks, default=0.0) or None)


def _loading(engine: Engine, runs: Runs) -> str:
    load = engine.value.at("load_s").spread
    return f"{figure(load.median)} s" if load else ""


def _hash(engine: Engine, runs: Runs) -> str:
    return engine.value.at("artifact", "sha256").text[:12]


_COLUMNS = {
    "runtime": _runtime,
    "precision": _precision,
    "size": _size,
    "bits/weight": _bits,
    "load": _loading,
    "peak RSS": _memory,
    "SHA-256": _hash,
}
"""Heading -> text; a column is shown if some engine has it."""
