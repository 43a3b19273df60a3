"""Names of models."""

import shutil
from pathlib import Path

import pytest

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import InputError
from modelglue.zoo.names import unique_names


@pytest.fixture
def twins(llamas: list[Path], tmp_path: Path) -> list[Checkpoint]:
    """x/run/model, y/run/model, y/other."""
    paths = [tmp_path / "x/run/model", tmp_path / "y/run/model", tmp_path / "y/other"]
    return [Checkpoint.open(shutil.copytree(llamas[0], path)) for path in paths]


def test_models_are_called_by_their_folders(llamas: list[Path]) -> None:
    models = [Checkpoint.open(path) for path in llamas]
    assert unique_names(models) == ("base", "ft0", "ft1", "ft2")


def test_folders_of_one_name_are_told_apart_by_their_parents(twins: list[Checkpoint]) -> None:
    assert unique_names(twins) == ("x/run/model", "y/run/model", "other")


def test_the_names_given_are_taken(twins: list[Checkpoint]) -> None:
    assert unique_names(twins, ["a", "b", "c"]) == ("a", "b", "c")


def test_a_name_given_twice_is_refused(twins: list[Checkpoint]) -> None:
    with pytest.raises(InputError, match="two models are called a"):
        unique_names(twins, ["a", "b", "a"])


def test_too_few_names_are_refused(twins: list[Checkpoint]) -> None:
    with pytest.raises(InputError, match="2 names for 3 models"):
        unique_names(twins, ["a", "b"])


def test_a_folder_given_twice_is_refused(llamas: list[Path]) -> None:
    models = [Checkpoint.open(llamas[0]), Checkpoint.open(llamas[0])]
    with pytest.raises(InputError, match="was given twice"):
        unique_names(models)
