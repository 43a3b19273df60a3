"""Many checkpoints into one of the same size.

The package itself can be called: `modelglue.merge(config, out)` is `modelglue.merge.run.merge`.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package that is also the function it is named for, so that neither hides the other."""

    def __call__(self, config: Any, out: Path | str, **options: Any) -> Path:
        """See `modelglue.merge.run.merge`."""
        from modelglue.merge.run import merge

        return merge(config, out, **options)


sys.modules[__name__].__class__ = _Callable
