"""The files that a finished run leaves for a person and for a script."""

from pathlib import Path

from modelglue.errors import InputError
from modelglue.journal import read_json, write_json, write_text
from modelglue.report.data import RunReport
from modelglue.report.html import render_html
from modelglue.report.markdown import render_markdown


def write_report(report: RunReport, folder: Path) -> None:
    """Write report.json, report.md and report.html, each whole or not at all.

    The page comes last: whoever finds it finds the other two beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report.to_json())
    write_text(folder / "report.md", render_markdown(report))
    write_text(folder / "report.html", render_html(report))


def read_report(folder: Path) -> RunReport:
    """The report of a finished run.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = folder / "report.json"
    if not path.exists():
        raise InputError(f"{folder} holds no report.json; is the run finished? `modelglue glue` it")
    try:
        return RunReport.from_json(read_json(path))
    except ValueError as error:
        raise InputError(f"{path} is no report: {error}") from None
