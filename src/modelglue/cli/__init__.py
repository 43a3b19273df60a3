"""The command line: one thin command a public function. Only this and `report` print.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

from modelglue.cli import gluing, merging, mixing, models, serving
from modelglue.cli.app import main as main

__all__ = ["gluing", "main", "merging", "mixing", "models", "serving"]
