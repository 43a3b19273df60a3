"""modelglue makes one better language model of the ones that you have, without training.

Importing this loads no torch; each name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from modelglue import errors as errors

if TYPE_CHECKING:
    from modelglue import merge as merge
    from modelglue import methods as methods
    from modelglue.calibrate.compute import compute_statistics as compute_statistics
    from modelglue.checkpoint.reader import Checkpoint as Checkpoint
    from modelglue.checkpoint.source import open_checkpoint as open_checkpoint
    from modelglue.merge.state_dicts import merge_state_dicts as merge_state_dicts
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
    "compute_statistics": "modelglue.calibrate.compute",
    "describe": "modelglue.zoo.inspect",
    "evaluate_model": "modelglue.recipe.evaluate",
    "glue": "modelglue.recipe.glue",
    "load_recipe": "modelglue.recipe.config",
    "merge_state_dicts": "modelglue.merge.state_dicts",
    "mix": "modelglue.mixture.mix",
    "open_checkpoint": "modelglue.checkpoint.source",
}

_MODULES = ("merge", "methods")

__all__ = ["__version__", "errors", *_MODULES, *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"modelglue.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'modelglue' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
