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
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from modelglue.errors import ConfigError
from modelglue.search.problem import Tried

MARK = "candidate"
"""The attribute by which a trial is known again."""


class Study:
    """The mirror of one search; whoever opens it closes it.

    Args:
        storage: a path for Optuna's journal file, or as text the URL of a database.
        name: of the study; several may share a storage.

    Raises:
        ConfigError: the database cannot be used, or the file is no journal of Optuna's.
    """

    def __init__(self, storage: str | Path, name: str) -> None:
        import optuna

        with _quiet():
            self._journal = _AtOnce(storage) if isinstance(storage, Path) else None
            self._storage = _database(str(storage)) if self._journal is None else _of(self._journal)
            if name in optuna.get_all_study_names(self._storage):
                self._study = optuna.load_study(study_name=name, storage=self._storage)
            else:
                self._study = optuna.create_study(
                    study_name=name, storage=self._storage, direction="maximize"
                )
            trials = self._study.get_trials(deepcopy=False)
        self._known = {trial.user_attrs.get(MARK) for trial in trials}
        self.add([])

    def add(self, tried: Sequence[Tried]) -> None:
        """Add those candidates that the study lacks, in one go; `Problem.tell` may call it."""
        lacking = {_mark(one): one for one in tried if _mark(one) not in self._known}
        with _quiet():
            self._study.add_trials([_trial(one) for one in lacking.values()])
            if self._journal is not None:
                self._journal.write()
        self._known |= lacking.keys()

    def close(self) -> None:
        """Let go of a database."""
        if self._journal is None:
            _disconnect(self._storage)


class Mirror:
    """A study that the search can do without: what goes wrong with it ends it, and is noted.

    Args:
        storage, name: see `Study`; it is opened when there is something to add.
        note: told why the study is not whole.
    """

    def __init__(self, storage: str | Path, name: str, *, note: Callable[[str], None]) -> None:
        self._storage, self._name, self._note = storage, name, note
        self._study: Study | None = None
        self._ended = False

    def add(self, tried: Sequence[Tried]) -> None:
        """See `Study.add`."""
        if self._ended:
            return
        try:
            self._study = self._study or Study(self._storage, self._name)
            self._study.add(tried)
        except Exception as error:  # noqa: BLE001 (a disk, a database, a network: all that can go wrong)
            self.close()
            self._note(
                f"The Optuna study {self._name!r} is not whole: {_reason(error)}. "
                "The search went on without it; the journal has every trial."
            )

    def close(self) -> None:
        """See `Study.close`; nothing is added any more."""
        self._ended = True
        if self._study is not None:
            with suppress(Exception):  # of a database that is gone there is nothing to let go
                self._study.close()


def write_study(storage: str | Path, name: str, tried: Sequence[Tried]) -> None:
    """Add to a study those candidates that it lacks; see `Study`."""
    with closing(Study(storage, name)) as study:
        study.add(tried)


def storage_problem(url: str) -> str | None:
    """Why a database cannot hold studies; None if it can. It is made ready for them."""
    try:
        _disconnect(_database(url))
    except ConfigError as error:
        return str(error)
    return None


class _AtOnce:
    """Optuna's journal file, read once and appended to in one go: one fsync, not one a trial."""

    def __init__(self, path: Path) -> None:
        from optuna.storages.journal import JournalFileBackend

        _recover(path)
        self._file = JournalFileBackend(str(path))
        self._logs: list[Mapping[str, Any]] = list(self._file.read_logs(0))
        self._written = len(self._logs)

    def read_logs(self, log_number_from: int) -> list[Mapping[str, Any]]:
        """See Optuna's `BaseJournalBackend`."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: Sequence[Mapping[str, Any]]) -> None:
        """See Optuna's `BaseJournalBackend`."""
        self._logs += logs

    def write(self) -> None:
        """Append what waits."""
        if waiting := self._logs[self._written :]:
            self._file.append_logs(waiting)
            self._written = len(self._logs)


def _of(journal: _AtOnce) -> Any:
    from optuna.storages import JournalStorage

    return JournalStorage(journal)  # type: ignore[no-untyped-call, unused-ignore]


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
        RuntimeError,
        ValueError,
    ) as error:
        raise ConfigError(f"search.storage: {url} cannot be used: {_reason(error)}") from None


def _disconnect(storage: Any) -> None:
    storage.remove_session()
    storage.engine.dispose()


def _reason(error: Exception) -> str:
    """What went wrong; Optuna says what it usually is, and its cause what it is."""
    deepest = error.__cause__ or error
    return (str(deepest).strip() or type(deepest).__name__).splitlines()[0].rstrip(".")


_START = b'{"op_code":'
"""How every line of Optuna's journal begins."""


def _recover(path: Path) -> None:
    """Undo what a kill may leave in a journal of Optuna's: a lock that nobody holds, a torn line.

    One that is damaged further up is set aside, and made anew from what the search tells.

    Raises:
        ConfigError: the file is something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.read_bytes() if path.exists() else b""
    if not (data.startswith(_START) or _START.startswith(data)):
        raise ConfigError(f"{path} is no journal of Optuna's; move it away")
    lock = Path(f"{path}.lock")
    if lock.is_symlink():
        lock.unlink()
    *lines, torn = data.split(b"\n")
    good = list(takewhile(_is_json, lines))
    if len(good) < len(lines) - 1:
        path.rename(_free(path))
    elif torn or len(good) < len(lines):
        os.truncate(path, sum(len(line) + 1 for line in good))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _free(path: Path) -> Path:
    """A name beside it that nothing has yet."""
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


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
