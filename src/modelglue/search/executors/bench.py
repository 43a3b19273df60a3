"""What happens inside a worker, wherever it runs."""

import os
import pickle
import traceback
from dataclasses import dataclass

from modelglue.errors import RunError
from modelglue.search.executors import Evaluate, Factory
from modelglue.search.executors.pool import Raised, Ready
from modelglue.search.problem import Coefficients, Trial

# What torch, numpy's libraries and numba read when they are imported.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Seat:
    """Which worker this is.

    Attributes:
        index: counted from 0.
        threads: that it may use, so that all workers together use no more than there are cores;
            None for as many as it likes.
        sees_all: whether it sees every accelerator of the machine, and must choose its own; Ray
            shows each worker no other than its own.
    """

    index: int = 0
    threads: int | None = None
    sees_all: bool = True


_seat = Seat()


def seat() -> Seat:
    """The worker that this process is; the first of one where it is none."""
    return _seat


class Bench:
    """A worker from inside.

    Args:
        factory: a pickled `Factory`: it is read only after the number of threads is set, as
            reading it imports what it needs.
    """

    def __init__(self, factory: bytes, seat: Seat) -> None:
        self._factory, self._seat = factory, seat
        self._evaluate: Evaluate | None = None

    def build(self) -> Ready | Raised:
        """Get ready for jobs."""
        global _seat
        _seat = self._seat
        if self._seat.threads is not None:
            os.environ.update(dict.fromkeys(_THREADS, str(self._seat.threads)))
        try:
            factory: Factory = pickle.loads(self._factory)
            self._evaluate = factory()
        except Exception as error:  # noqa: BLE001 (raised again where it is heard of)
            return _raised(error)
        return Ready()

    def evaluate(self, coefficients: Coefficients, block: int | None) -> Trial | Raised:
        """Do a job."""
        if self._evaluate is None:
            raise RuntimeError("nothing was built")
        try:
            return self._evaluate(coefficients, block)
        except Exception as error:  # noqa: BLE001 (raised again where it is heard of)
            return _raised(error)


def _raised(error: Exception) -> Raised:
    """The error as it is, if it survives the way; else its type and message."""
    where = "".join(traceback.format_exception(error))
    error.__cause__ = error.__context__ = None  # these need not survive it, and are told as text
    try:
        same = pickle.loads(pickle.dumps(error))
        survives = type(same) is type(error) and str(same) == str(error)
    except Exception:  # noqa: BLE001 (whatever keeps it from being read back)
        survives = False
    told = error if survives else RunError(f"{type(error).__name__}: {error}")
    return Raised(told, where)
