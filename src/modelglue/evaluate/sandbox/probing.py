"""Find the strongest sandbox that this machine offers."""

from modelglue.evaluate.sandbox.bubblewrap import Bubblewrap
from modelglue.evaluate.sandbox.interface import Sandbox


def probe(*, unsafe: bool = False) -> Sandbox:
    """The strongest sandbox here."""
    return Bubblewrap()
