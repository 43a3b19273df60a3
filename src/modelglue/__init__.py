"""modelglue makes one better language model of the ones that you have, without training.

Importing this loads no torch; each name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelglue.checkpoint.reader import Checkpoint as Checkpoint
    from modelglue.checkpoint.source import open_checkpoint as open_checkpoint

__version__ = "0.1.0"

_PUBLIC = {
    "Checkpoint": "modelglue.checkpoint.reader",
    "open_checkpoint": "modelglue.checkpoint.source",
}

__all__ = ["Checkpoint", "__version__", "open_checkpoint"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'modelglue' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
