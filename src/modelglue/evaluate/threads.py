"""How many threads a model is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 30_000_000
"""Parameters below which one thread is faster: waking the others takes longer than the work."""


@contextmanager
def threads_for(parameters: int) -> Iterator[None]:
    """Inside the block torch uses one thread if models are small; outside what it used before."""
    before = torch.get_num_threads()
    if parameters < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
