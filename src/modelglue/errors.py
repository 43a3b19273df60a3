"""Every error that a user can meet.

    ModelGlueError
    ├── InputError                exit code 2: what was given cannot be used
    │   ├── ConfigError             a configuration; carries *all* its problems at once
    │   ├── UnknownName             a method, strategy, kind or level that nobody registered
    │   ├── CheckpointError
    │   │   ├── CheckpointNotFound    no such folder, or a folder that holds no model
    │   │   ├── CorruptCheckpoint     a file contradicts itself or its index
    │   │   ├── UnsupportedCheckpoint pickled code, an unknown dtype, an unknown adapter
    │   │   └── TensorNotFound
    │   ├── MergeError
    │   │   ├── ShapeMismatch
    │   │   ├── NonFiniteTensor
    │   │   ├── UnusableValues        parameters that nothing can be merged with
    │   │   └── NotMergeable          architecture or vocabulary differ
    │   ├── TaskError               a task file or a task's settings
    │   ├── MixtureError            experts or a router that cannot go together
    │   └── OutputExists            the place to write to is taken
    └── RunError                  exit code 1: the input was fine, the work failed
        ├── SandboxUnavailable      untrusted code would have to run unprotected
        ├── EvaluationError         a model gave no usable number (out of memory, say)
        │   └── NonFiniteOutput       it gave NaN or infinity
        ├── OutOfSpace              the disk cannot hold the result
        └── RunConflict             another process or another recipe owns the run directory

A message says what is wrong, where, and what to do about it.
"""

from collections.abc import Iterable


class ModelGlueError(Exception):
    """The root: `except ModelGlueError` catches whatever modelglue raises on purpose."""

    exit_code = 1


class InputError(ModelGlueError):
    """What was given cannot be used; nothing was done."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration is wrong; `problems` lists everything that is, one line each."""

    def __init__(self, problems: Iterable[str] | str, *, where: str = "") -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.where = where
        head = f"{where}: " if where else ""
        if len(self.problems) == 1:
            super().__init__(head + self.problems[0])
        else:
            lines = "".join(f"\n  - {problem}" for problem in self.problems)
            super().__init__(f"{head}{len(self.problems)} problems{lines}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_config_error, (self.problems, self.where)


def _rebuild_config_error(problems: tuple[str, ...], where: str) -> ConfigError:
    return ConfigError(problems, where=where)


class UnknownName(InputError):
    """A name that no file registered."""


class CheckpointError(InputError):
    """A checkpoint cannot be used."""


class CheckpointNotFound(CheckpointError):
    """There is no model at the place that was named."""


class CorruptCheckpoint(CheckpointError):
    """A file contradicts itself, its index or its configuration."""


class UnsupportedCheckpoint(CheckpointError):
    """A file is in a form that is refused on purpose or not known."""


class TensorNotFound(CheckpointError):
    """A checkpoint lacks a tensor that was asked for."""


class MergeError(InputError):
    """Models cannot be merged as asked."""


class ShapeMismatch(MergeError):
    """The same tensor has different shapes in different models."""


class NonFiniteTensor(MergeError):
    """A tensor holds NaN or infinity."""


class UnusableValues(MergeError):
    """Values of a method's parameters that nothing can be merged with: weights that cancel, say."""


class NotMergeable(MergeError):
    """Models differ in architecture or vocabulary."""


class TaskError(InputError):
    """A task's items or settings are wrong."""


class MixtureError(InputError):
    """Experts or a router cannot be combined as asked."""


class OutputExists(InputError):
    """The place to write to is taken."""


class RunError(ModelGlueError):
    """The input was fine; the work failed."""


class SandboxUnavailable(RunError):
    """Untrusted code would have to run unprotected, or its sandbox fails by itself."""


class EvaluationError(RunError):
    """A model gave no usable number."""


class NonFiniteOutput(EvaluationError):
    """A model gave NaN or infinity where a number was due."""


class OutOfSpace(RunError):
    """The disk cannot hold the result."""


class RunConflict(RunError):
    """Another process or another recipe owns the run directory."""
