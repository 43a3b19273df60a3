"""Progress goes to standard error, and shows what is under way."""

import pytest

from modelglue.report.events import Event, silent
from modelglue.report.progress import bytes_progress, run_progress, zoo_progress


def test_a_run_shows_stages_and_the_best_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    with run_progress() as listen:
        listen(Event("search-1", "0.5·a + 0.5·b", 3, 10, best=0.75))
        listen(Event("report", "glued [bold]model[/]", 1, 4))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "search-1" in captured.err
    assert "report" in captured.err


def test_training_shows_models_and_their_times(capsys: pytest.CaptureFixture[str]) -> None:
    with zoo_progress() as told:
        told(model="base", step=10, steps=100)
        told(model="base", seconds=3.2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "train base" in captured.err
    assert "3 s" in captured.err


def test_a_bar_of_known_size_is_filled(capsys: pytest.CaptureFixture[str]) -> None:
    with bytes_progress("merging into out") as told:
        told(5, 10)
        told(10, 10)
    assert "10/10" in capsys.readouterr().err


def test_a_silent_listener_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent(Event("search-1"))
    assert capsys.readouterr() == ("", "")
