from llmc.runtimes.bench.document import read_report, report_text, write_report
from llmc.runtimes.bench.formats import FORMATS
from llmc.runtimes.bench.load.options import PointPlan
from llmc.runtimes.bench.load.table import load_lines, load_row

from .samples import exchange, failed, load_sample, point_of, requests_of

EXCHANGES = [exchange(at, at + 0.5, at + 0.75, at + 1.0) for at in range(7)]
POINTS = [
    point_of(*EXCHANGES, failed(0.0, "HTTP 500: no", 1.0), plan=PointPlan(users=users), limits="ttft=600ms")
    for users in (1, 2)
]
REPORT = load_sample(*POINTS, requests=requests_of(*EXCHANGES), slo="ttft=600ms", users=(1, 2))


def test_the_tables_have_every_load_with_its_figures() -> None:
    text = FORMATS["md"](REPORT)
    assert "| 1 user | mine | 8 | 1 | 0.7 | 2.1 | 0.7 | 88% |" in text
    assert "| 2 users | mine | 500 |" in text
    assert "≥500" in text, "p99 of seven requests has no upper bound"
    assert "p99 takes 368" in text
    assert "Throughput" not in text


def test_no_limit_no_column_and_enough_requests_no_mark() -> None:
    many = [exchange(at / 100, at / 100 + 0.5, at / 100 + 0.6) for at in range(400)]
    report = load_sample(point_of(*many))
    text = FORMATS["md"](report)
    assert "goodput" not in text
    assert "≥" not in text
    assert report.load is not None
    assert len(load_lines(report.load)) == 2


def test_a_document_is_read_back_as_it_was(tmp_path) -> None:
    write_report(REPORT, tmp_path / "load.json")
    assert report_text(read_report(tmp_path / "load.json")) == report_text(REPORT)
    assert read_report(tmp_path / "load.json").load == REPORT.load


def test_a_line_for_each_request_and_a_row_for_each_load() -> None:
    lines = FORMATS["jsonl"](REPORT).splitlines()
    assert len(lines) == 7
    assert '"kind": "load request"' in lines[0]
    head, *rows = FORMATS["csv"](REPORT).splitlines()
    assert head.startswith("created,cpu_model,gpus,label,point,repeat,users,rate,requests,ok")
    assert len(rows) == 2


def test_a_row_has_figures_and_empty_cells() -> None:
    row = load_row(point_of(exchange(0.0, 1.0)))
    assert (row["ttft_ms_p99"], row["tpot_ms_p50"], row["goodput_per_s"]) == (1000.0, None, None)
    assert row["generator_is_limit"] is False
