"""The first half of the recipe alone: families, and what is worth merging in each."""

from modelglue.evaluate.threads import threads_for
from modelglue.recipe.assemble import search_paths
from modelglue.recipe.choose import choose_in_family, find_families
from modelglue.recipe.config import RecipeConfig
from modelglue.recipe.glue import ordered_families
from modelglue.recipe.inputs import open_inputs
from modelglue.recipe.rundir import RunDirectory
from modelglue.recipe.session import Session
from modelglue.report.data import SearchPath
from modelglue.report.events import Listener, silent


def search_families(config: RecipeConfig, *, listen: Listener = silent) -> tuple[SearchPath, ...]:
    """Every strategy's path in every family of at least two; no report item is looked at.

    `glue` with the same recipe goes on from what this leaves in the run directory.
    """
    with (
        open_inputs(config) as inputs,
        RunDirectory(config.output, config.to_mapping()) as run,
        threads_for(max(model.parameters for model in inputs.models.values())),
    ):
        session = Session(config, inputs, run, listen)
        families = ordered_families(config, find_families(session))
        choices = [
            choose_in_family(session, i, members) for i, members in enumerate(families, start=1)
        ]
        return search_paths(choices)
