"""A recipe is checked completely, all problems at once, before anything is opened."""

from pathlib import Path

import pytest
import yaml

from modelglue.errors import ConfigError
from modelglue.recipe.config import load_recipe, parse_recipe
from modelglue.recipe.search_config import SearchConfig

GOOD = {
    "models": ["models/base", "models/maths", "org/chat@main", "models/base+adapters/law"],
    "base": "models/base",
    "tasks": [
        {
            "name": "maths",
            "kind": "generate",
            "extract": "#### *(-?[0-9]+)",
            "max_new_tokens": 48,
            "search": "tasks/maths.search.jsonl",
            "report": "tasks/maths.report.jsonl",
        }
    ],
    "output": "runs/first",
}


def problems_of(**changes: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_recipe({**GOOD, **changes})
    return caught.value.problems


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    recipe = parse_recipe(GOOD, root=tmp_path)
    assert recipe.names == ("base", "maths", "chat@main", "base+law")
    assert recipe.threshold == 0.95
    assert recipe.search == SearchConfig()
    assert recipe.output == tmp_path / "runs/first"
    assert recipe.tasks[0].search == tmp_path / "tasks/maths.search.jsonl"


def test_all_problems_are_told_at_once_with_their_places() -> None:
    bad_task = {**GOOD["tasks"][0], "kind": "generat"}
    problems = problems_of(modells=[], tasks=[bad_task], threshold=1.5, batch_size=0, device=3)
    told = "\n".join(problems)
    assert len(problems) == 5
    for part in ('mean "models"', "tasks[0].kind", "threshold", "batch_size", "device"):
        assert part in told


def test_two_models_of_one_name_are_told_apart_by_their_folder() -> None:
    assert parse_recipe({**GOOD, "models": ["a/final", "b/final"]}).names == ("a/final", "b/final")


def test_two_models_that_are_called_the_same_are_refused() -> None:
    models = [{"model": "a", "name": "x"}, {"model": "b", "name": "x"}]
    assert problems_of(models=models) == ("models: 2 are called 'x'; tell them apart with name",)


def test_an_unknown_strategy_is_refused_with_the_nearest_spelling() -> None:
    (problem,) = problems_of(search={"strategies": ["heuristic_averag"]})
    assert "search.strategies[0]" in problem
    assert "heuristic_average" in problem


@pytest.mark.parametrize("prompts", [[], "text", [1], [""]])
def test_router_prompts_that_are_no_texts_are_refused(prompts: object) -> None:
    (problem,) = problems_of(models=[{"model": "a", "prompts": prompts}])
    assert problem.startswith("models[0].prompts")


@pytest.mark.parametrize("key", ["models", "tasks", "output"])
def test_what_has_no_default_must_be_there(key: str) -> None:
    recipe = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(ConfigError, match=key):
        parse_recipe(recipe)


def test_it_can_be_written_out_and_read_again(tmp_path: Path) -> None:
    recipe = parse_recipe(GOOD, root=tmp_path)
    mapping = recipe.to_mapping()
    del mapping["root"]
    assert parse_recipe(mapping, root=tmp_path) == recipe


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "glue.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert load_recipe(path, device="cuda", output=None).device == "cuda"


@pytest.mark.parametrize("text", ["[1, 2", "text", ""])
def test_a_file_that_holds_no_recipe_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "glue.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"glue\.yaml"):
        load_recipe(path)
