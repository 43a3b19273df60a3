"""What a user writes to glue a zoo, with a documented default for all that is left out.

    models: [models/base, models/math, org/name@main, models/base+adapters/chat]
    base: models/base
    tasks:
      - {name: maths, kind: generate, extract: '#### *(-?[0-9]+)', max_new_tokens: 48,
         search: tasks/math.search.jsonl, report: tasks/math.report.jsonl}
    merge: {method: ties, parameters: {density: 0.5}}
    search: {strategies: [heuristic_average, {strategy: evolution, trials: 60}]}
    mixture: {level: model, router: linear, input: sample}
    output: runs/first

Paths are relative to the file. Everything is checked here, all problems at once, before a model
is opened.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from modelglue.errors import ConfigError
from modelglue.evaluate.task import TaskConfig
from modelglue.evaluate.task_config import parse_tasks
from modelglue.recipe.formula import Formula, parse_formula
from modelglue.recipe.mixture_config import FinalMixture, parse_mixture
from modelglue.recipe.search_config import (
    SearchConfig,
    device_problems,
    parse_search,
    with_executor,
)
from modelglue.registry import nearest
from modelglue.search.knobs import is_plain
from modelglue.yamlfile import read_yaml

RESERVED = re.compile(r"merged-\d+|glued model|mixture without merging|per-task oracle|uniform .*")


@dataclass(frozen=True)
class ModelEntry:
    """One model of the zoo.

    Attributes:
        model: a folder, `org/name@revision`, or `base+adapter`.
        name: what it is called everywhere; by default the folder's name.
        prompts: what the router should send to the family of this model; None takes the search
            items of the tasks at which it is best.
    """

    model: str
    name: str
    prompts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class RecipeConfig:
    """A checked recipe.

    Attributes:
        models: the zoo, at least one.
        tasks: at least one.
        output: the run directory.
        base: the model that the others were fine-tuned from; it gives merged models their
            configuration and tokenizer. By default each family's first model does.
        threshold: least cosine similarity within a family.
        merge: the method by which models are merged, linear by default.
        search: the strategies to run in each family, and what accepts their best.
        mixture: what stands behind a router, and how it is routed.
        device: where models run: cpu, cuda, cuda:1, mps …
        dtype: float32, bfloat16, float16, or auto (as stored).
        batch_size: rows evaluated together, or auto.
        unsafe_code: run generated code without a sandbox where there is none.
        title: what the report is called.
        root: what relative paths are relative to.
    """

    models: tuple[ModelEntry, ...]
    tasks: tuple[TaskConfig, ...]
    output: Path
    base: str | None = None
    threshold: float = 0.95
    merge: Formula = field(default_factory=Formula)
    search: SearchConfig = field(default_factory=SearchConfig)
    mixture: FinalMixture = field(default_factory=FinalMixture)
    device: str = "cpu"
    dtype: str = "auto"
    batch_size: int | Literal["auto"] = "auto"
    unsafe_code: bool = False
    title: str = "modelglue"
    root: Path = Path()

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, in order."""
        return tuple(entry.name for entry in self.models)

    def to_mapping(self) -> dict[str, Any]:
        """The same as a YAML mapping, defaults filled in and files absolute."""
        mapping: dict[str, Any] = {
            "models": [_entry_mapping(entry) for entry in self.models],
            "base": self.base,
            "tasks": [task.to_mapping() for task in self.tasks],
            "output": str(self.output),
            "merge": self.merge.to_mapping(),
            "search": self.search.to_mapping(),
            "mixture": self.mixture.to_mapping(),
        }
        for name in ("threshold", "device", "dtype", "batch_size", "unsafe_code", "title"):
            mapping[name] = getattr(self, name)
        mapping["root"] = str(self.root)
        return mapping


def _entry_mapping(entry: ModelEntry) -> dict[str, Any]:
    mapping: dict[str, Any] = {"model": entry.model, "name": entry.name}
    return mapping if entry.prompts is None else mapping | {"prompts": list(entry.prompts)}


SCALARS: dict[str, str] = {
    "base": "a path or org/name",
    "threshold": "a number from -1 to 1",
    "device": "a device such as cpu or cuda:0",
    "dtype": "auto, float32, bfloat16 or float16",
    "batch_size": "auto or a whole number above 0",
    "unsafe_code": "true or false",
    "title": "text",
}
KEYS = ("models", "tasks", "output", "merge", "search", "mixture", *SCALARS)


def load_recipe(
    path: Path, *, executor: str | None = None, workers: int | None = None, **overrides: Any
) -> RecipeConfig:
    """Read a recipe.

    Args:
        path: of the file.
        executor, workers: in place of the search's own; see `with_executor`.
        overrides: in place of other keys of the file (output, device, unsafe_code …).

    Raises:
        ConfigError: with everything that is wrong in the file.
    """
    value = read_yaml(path)
    if isinstance(value, dict):
        value = {**value, **{key: given for key, given in overrides.items() if given is not None}}
        search = with_executor(value.get("search"), executor=executor, workers=workers)
        value = value if search is None else {**value, "search": search}
    try:
        return parse_recipe(value, root=path.parent)
    except ConfigError as error:
        raise ConfigError(error.problems, where=str(path)) from None


def parse_recipe(value: object, *, root: Path = Path()) -> RecipeConfig:
    """Check a recipe as YAML gives it.

    Raises:
        ConfigError: with every problem: key path, what is wrong, nearest valid spelling.
    """
    if not isinstance(value, dict):
        raise ConfigError("the recipe is no mapping; it needs models, tasks and output")
    root = root.resolve()
    problems = [f"{key}: unknown key{nearest(str(key), KEYS)}" for key in value if key not in KEYS]
    models = _models(value.get("models"), problems)
    tasks = _tasks(value.get("tasks"), root, problems)
    given = {name: value[name] for name in SCALARS if value.get(name) is not None}
    problems += [p for name, setting in given.items() if (p := _scalar_problem(name, setting))]
    search = parse_search(value.get("search"), problems)
    problems += device_problems(search, str(given.get("device", "cpu")))
    mixture = parse_mixture(value.get("mixture"), problems)
    merge = parse_formula(value.get("merge"), [entry.name for entry in models], problems)
    if merge.definition.needs_base and not merge.absorbs and not given.get("base"):
        problems.append(f"base: {merge.method} needs the model that the others come from")
    if not isinstance(value.get("output"), str | Path):
        problems.append("output: missing; the folder to write the run to")
    if problems:
        raise ConfigError(problems)
    return RecipeConfig(
        models,
        tasks,
        root / value["output"],
        merge=merge,
        search=search,
        mixture=mixture,
        root=root,
        **given,
    )


def _scalar_problem(name: str, value: object) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fine = {
        "threshold": number and -1 <= value <= 1,  # type: ignore[operator]
        "dtype": value in ("auto", "float32", "bfloat16", "float16"),
        "batch_size": value == "auto" or (number and isinstance(value, int) and value > 0),
        "unsafe_code": isinstance(value, bool),
    }.get(name, isinstance(value, str) and bool(value))
    return None if fine else f"{name}: must be {SCALARS[name]}, not {value!r}"


def _models(value: object, problems: list[str]) -> tuple[ModelEntry, ...]:
    if not isinstance(value, list) or not value:
        problems.append("models: a list of at least one model is needed")
        return ()
    raw = []
    for index, entry in enumerate(value):
        mapping = {"model": entry} if isinstance(entry, str) else entry
        if not isinstance(mapping, dict) or not isinstance(mapping.get("model"), str):
            problems.append(f"models[{index}]: must be a path, org/name, or a mapping with model")
            continue
        raw.append(mapping)
        problems += _model_problems(mapping, f"models[{index}]")
    names = _names([str(mapping["model"]) for mapping in raw])
    entries = tuple(
        ModelEntry(
            model=mapping["model"],
            name=str(mapping.get("name") or name),
            prompts=tuple(mapping["prompts"]) if mapping.get("prompts") else None,
        )
        for mapping, name in zip(raw, names, strict=True)
        if isinstance(mapping.get("prompts") or [], list)
    )
    problems += [
        f"models: {entry.name!r} is what a merge is called in reports; choose another name"
        for entry in entries
        if RESERVED.fullmatch(entry.name)
    ]
    problems += [
        f"models: {entry.name!r} would mean something else in a candidate; choose another name"
        for entry in entries
        if not is_plain(entry.name)
    ]
    for name, times in Counter(entry.name for entry in entries).items():
        if times > 1:
            problems.append(f"models: {times} are called {name!r}; tell them apart with name")
    return entries


def _model_problems(mapping: Mapping[str, Any], where: str) -> list[str]:
    known = [field.name for field in fields(ModelEntry)]
    problems = [
        f"{where}.{key}: unknown key{nearest(str(key), known)}"
        for key in mapping
        if key not in known
    ]
    prompts = mapping.get("prompts")
    texts = isinstance(prompts, list) and all(isinstance(p, str) and p for p in prompts)
    if prompts is not None and not (texts and prompts):
        problems.append(f"{where}.prompts: must be a list of texts")
    if not isinstance(mapping.get("name", ""), str):
        problems.append(f"{where}.name: must be text")
    return problems


def _names(references: Sequence[str]) -> list[str]:
    """A short name for each reference, longer where two would be the same.

    >>> _names(["zoo/a/final", "zoo/b/final", "org/chat@main", "zoo/base+adapters/law"])
    ['a/final', 'b/final', 'chat@main', 'base+law']
    """
    parts = [[p.strip("/").split("/") for p in reference.split("+")] for reference in references]
    short = ["+".join(part[-1] for part in reference) for reference in parts]
    twice = {name for name, times in Counter(short).items() if times > 1}
    return [
        "+".join("/".join(part[-2:]) for part in reference) if name in twice else name
        for reference, name in zip(parts, short, strict=True)
    ]


def _tasks(value: object, root: Path, problems: list[str]) -> tuple[TaskConfig, ...]:
    if not isinstance(value, list) or not value:
        problems.append("tasks: a list of at least one task is needed")
        return ()
    return parse_tasks(value, root=root, problems=problems)
