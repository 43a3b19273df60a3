"""Mixtures of the miniature zoo's models: the paper's tables, on the report items.

    python benchmarks/mixture_zoo.py           # Which2, Which4 (chat), Which4 (domain)
    python benchmarks/mixture_zoo.py show

Everything is chosen on search items. Experts are the models of a group that lead at a task; each
one's prompts are the search prompts of its tasks. The dense model, which lends what experts share,
is the merge that Heuristic-Average finds in the group. Two experts answer together at FFN level
in groups of four, one everywhere else, as in the paper; hybrids share the lower half of the layers.

Routers: "prompts" are initialised from prompts, and not trained. "search" are made of the experts'
scores on the search items, item by item: the nearest of them ("knn"), or a router trained on the
table of scores. "text" are trained by language modelling, on documents of the zoo's three skills
drawn from the part that neither split has. Every row, item by item, is kept beside the zoo as soon
as it stands; the tables are in results/mixture_zoo.json.
"""

import argparse
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

import modelglue
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.evaluate.statistics import mean_interval, paired_difference
from modelglue.evaluate.threads import threads_for
from modelglue.journal import read_json, write_json
from modelglue.minizoo.data.example import stream
from modelglue.minizoo.data.knowledge import Knowledge
from modelglue.minizoo.data.tasks import SKILLS, sources
from modelglue.minizoo.preset import presets
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.compose import compose
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router_scores import ScoreTable
from modelglue.mixture.training_bundle import train_bundle
from modelglue.mixture.training_layers import train_layers
from modelglue.mixture.training_samples import Sample
from modelglue.recipe.choose import choose_team
from modelglue.recipe.inputs import open_inputs
from search import points
from search_zoo import Zoo

RESULTS = Path(__file__).parent / "results" / "mixture_zoo.json"
PRESET, SEED = "which16", 300
GROUPS = ("which2", "which4-chat", "which4-domain")
DENSE = "heuristic_average"
TEXTS = 600

Made = Literal["prompts", "knn", "search", "text"]


@dataclass(frozen=True)
class Cell:
    """A mixture of the table, and what its routers are made of."""

    kind: MixtureKind
    made: Made = "prompts"

    @property
    def name(self) -> str:
        """What it is filed under."""
        shared = f", {self.kind.shared_layers} layers shared" * (self.kind.shared_layers > 0)
        return f"{self.kind.short}{shared}, {self.made}"


def cells(top_k: int, shared: int) -> list[Cell]:
    """The rows of a table.

    Args:
        top_k: experts that answer together at FFN level.
        shared: layers that hybrids share.
    """
    whole, block = MixtureKind("model"), MixtureKind("block")
    token = MixtureKind("ffn", input="token", top_k=top_k)
    sample = MixtureKind("ffn", input="sample", top_k=top_k)
    found = [
        Cell(whole),
        Cell(whole, "knn"),
        Cell(whole, "search"),
        Cell(replace(whole, router="mlp"), "search"),
        Cell(replace(whole, shared_layers=shared)),
    ]
    for kind in (token, sample, block):
        found += [Cell(kind), Cell(kind, "text"), Cell(replace(kind, router="mlp"), "text")]
        found += [Cell(replace(kind, shared_layers=shared))]
    return found


class Group:
    """One group of the zoo's models, its experts, and report scores of what is made of them."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        self.zoo = Zoo(folder, PRESET, seed, recipe=f"glue-{name}.yaml")
        self.name = name
        self.place = self.zoo.path / "runs" / f"mixtures-{name}"

    @cached_property
    def choice(self) -> Any:
        """The group's family, its models' search scores, and the merge that is found in it."""
        choice = self.zoo.searched("dense", [DENSE])
        self.place.mkdir(parents=True, exist_ok=True)
        return choice

    @cached_property
    def leads(self) -> Mapping[str, tuple[str, ...]]:
        """The experts, and the tasks at which they lead on search items."""
        return choose_team(self.choice.singles).leads

    @property
    def experts(self) -> dict[str, Path]:
        """Where they lie."""
        return {name: self.zoo.path / "models" / name for name in self.leads}

    @cached_property
    def dense(self) -> Path:
        """The merge as a checkpoint."""
        (found,) = self.choice.searches
        models = [
            {"model": str(self.zoo.path / "models" / name), "parameters": {"weight": weight}}
            for name, weight in found.coefficients.items()
        ]
        out = self.place / "dense"
        if not out.exists():
            modelglue.merge({"merge_method": "linear", "models": models}, out)
        return out

    @cached_property
    def prompts(self) -> dict[str, list[str]]:
        """The search prompts of each expert's tasks."""
        with open_inputs(self.zoo.config("dense", [DENSE])) as inputs:
            items = {task.name: task.items("search") for task in inputs.tasks}
        return {
            name: [item.prompt for task in own for item in items[task]]
            for name, own in self.leads.items()
        }

    @cached_property
    def table(self) -> ScoreTable:
        """The experts' scores on all search items."""
        with open_inputs(self.zoo.config("dense", [DENSE])) as inputs:
            texts = [item.prompt for task in inputs.tasks for item in task.items("search")]
            names = [task.name for task in inputs.tasks]
        columns = [
            [value for task in names for value in self.choice.singles[name][task].values]
            for name in self.leads
        ]
        return ScoreTable(texts, torch.tensor(columns).T.contiguous())

    def mixture(self, cell: Cell) -> Path:
        """Make one."""
        out = self.place / cell.name.replace(", ", "-").replace(" ", "-")
        if out.exists():
            return out
        given: dict[str, Any] = {"kind": cell.kind, "dense": self.dense}
        if cell.made == "knn":
            return compose(
                self.experts, {}, out, initialisation="knn", scores=self.table, **given
            ).path
        if cell.made == "prompts":
            return compose(self.experts, self.prompts, out, **given).path
        start = self.place / f"start-{cell.kind.short}"
        if not start.exists():
            compose(self.experts, self.prompts, start, **given)
        if cell.made == "search":
            return train_bundle(start, out, self.table).path
        return train_layers(start, out, self.texts).path

    @cached_property
    def texts(self) -> list[Sample]:
        """Documents of the three skills, of which neither split has any."""
        world = Knowledge(self.zoo.seed, people=presets()[PRESET].people)
        found, rng = sources(world), stream(self.zoo.seed, "routers")
        drawn = [found[SKILLS[i % len(SKILLS)]](rng) for i in range(TEXTS)]
        return [Sample(document.completion, document.prompt) for document in drawn]

    def report(self, model: Path) -> Scores:
        """Scores on the report items."""
        is_bundle = (model / "mixture.json").exists()
        loaded = Bundle.load(model) if is_bundle else HuggingFaceModel.load(model)
        with open_inputs(self.zoo.config("dense", [DENSE])) as inputs:
            return Scores(
                tuple(
                    task.evaluate(loaded, "report", sandbox=self.zoo.sandbox)
                    for task in inputs.tasks
                )
            )


def measure(group: Group, kept: dict[str, Any], path: Path) -> None:
    """Fill what lacks in the group's part of the results."""
    own = kept.setdefault(group.name, {"scores": {}})
    scores: dict[str, Any] = own["scores"]

    def fill(name: str, make: Any) -> None:
        if name not in scores:
            scores[name] = make().to_json()
            write_json(path, kept)
        print(f"{group.name}, {name}: {100 * Scores.from_json(scores[name]).mean:.1f}", flush=True)

    own["leads"] = {name: list(tasks) for name, tasks in group.leads.items()}
    own["members"] = list(group.choice.members)
    for name in group.choice.members:
        fill(name, lambda name=name: group.report(group.zoo.path / "models" / name))
    fill("dense", lambda: group.report(group.dense))
    if len(group.leads) < 2:
        print(f"{group.name}: one model leads at every task, so there is nothing to mix")
        return
    layers = presets()[PRESET].shape.layers
    for cell in cells(min(2, len(group.leads)) if "4" in group.name else 1, layers // 2):
        fill(cell.name, lambda cell=cell: group.report(group.mixture(cell)))
        own.setdefault("kinds", {})[cell.name] = {**asdict(cell.kind), "made": cell.made}
    write_json(path, kept)


def oracles(scores: Mapping[str, Scores], experts: Sequence[str]) -> dict[str, Scores]:
    """What a router could come to at best: the best expert of each task, and of each item."""
    own = [scores[name] for name in experts]
    tasks = [task.task for task in own[0].tasks]
    by_task = [max((each[task] for each in own), key=lambda one: one.mean) for task in tasks]
    by_item = [
        TaskScores(
            task,
            own[0][task].items,
            tuple(map(max, *(each[task].values for each in own))),
            own[0][task].groups,
        )
        for task in tasks
    ]
    return {"per-task oracle": Scores(tuple(by_task)), "per-item oracle": Scores(tuple(by_item))}


def figures(own: Mapping[str, Any]) -> dict[str, Any]:
    """A group's table: averages and differences against the best single model, with intervals."""
    scores = {key: Scores.from_json(value) for key, value in own["scores"].items()}
    best = max(own["members"], key=lambda member: scores[member].mean)
    titles = {best: f"{best}, the best single model", "dense": f"{DENSE}'s merge, the dense model"}
    chosen = [best, "dense", *(key for key in scores if key not in (*own["members"], "dense"))]
    rows = {titles.get(key, key): scores[key] for key in chosen}
    rows |= oracles(scores, list(own["leads"]))
    found: dict[str, Any] = {"members": own["members"], "leads": own["leads"], "rows": {}}
    for key, value in rows.items():
        whole, gap = mean_interval(value), paired_difference(value, scores[best])
        found["rows"][key] = {
            "report": [whole.mean, whole.low, whole.high],
            "difference": [gap.mean, gap.low, gap.high],
            "tasks": value.by_task(),
        }
    return found


def show(found: Mapping[str, Any]) -> None:
    """Tables in Markdown, of report items, out of 100."""
    for name, own in found.items():
        experts = "; ".join(f"{key} for {', '.join(led)}" for key, led in own["leads"].items())
        print(f"\n{name}: {', '.join(own['members'])}. Experts: {experts}\n")
        rows = own["rows"]
        tasks = next(iter(rows.values()))["tasks"]
        print(f"| model | report (95 %) | against the best single | {' | '.join(tasks)} |")
        print("|---|---|---|" + "---|" * len(tasks))
        for key, row in rows.items():
            mean, low, high = (100 * value for value in row["report"])
            by_task = " | ".join(f"{100 * number:.1f}" for number in row["tasks"].values())
            print(
                f"| {key} | {mean:.1f} ({low:.1f}–{high:.1f}) | {points(row['difference'])} "
                f"| {by_task} |"
            )
        _gained(rows)


def _gained(rows: Mapping[str, Any]) -> None:
    """How much of what the oracles gain each model-level router gains."""
    gains = {key: row["difference"][0] for key, row in rows.items()}
    for oracle in ("per-task oracle", "per-item oracle"):
        print(f"\nof what the {oracle} gains over the best single model")
        for key, gain in gains.items():
            if key.startswith("M-") and "shared" not in key and gains[oracle] > 0:
                print(f"  {key}: {100 * gain / gains[oracle]:.0f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("measure", "show"), nargs="?", default="measure")
    parser.add_argument("--folder", type=Path, default=Path("zoo/benchmark"))
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the tables are kept")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = read_json(arguments.json) if arguments.json.exists() else {}
    if arguments.what == "measure":
        items = arguments.folder / "mixture_zoo.json"
        kept: dict[str, Any] = read_json(items) if items.exists() else {}
        with threads_for(0):
            for name in arguments.groups:
                measure(Group(arguments.folder, name, arguments.seed), kept, items)
                found[name] = figures(kept[name])
                write_json(arguments.json, found)
    show(found)


if __name__ == "__main__":
    main()
