"""Train a zoo: tasks, base, and every other model, each folder appearing only when whole."""

import multiprocessing
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from modelglue.errors import InputError, RunError, UnknownName
from modelglue.journal import read_json, sync_folder, write_json, write_text
from modelglue.minizoo.data.example import Split
from modelglue.minizoo.data.knowledge import Knowledge
from modelglue.minizoo.data.tasks import SKILLS, TASKS, task_lines
from modelglue.minizoo.preset import Member, Preset, Role, presets
from modelglue.registry import nearest

_EFFORT = "training.json"


@dataclass(frozen=True)
class ZooModel:
    """A trained model: what it is for, and what it took."""

    name: str
    role: Role
    skill: str | None
    path: Path
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Criterion:
    """The accuracy at which the base was to stop, and the last one measured before it did.

    A base that falls short has stopped at its largest number of steps: the zoo can be used, but
    merging may not work in it as it does in others.
    """

    target: float
    accuracy: float
    reached: bool

    @property
    def warning(self) -> str | None:
        """What to tell whoever trained the zoo; None if all is well."""
        if self.reached:
            return None
        return (
            f"the base did not reach its accuracy criterion: {self.accuracy:.3f} of "
            f"{self.target:.3f}; merging may not work in this zoo. Train one with another seed."
        )


@dataclass(frozen=True)
class Zoo:
    """A zoo on disk; `trained` names what this call trained.

    `criterion` is None where the base trains for a fixed number of steps, or before it was noted.
    """

    folder: Path
    preset: str
    seed: int
    models: tuple[ZooModel, ...]
    groups: dict[str, tuple[str, ...]]
    trained: tuple[str, ...]
    criterion: Criterion | None = None

    @property
    def config(self) -> Path:
        """The configuration for `modelglue glue`."""
        return self.folder / "glue.yaml"


def train_zoo(
    preset: str,
    folder: Path,
    *,
    seed: int,
    progress: Callable[..., None] | None = None,
    workers: int | None = None,
) -> Zoo:
    """Train the zoo `preset` into `folder`, or what is missing of it.

    On one machine the result depends on preset and seed alone, not on `workers` (processes of one
    thread each; by default one a core) nor on being interrupted. `progress` is called as
    `progress(model=…, step=…, steps=…)`, and with `seconds=…` when a model stands.

    Raises:
        UnknownName: there is no such preset.
        InputError: the folder holds something else, or a zoo of another preset or seed.
        RunError: a training process was killed.
    """
    plan = _preset(preset)
    request = {"preset": preset, "seed": seed, "digest": _digest(plan)}
    _claim(folder, request)
    missing = [m for m in plan.members if not (folder / "models" / m.name).exists()]
    if missing or not (folder / "zoo.json").exists():
        _sweep(folder)
        _write_tasks(plan, folder, seed)
        _train_missing(plan, folder, seed, missing, progress, workers)
        _write_configs(plan, folder)
        write_json(folder / "zoo.json", _describe(plan, folder, request))
    return _read(folder, trained=tuple(member.name for member in missing))


def _preset(name: str) -> Preset:
    known = presets()
    if name not in known:
        raise UnknownName(
            f"there is no zoo {name!r}{nearest(name, known)}. Known: {', '.join(known)}."
        )
    return known[name]


def _digest(plan: Preset) -> str:
    return sha256(repr(plan).encode()).hexdigest()[:16]


def _claim(folder: Path, request: dict[str, Any]) -> None:
    """Make the folder this zoo's, or see that it is."""
    mark = folder / "request.json"
    if mark.exists():
        found = read_json(mark)
        if found != request:
            what = f"{found.get('preset')} with seed {found.get('seed')}"
            if found.get("preset") == request["preset"] and found.get("seed") == request["seed"]:
                what += " by another version of its settings"
            raise InputError(f"{folder} holds the zoo {what}. Name another folder, or remove it.")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty and not a zoo. Name another folder.")
    (folder / "models").mkdir(parents=True)
    write_json(mark, request)


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half-done."""
    for beside in (folder / "models").glob(".*"):
        shutil.rmtree(beside, ignore_errors=True)


def _write_tasks(plan: Preset, folder: Path, seed: int) -> None:
    (folder / "tasks").mkdir(exist_ok=True)
    world = Knowledge(seed, people=plan.people)
    counts: dict[Split, int] = {"search": plan.search_items, "report": plan.report_items}
    for skill in SKILLS:
        for split, count in counts.items():
            path = folder / "tasks" / f"{skill}.{split}.jsonl"
            if not path.exists():
                write_text(path, task_lines(world, seed, skill, split, count))


def _train_missing(
    plan: Preset,
    folder: Path,
    seed: int,
    missing: list[Member],
    progress: Callable[..., None] | None,
    workers: int | None,
) -> None:
    """Train in parallel processes; fine-tunes wait for the base, the longest go first."""
    if not missing:
        return
    report = progress or _silent
    waiting = sorted(missing, key=lambda member: (member != plan.members[0], -_work(member)))
    context = multiprocessing.get_context("spawn")
    news = context.Queue()
    count = max(1, min(workers or os.cpu_count() or 1, len(missing)))
    running: dict[Future[float], Member] = {}
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=_start_worker, initargs=(os.getpid(), news)
    ) as pool:
        try:
            while waiting or running:
                base_stands = (folder / "models" / plan.members[0].name).exists()
                for member in list(waiting):
                    own = member.shape is not None or member == plan.members[0]
                    if len(running) < count and (own or base_stands):
                        waiting.remove(member)
                        running[pool.submit(_train_one, plan, member, folder, seed)] = member
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                _tell(news, report)
                for future in done:
                    member = running.pop(future)
                    report(model=member.name, seconds=future.result())
        except BrokenProcessPool as error:
            raise RunError(
                "a training process ended from outside (killed, or out of memory). What stands is "
                "kept; start again to go on."
            ) from error
        except BaseException:
            # A failed or interrupted zoo stops at once; what stands is kept for the next call.
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def _work(member: Member) -> int:
    return member.training.steps * member.training.rows


def _silent(**_: object) -> None:
    """Progress that nobody watches."""


def _tell(news: "multiprocessing.Queue[tuple[str, int, int]]", report: Callable[..., None]) -> None:
    latest: dict[str, tuple[int, int]] = {}
    while True:
        try:
            name, step, steps = news.get_nowait()
        except queue.Empty:
            break
        latest[name] = (step, steps)
    for name, (step, steps) in latest.items():
        report(model=name, step=step, steps=steps)


_news: "multiprocessing.Queue[tuple[str, int, int]] | None" = None


def _start_worker(parent: int, news: "multiprocessing.Queue[tuple[str, int, int]]") -> None:
    """Set a worker up: one thread, and an end when the parent is gone (killed, for example)."""
    global _news
    _news = news
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _train_one(plan: Preset, member: Member, folder: Path, seed: int) -> float:
    """Train a member and put its folder in place; the seconds that it took."""
    from modelglue.minizoo.member import train_member

    def progress(step: int, steps: int) -> None:
        if _news is not None:
            _news.put((member.name, step, steps))

    target = folder / "models" / member.name
    beside = target.with_name(f".{member.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    base = folder / "models" / plan.members[0].name
    effort = train_member(plan, member, seed, base=base, out=beside, progress=progress)
    write_json(beside / _EFFORT, asdict(effort))
    for path in beside.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(beside)
    try:
        beside.rename(target)
    except OSError as error:
        # Another run of the same zoo was faster; its model is the same one.
        shutil.rmtree(beside, ignore_errors=True)
        if not target.exists():
            raise RunError(f"{target} cannot be put in place: {error}.") from error
    sync_folder(target.parent)
    return effort.seconds


def _describe(plan: Preset, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    models = []
    for member in plan.members:
        effort = read_json(folder / "models" / member.name / _EFFORT)
        models.append(
            {
                "name": member.name,
                "role": member.role,
                "skill": member.skill,
                "path": f"models/{member.name}",
                "steps": effort["steps"],
                "tokens": effort["tokens"],
                "seconds": round(effort["seconds"], 1),
            }
        )
    groups = {name: list(group) for name, group in _groups(plan).items()}
    criterion = _criterion(plan, folder)
    return {
        **request,
        "models": models,
        "tasks": list(SKILLS),
        "groups": groups,
        "criterion": criterion and asdict(criterion),
    }


def _criterion(plan: Preset, folder: Path) -> Criterion | None:
    base = plan.members[0]
    target = base.training.target
    checks = read_json(folder / "models" / base.name / _EFFORT).get("checks")
    if target is None or not checks:
        return None
    _, accuracy = checks[-1]  # measuring ends when the target is met
    return Criterion(target, accuracy, accuracy >= target)


def _groups(plan: Preset) -> dict[str, tuple[str, ...]]:
    everything = tuple(member.name for member in plan.members)
    return dict(plan.groups) if plan.groups else {"all": everything}


def _write_configs(plan: Preset, folder: Path) -> None:
    """`glue.yaml` for the whole zoo, and one more for each of its groups."""
    tasks = [
        {
            "name": skill,
            **TASKS[skill],
            "search": f"tasks/{skill}.search.jsonl",
            "report": f"tasks/{skill}.report.jsonl",
        }
        for skill in SKILLS
    ]
    everything = tuple(member.name for member in plan.members)
    configs = {"glue.yaml": (everything, "runs/all")}
    for name, group in (plan.groups or {}).items():
        configs[f"glue-{name}.yaml"] = (group, f"runs/{name}")
    for file, (names, output) in configs.items():
        config = {
            "models": [f"models/{name}" for name in names],
            "base": f"models/{plan.members[0].name}",
            "tasks": tasks,
            "output": output,
        }
        text = yaml.dump(config, Dumper=_NoAliases, sort_keys=False, width=100)
        write_text(folder / file, text)


class _NoAliases(yaml.SafeDumper):
    """Writes equal lists out instead of referring back."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _read(folder: Path, *, trained: tuple[str, ...]) -> Zoo:
    found = read_json(folder / "zoo.json")
    models = tuple(
        ZooModel(**{**model, "path": folder / model["path"]}) for model in found["models"]
    )
    groups = {name: tuple(group) for name, group in found["groups"].items()}
    noted = found.get("criterion")
    criterion = Criterion(**noted) if noted else None
    return Zoo(folder, found["preset"], found["seed"], models, groups, trained, criterion)
