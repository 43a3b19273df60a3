"""The first half of the recipe alone: families, and what is worth merging in each."""

from dataclasses import dataclass

from modelglue.evaluate.threads import threads_for
from modelglue.recipe.assemble import acceptance_tests, search_paths
from modelglue.recipe.choose import find_families
from modelglue.recipe.config import RecipeConfig
from modelglue.recipe.family import choose_in_family, looks_of
from modelglue.recipe.family_choice import FamilyChoice
from modelglue.recipe.glue import ordered_families
from modelglue.recipe.inputs import open_inputs
from modelglue.recipe.rundir import RunDirectory
from modelglue.recipe.session import Session
from modelglue.report.data import AcceptanceTest, SearchPath
from modelglue.report.events import Listener, silent


@dataclass(frozen=True)
class Searched:
    """What searches alone came to.

    Attributes:
        paths: one a strategy in every family of at least two.
        acceptance: the tests of what they found, on items that they did not see.
        choices: the same with everything that a script may want to know.
        notes: remarks, as a report has them.
    """

    paths: tuple[SearchPath, ...]
    acceptance: tuple[AcceptanceTest, ...]
    choices: tuple[FamilyChoice, ...]
    notes: tuple[str, ...] = ()


def search_families(config: RecipeConfig, *, listen: Listener = silent) -> Searched:
    """Search every family of at least two, and test what is found; no report item is looked at.

    `glue` with the same recipe goes on from what this leaves in the run directory.
    """
    with (
        open_inputs(config) as inputs,
        RunDirectory(config.output, config.to_mapping()) as run,
        threads_for(max(model.parameters for model in inputs.models.values())),
    ):
        session = Session(config, inputs, run, listen)
        families = ordered_families(config, find_families(session))
        looks = looks_of(families, config.mixture)
        choices = [
            choose_in_family(session, number, members, looks=looks)
            for number, members in enumerate(families, start=1)
        ]
        tests = acceptance_tests(choices)
        return Searched(search_paths(choices), tests, tuple(choices), session.notes)
