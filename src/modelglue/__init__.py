"""modelglue makes one better language model of the ones that you have, without training.

Importing this loads no torch; each name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from modelglue import errors as errors

if TYPE_CHECKING:
    from modelglue.checkpoint.reader import Checkpoint as Checkpoint
    from modelglue.checkpoint.source import open_checkpoint as open_checkpoint
    from modelglue.mixture.bundle import Bundle as Bundle
    from modelglue.mixture.mix import mix as mix
    from modelglue.recipe.config import load_recipe as load_recipe
    from modelglue.recipe.evaluate import evaluate_model as evaluate_model
    from modelglue.recipe.glue import glue as glue
    from modelglue.zoo.cluster import cluster as cluster
    from modelglue.zoo.inspect import describe as describe

__version__ = "0.1.0"

_PUBLIC = {
    "Bundle": "modelglue.mixture.bundle",
    "Checkpoint": "modelglue.checkpoint.reader",
    "cluster": "modelglue.zoo.cluster",
    "describe": "modelglue.zoo.inspect",
    "evaluate_model": "modelglue.recipe.evaluate",
    "glue": "modelglue.recipe.glue",
    "load_recipe": "modelglue.recipe.config",
    "mix": "modelglue.mixture.mix",
    "open_checkpoint": "modelglue.checkpoint.source",
}

__all__ = ["__version__", "errors", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'modelglue' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
