"""What the demo does where generated code cannot be contained: leave the code task out, say so."""

from dataclasses import replace

from modelglue.errors import SandboxUnavailable
from modelglue.evaluate.sandbox import probe
from modelglue.recipe.config import RecipeConfig


def without_code_where_unsafe(config: RecipeConfig) -> tuple[RecipeConfig, tuple[str, ...]]:
    """The recipe, less its code tasks if nothing here can contain them; and remarks that say so."""
    risky = [task for task in config.tasks if task.open().runs_code]
    if not risky or config.unsafe_code:
        return config, ()
    try:
        probe()
    except SandboxUnavailable as error:
        names = ", ".join(task.name for task in risky)
        kept = tuple(task for task in config.tasks if task not in risky)
        note = f"left out: {names}, which runs model-written code. {error}"
        return replace(config, tasks=kept), (note,)
    return config, ()
