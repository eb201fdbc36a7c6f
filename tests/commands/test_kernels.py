"""mrcnn gradcheck and mrcnn bench kernels: what the engine finds is shown, and a wrong kernel fails."""

import datetime
import json

import pytest

from mrcnn_cli.engine import kernels
from mrcnn_cli.errors import UserError


def test_gradcheck_shows_a_line_for_each_check_and_passes(mrcnn):
    outcome = mrcnn("gradcheck", "nms", "encode", "--device", "cpu")
    assert outcome.status == 0
    rows = kernels.gradcheck(["nms", "encode"])
    header, *lines = outcome.out.splitlines()
    assert header.split() == ["operator", "input", "check", "type", "error", "allowed"]
    assert [line.split()[:2] for line in lines] == [["ok", row["op"]] for row in rows]
    assert outcome.err == f"all {len(rows)} checks passed on cpu\n"


def test_gradcheck_takes_one_type_only_where_asked(mrcnn):
    rows = mrcnn("gradcheck", "roi_align", "--dtype", "bfloat16", "--json").json
    assert rows
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert all(row["passed"] for row in rows)


def test_a_wrong_operator_fails_and_is_named(mrcnn, monkeypatch):
    right = kernels.nms.nms
    monkeypatch.setattr(kernels.nms, "nms", lambda *arguments: right(*arguments)[:-1])
    outcome = mrcnn("gradcheck", "nms", "encode", "--device", "cpu")
    assert outcome.status == 1
    assert any(line.split()[:2] == ["fail", "nms"] for line in outcome.out.splitlines())
    assert outcome.error == f"2 of {len(outcome.out.splitlines()) - 1} checks failed on cpu: nms"
    # A result of the wrong shape has an infinite error, which JSON cannot tell.
    assert [row["error"] for row in mrcnn("gradcheck", "nms", "--json").json] == [None, None]


@pytest.mark.parametrize("verb", [["gradcheck"], ["bench", "kernels"]], ids=" ".join)
def test_an_unknown_operator_names_the_closest(mrcnn, verb):
    outcome = mrcnn(*verb, "roi_aling")
    assert outcome.status == 1
    assert outcome.out == ""
    assert outcome.error == "roi_aling: unknown operator; did you mean 'roi_align'?"


@pytest.mark.parametrize("verb", [["gradcheck"], ["bench", "kernels"]], ids=" ".join)
def test_a_device_that_is_not_there_is_refused(mrcnn, verb):
    outcome = mrcnn(*verb, "--device", "cuda:99")
    assert outcome.status == 1
    assert outcome.error.startswith("--device cuda:99: not usable here")


def test_an_unknown_type_names_those_there_are(mrcnn):
    assert mrcnn("gradcheck", "--dtype", "int8").error.startswith("--dtype int8: unknown; known: float64, float32")


def test_bench_reports_times_ratios_and_where_they_were_taken(mrcnn, tmp_path):
    words = ["bench", "kernels", "grid_anchors", "--device", "cpu", "--threads", "1", "--against", "plain"]
    outcome = mrcnn(*words, "--out", "results/times.json", "--json")
    assert outcome.status == 0
    report = outcome.json
    assert json.loads((tmp_path / "results" / "times.json").read_text()) == report
    assert datetime.datetime.fromisoformat(report["date"]).tzinfo is not None
    assert any(line.startswith("torch ") for line in report["environment"])
    assert any(line.startswith("cpu ") for line in report["environment"])
    (row,) = report["rows"]
    assert (row["op"], row["threads"]) == ("grid_anchors", 1)
    assert 0 < row["ms_low"] <= row["ms"] <= row["ms_high"]
    assert row["plain_ratio"] > 0
    assert row["plain_ratio_fresh"] > 0
    assert row["share_of_copy"] > 0


def row(case, **values):
    times = {"ms": 2.0, "ms_low": 1.9, "ms_high": 2.1, "rounds": 9}
    return {"op": "nms", "case": case, "device": "cpu", "threads": 2, **times, **values}


def test_the_table_has_columns_for_each_peer_and_for_the_machines_limits(mrcnn, monkeypatch):
    rows = [
        row("a", plain_ms=9.0, plain_ratio=4.5, gigabytes_per_second=8.0, share_of_copy=0.5),
        row("b", other_ms=4.0, other_ratio=2.0, share_of_peak=0.25),
    ]
    monkeypatch.setattr(kernels, "bench", lambda *_, **__: iter(rows))
    title, header, first, second = mrcnn("bench", "kernels").out.splitlines()
    assert title == "cpu, 2 threads"
    assert header.split("  ")[-1].strip() == "of peak"
    assert first.split() == ["nms", "a", "2.000", "10%", "9.000", "4.5x", "-", "-", "8.0", "50%", "-"]
    assert second.split() == ["nms", "b", "2.000", "10%", "-", "-", "4.000", "2.0x", "-", "-", "25%"]


def test_the_ratio_of_a_fresh_process_stands_beside(mrcnn, monkeypatch):
    rows = [row("a", plain_ms=9.0, plain_ratio=4.5, plain_ratio_fresh=3.0)]
    monkeypatch.setattr(kernels, "bench", lambda *_, **__: iter(rows))
    title, header, line = mrcnn("bench", "kernels").out.splitlines()
    assert "fresh: the ratio in a process with PyTorch's own allocator" in title
    assert header.split()[-6:] == ["fresh", "GB/s", "of", "copy", "of", "peak"]
    assert line.split()[4:7] == ["9.000", "4.5x", "3.0x"]


def test_the_ratios_are_drawn(mrcnn, monkeypatch, tmp_path):
    rows = [row("a", plain_ms=9.0, plain_ratio=4.5)]
    monkeypatch.setattr(kernels, "bench", lambda *_, **__: iter(rows))
    outcome = mrcnn("bench", "kernels", "--plot", "pictures/kernels.png")
    assert outcome.status == 0
    assert "written  pictures/kernels.png" in outcome.err
    assert (tmp_path / "pictures" / "kernels.png").read_bytes().startswith(b"\x89PNG")


def test_answers_that_differ_are_an_error_and_nothing_is_written(mrcnn, monkeypatch, tmp_path):
    def bench(*_, **__):
        raise UserError("nms, a: our answer differs from plain's by 1")
        yield

    monkeypatch.setattr(kernels, "bench", bench)
    outcome = mrcnn("bench", "kernels", "--out", "times.json")
    assert outcome.status == 1
    assert "our answer differs" in outcome.error
    assert not (tmp_path / "times.json").exists()
