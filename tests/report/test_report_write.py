import subprocess
import sys

import pytest
from report_sample import make_report

from modelglue.journal import read_json
from modelglue.report import RunReport, write_report
from modelglue.report import write as module


def test_three_files_are_written_and_nothing_beside_them(tmp_path):
    write_report(make_report(4), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]


def test_the_page_can_be_made_again_from_the_json_alone(tmp_path):
    write_report(make_report(4), tmp_path / "a")
    write_report(RunReport.from_json(read_json(tmp_path / "a/report.json")), tmp_path / "b")
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_failure_leaves_the_page_that_stood(tmp_path, monkeypatch):
    write_report(make_report(4), tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def fail(report: RunReport) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr(module, "render_html", fail)
    with pytest.raises(RuntimeError, match="no page"):
        write_report(make_report(6), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_a_name_that_is_not_unicode_can_be_written(tmp_path):
    report = RunReport.from_json({**make_report(2).to_json(), "title": "bad \udcff name"})
    write_report(report, tmp_path)
    assert read_json(tmp_path / "report.json")["title"] == "bad � name"
    assert "bad � name" in (tmp_path / "report.html").read_text()


def test_the_report_needs_no_torch():
    code = (
        "import sys, modelglue.report, modelglue.report.terminal; "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
