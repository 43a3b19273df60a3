"""The run directory: what stands, stands whole; the same command goes on where a kill left off.

    runs/<name>/
      recipe.yaml         exactly what was asked, defaults filled in
      journal.jsonl       every evaluation, append-only
      stages/<stage>/     artifacts, and manifest.json, which is written last
      report.html report.md report.json

A stage is done if and only if its manifest stands.
"""

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from modelglue.errors import OutputExists, RunConflict
from modelglue.journal import Journal, read_json, write_json, write_text
from modelglue.recipe.search_config import ELSEWHERE

Work = Callable[[Path], dict[str, Any]]
"""(the stage's folder, empty) → what the manifest keeps; files are put into the folder."""


class RunDirectory:
    """One run on disk, owned by this process while it is open.

    Attributes:
        id: the same for as long as the run stands, and no other run's.

    Raises:
        RunConflict: another process is at work here, or the folder holds the run of another
            recipe.
        OutputExists: the folder holds something that is no run.
    """

    def __init__(self, path: Path, recipe: dict[str, Any]) -> None:
        self.path = path
        check_output(path)
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path)
        try:
            self.id = _keep_recipe(path / "recipe.yaml", recipe)
            self.journal = Journal(path / "journal.jsonl")
        except BaseException:
            os.close(self._lock)
            raise

    def stage(self, name: str, work: Work) -> dict[str, Any]:
        """What the stage's manifest holds; the work is done only if no manifest stands."""
        manifest = self.folder(name) / "manifest.json"
        if not manifest.exists():
            # Whatever a killed process left in the folder is not known to be whole.
            shutil.rmtree(manifest.parent, ignore_errors=True)
            manifest.parent.mkdir(parents=True)
            write_json(manifest, work(manifest.parent))
        result: dict[str, Any] = read_json(manifest)
        return result

    def done(self, name: str) -> bool:
        """Whether the stage's manifest stands."""
        return (self.folder(name) / "manifest.json").exists()

    def folder(self, stage: str) -> Path:
        """Where a stage keeps its files."""
        return self.path / "stages" / stage

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.journal.close()
        os.close(self._lock)


def check_output(path: Path) -> None:
    """Refuse a place that cannot become a run directory, before any work.

    Raises:
        OutputExists: it is a file, or a folder that holds something that is no run.
    """
    if path.exists() and not path.is_dir():
        raise OutputExists(f"output: {path} is a file; choose another folder")
    if path.is_dir() and not (path / "recipe.yaml").exists():
        strangers = [entry.name for entry in path.iterdir() if not _ours(entry.name)]
        if strangers:
            raise OutputExists(
                f"output: {path} holds {strangers[0]!r} and no run; choose a new or empty folder"
            )


def _ours(name: str) -> bool:
    return name == "run.lock" or name.startswith(".recipe.yaml.")


def _lock(path: Path) -> int:
    descriptor = os.open(path / "run.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        # The kernel lets go of it when the process ends, however it ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunConflict(f"another process is at work in {path}; wait for it or stop it") from None
    return descriptor


def _keep_recipe(path: Path, recipe: dict[str, Any]) -> str:
    """Write the recipe down, or see that it is the one that stands; the run's id."""
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    if not path.exists():
        # Another run of the same recipe in the same place is another run.
        write_text(path, f"# run {uuid.uuid4().hex}\n{text}")
    written = path.read_text(encoding="utf-8")
    standing, asked = _deciding(yaml.safe_load(written)), _deciding(yaml.safe_load(text))
    if standing != asked:
        keys = [k for k in {**standing, **asked} if standing.get(k) != asked.get(k)]
        raise RunConflict(
            f"{path.parent} holds the run of another recipe ({', '.join(keys)} differ); "
            "choose another output, or delete that folder"
        )
    return hashlib.blake2b(written.encode(), digest_size=4).hexdigest()


def _deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a recipe may decide a result; who works on it, and where, does not."""
    search = recipe.get("search")
    if not isinstance(search, dict):
        return recipe
    return {**recipe, "search": {k: v for k, v in search.items() if k not in ELSEWHERE}}
