"""A search as an Optuna study, to be looked at with Optuna's own tools (optuna-dashboard).

The study mirrors the search and nothing reads it back: the journal is the truth. So a mirror that a
kill left behind, or tore, is made whole when the search goes on: it is told of all candidates again
and adds those that it lacks.

A candidate that was scored on all items is a complete trial; one that was not, whose value is an
estimate, is a pruned one, so that Optuna's best trial is one that was measured; one that could not
be scored is a failed one.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelglue.errors import ConfigError
from modelglue.search.problem import Tried

MARK = "candidate"
"""The attribute by which a trial is known again."""


class Study:
    """The mirror of one search.

    Args:
        storage: a path for Optuna's journal file, or the URL of a database.
        name: of the study; several may share a storage.

    Raises:
        ConfigError: the database cannot be used.
    """

    def __init__(self, storage: str | Path, name: str) -> None:
        self._name = name
        self._path = None if "://" in str(storage) else Path(storage)
        if self._path is not None:
            _recover(self._path)
        self._database = None if self._path is not None else _database(str(storage))
        self.add([])

    def add(self, tried: Sequence[Tried]) -> None:
        """Add those candidates that the study lacks, in one go; `Problem.tell` may call it."""
        with _quiet():
            if self._path is None:
                self._fill(self._database, tried)
            else:
                self._fill_file(self._path, tried)

    def _fill_file(self, path: Path, tried: Sequence[Tried]) -> None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        backend = _AtOnce(JournalFileBackend(str(path)))
        self._fill(JournalStorage(backend), tried)  # type: ignore[no-untyped-call, unused-ignore]
        backend.write()

    def _fill(self, storage: Any, tried: Sequence[Tried]) -> None:
        import optuna

        if self._name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=self._name, storage=storage)
        else:
            study = optuna.create_study(
                study_name=self._name, storage=storage, direction="maximize"
            )
        known = {trial.user_attrs.get(MARK) for trial in study.get_trials(deepcopy=False)}
        lacking = {_mark(one): one for one in tried if _mark(one) not in known}
        study.add_trials([_trial(one) for one in lacking.values()])


def write_study(storage: str | Path, name: str, tried: Sequence[Tried]) -> None:
    """Add to a study those candidates that it lacks; see `Study`."""
    Study(storage, name).add(tried)


class _AtOnce:
    """Optuna's journal file, read once and appended to in one go: one fsync, not one a trial."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._read = list(file.read_logs(0))
        self._waiting: list[Mapping[str, Any]] = []

    def read_logs(self, log_number_from: int) -> list[Mapping[str, Any]]:
        """See Optuna's `BaseJournalBackend`."""
        return [*self._read, *self._waiting][log_number_from:]

    def append_logs(self, logs: Sequence[Mapping[str, Any]]) -> None:
        """See Optuna's `BaseJournalBackend`."""
        self._waiting += logs

    def write(self) -> None:
        """Append what waits."""
        if self._waiting:
            self._file.append_logs(self._waiting)


def _database(url: str) -> Any:
    import optuna
    import sqlalchemy

    try:
        with _quiet():
            return optuna.storages.RDBStorage(url)
    except (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        ImportError,
        ValueError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"search.storage: {url} cannot be used: {reason}") from None


def _recover(path: Path) -> None:
    """Undo what a kill may leave: a lock that nobody holds, a torn last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.lock").unlink(missing_ok=True)
    data = path.read_bytes() if path.exists() else b""
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    try:
        for line in lines:
            json.loads(line)
    except ValueError:
        lines = []  # Damaged further up: made anew from what the search tells.
    whole = b"".join(line + b"\n" for line in lines)
    if whole != data:
        path.write_bytes(whole)


def _trial(one: Tried) -> Any:
    from optuna.distributions import FloatDistribution
    from optuna.trial import TrialState, create_trial

    failed = one.failure is not None
    state = TrialState.COMPLETE if one.whole else TrialState.PRUNED
    attributes = {
        MARK: _mark(one),
        "generation": one.generation,
        "member": one.member,
        "items": one.items,
        "stopped": one.stopped,
        **({"failure": one.failure} if failed else {}),
    }
    return create_trial(
        state=TrialState.FAIL if failed else state,
        value=None if failed else one.value,
        params=one.coefficients,
        distributions={
            name: FloatDistribution(*_range(number)) for name, number in one.coefficients.items()
        },
        user_attrs=attributes,
    )


def _range(number: float) -> tuple[float, float]:
    """A range that holds the number, the same for nearly all: Optuna wants one for each."""
    reach = 2.0 ** max(0, math.ceil(math.log2(abs(number)))) if number else 1.0
    return -reach, reach


def _mark(one: Tried) -> str:
    # A candidate that was first estimated and then scored on all items is shown as both.
    place = [one.generation, one.member] if one.generation is not None else None
    return json.dumps([place, one.coefficients])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's lines on what it creates; what the user set holds again afterwards."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
