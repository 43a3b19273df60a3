"""The recipe judged on zoos that nobody looked at while building it.

For each seed: train a `quick` zoo, glue it, and ask four questions of the report items.

1. Does the glued model beat the best single model (the one with the best report mean, known only
   afterwards)? Gain per seed with its paired 95 % interval; mean gain with a t interval over seeds.
2. Did a drifted or foreign model enter a merge?
3. Leaving out a model that was kept, and renormalising: does the report average rise beyond the
   paired interval? A merged model's weight is given to the others; an expert's items go to the
   next expert by the router.
4. Of the items of tasks at which the experts differ by more than 10 points, how many go to an
   expert within 5 points of the best? Random routing beside it.

    python benchmarks/recipe.py --seeds 200 201 202 203 204 --folder zoo/benchmark

Resumable: what stands is not done again. Prints the tables; --json writes the numbers.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.scores import Scores
from modelglue.evaluate.statistics import Interval, paired_difference
from modelglue.evaluate.threads import threads_for
from modelglue.journal import Journal, read_json, write_json
from modelglue.minizoo.zoo import train_zoo
from modelglue.mixture.bundle import Bundle
from modelglue.recipe.choose import prompts_of
from modelglue.recipe.config import RecipeConfig, load_recipe
from modelglue.recipe.glue import Outcome, glue
from modelglue.recipe.inputs import open_inputs
from modelglue.recipe.objective import Family, Template
from modelglue.search.problem import canonical

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Glued:
    """A finished run, with the per-item report scores of everything that it scored."""

    config: RecipeConfig
    outcome: Outcome
    scores: Mapping[str, Scores]

    @property
    def bundle(self) -> Bundle | None:
        is_mixture = (self.outcome.model / "mixture.json").exists()
        return Bundle.load(self.outcome.model) if is_mixture else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[200, 201, 202, 203, 204])
    parser.add_argument("--folder", type=Path, default=Path("zoo/benchmark"))
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if len(arguments.seeds) - 1 not in T_95:
        parser.error(f"give 2 to {len(T_95) + 1} seeds")
    rows = [one_seed(arguments.preset, arguments.folder, seed) for seed in arguments.seeds]
    if arguments.json:
        write_json(arguments.json, {"preset": arguments.preset, "seeds": rows})
    show(rows)


def one_seed(preset: str, folder: Path, seed: int) -> dict[str, Any]:
    """Train and glue one zoo; what is asked of it, as plain data."""
    zoo = folder / f"{preset}-{seed}"
    began = time.monotonic()
    train_zoo(preset, zoo, seed=seed)
    trained = time.monotonic()
    config = load_recipe(zoo / "glue.yaml", output=str((zoo / "runs" / "benchmark").resolve()))
    outcome = glue(config)
    ended = time.monotonic()
    scores = {
        r["name"]: Scores.from_json(r["scores"])
        for r in read_json(outcome.path / "stages/report/manifest.json")["results"]
    }
    run = Glued(config, outcome, scores)
    table = {row.name: row for row in outcome.report.table}
    gain = table["glued model"].difference
    roles = {m["name"]: m["role"] for m in read_json(zoo / "zoo.json")["models"]}
    merged = sorted({n for p in outcome.report.searches for n in p.coefficients if p.winner})
    best = next(r for r in outcome.report.table if r.kind == "single" and r.difference is None)
    return {
        "seed": seed,
        "seconds": {"training": round(trained - began), "recipe": round(ended - trained)},
        "best_single": [best.name, best.average],
        "averages": {row.name: row.average for row in outcome.report.table},
        "gain": [gain.mean, gain.low, gain.high] if gain else [0.0, 0.0, 0.0],
        "merged": merged,
        "strangers_merged": [n for n in merged if roles[n] in ("drifted", "foreign")],
        "harmful_merged": [n for n in merged if roles[n] == "harmful"],
        "experts": list(run.bundle.experts) if run.bundle else [table["glued model"].note],
        "without": {name: [i.mean, i.low, i.high] for name, i in leave_one_out(run).items()},
        "routing": routing(run),
    }


def leave_one_out(run: Glued) -> dict[str, Interval]:
    """What leaving out each kept model changes: report average without it, minus with it."""
    found = {}
    bundle = run.bundle
    glued = run.scores["glued model"]
    routes = _routes(run, bundle) if bundle else None
    for label, weights in _merges(run).items():
        for name in weights:
            rest = {n: w for n, w in weights.items() if n != name}
            total = sum(rest.values())
            without = _score_merge(run, canonical({n: w / total for n, w in rest.items()}))
            if bundle is not None and routes is not None:
                without = _where(routes, bundle.experts.index(label), without, glued)
            found[name] = paired_difference(without, glued)
    if bundle is not None and routes is not None:
        alone = _experts_alone(run, bundle)
        for index, name in enumerate(bundle.experts):
            found[f"expert {name}"] = paired_difference(_next_best(routes, index, alone), glued)
    return found


def routing(run: Glued) -> dict[str, Any] | None:
    """Where the items of the tasks go at which the experts really differ."""
    bundle = run.bundle
    if bundle is None:
        return None
    alone = _experts_alone(run, bundle)
    routes = _routes(run, bundle)
    well = asked = 0
    by_chance = 0.0
    for task, probabilities in routes.items():
        means = [scores[task].mean for scores in alone]
        if max(means) - min(means) <= 0.10:
            continue
        good = [mean >= max(means) - 0.05 for mean in means]
        well += sum(good[int(row.argmax())] for row in probabilities)
        asked += len(probabilities)
        by_chance += len(probabilities) * sum(good) / len(good)
    if not asked:
        return None
    return {"items": asked, "well": well / asked, "random": by_chance / asked}


def _routes(run: Glued, bundle: Bundle) -> dict[str, np.ndarray]:
    """Task → [items, experts], the router's probabilities."""
    with open_inputs(run.config) as inputs:
        return {
            task.name: np.array([r.probabilities for r in bundle.route(prompts_of(task, "report"))])
            for task in inputs.tasks
        }


def _merges(run: Glued) -> dict[str, Mapping[str, float]]:
    """Label → weights of the merges that are part of the glued model."""
    glued = next(row for row in run.outcome.report.table if row.name == "glued model")
    kept = run.bundle.experts if run.bundle else (glued.note,)
    found = {
        f"merged-{path.family + 1}": path.coefficients
        for path in run.outcome.report.searches
        if path.winner
    }
    return {label: weights for label, weights in found.items() if label in kept}


def _experts_alone(run: Glued, bundle: Bundle) -> list[Scores]:
    """Each expert's own scores on the report items."""
    merges = _merges(run)
    return [
        _score_merge(run, dict(merges[name])) if name in merges else run.scores[name]
        for name in bundle.experts
    ]


def _score_merge(run: Glued, coefficients: dict[str, float]) -> Scores:
    """A merge on the report items; kept in a journal of its own beside the run."""
    if len(coefficients) == 1:
        return run.scores[next(iter(coefficients))]
    key = json.dumps(coefficients)
    with Journal(run.outcome.path / "leave-one-out.jsonl") as journal:
        for record in journal:
            if record["key"] == key:
                return Scores.from_json(record["scores"])
        with open_inputs(run.config) as inputs, threads_for(0):
            models = {name: inputs.models[name] for name in coefficients}
            first = next(iter(models))
            family = Family(
                models,
                references={name: name for name in models},
                template=Template(models[first], first, models[first].path),
                folder_of=lambda name: models[name].path,
                load=HuggingFaceModel.load,
            )
            scores = family.score(coefficients, inputs.tasks, "report", inputs.sandbox)
        journal.append({"key": key, "scores": scores.to_json()})
    return scores


def _where(routes: Mapping[str, np.ndarray], index: int, then: Scores, other: Scores) -> Scores:
    """Item by item: `then` where the route is `index`, else `other`."""
    return _items(
        other,
        lambda task, i: (then if int(routes[task][i].argmax()) == index else other)[task].values[i],
    )


def _next_best(routes: Mapping[str, np.ndarray], left_out: int, alone: list[Scores]) -> Scores:
    def value(task: str, i: int) -> float:
        probabilities = routes[task][i].copy()
        probabilities[left_out] = -1.0
        return alone[int(probabilities.argmax())][task].values[i]

    return _items(alone[0], value)


def _items(like: Scores, value: Any) -> Scores:
    return Scores(
        tuple(
            replace(t, values=tuple(value(t.task, i) for i in range(len(t.items))), metrics={})
            for t in like.tasks
        )
    )


def show(rows: list[dict[str, Any]]) -> None:
    names = [
        "uniform merge of everything",
        "uniform merge of the family",
        "heuristic_average",
        "heuristic_coefficient",
        "heuristic_similarity",
        "mixture without merging",
        "glued model",
        "per-task oracle",
    ]
    print("report average (mean of the tasks' means, out of 100)\n")
    print("| seed | best single | " + " | ".join(names) + " | gain over best single (95 %) |")
    print("|" + "---|" * (len(names) + 3))
    for row in rows:
        cells = [f"{100 * row['averages'][n]:.1f}" if n in row["averages"] else "–" for n in names]
        name, average = row["best_single"]
        print(
            f"| {row['seed']} | {100 * average:.1f} ({name}) | "
            + " | ".join(cells)
            + f" | {_points(row['gain'])} |"
        )
    gains = [row["gain"][0] for row in rows]
    spread = _t_interval(gains)
    won = sum(gain > 0 for gain in gains)
    print(
        f"\nglued beats the best single model in {won} of {len(rows)} seeds; "
        f"mean gain {_points(spread)} points (t interval over seeds)"
    )
    for row in rows:
        raised = [name for name, i in row["without"].items() if i[1] > 0]
        print(
            f"\nseed {row['seed']}: training {row['seconds']['training']} s, "
            f"recipe {row['seconds']['recipe']} s; merged {', '.join(row['merged'])}; "
            f"behind the router {', '.join(row['experts'])}"
        )
        print(
            f"  drifted or foreign in a merge: {', '.join(row['strangers_merged']) or 'none'}; "
            f"harmful in a merge: {', '.join(row['harmful_merged']) or 'none'}"
        )
        for name, interval in row["without"].items():
            print(f"  without {name}: {_points(interval)}")
        print(f"  better without, beyond the interval: {', '.join(raised) or 'none'}")
        if row["routing"]:
            r = row["routing"]
            print(
                f"  routing: {100 * r['well']:.1f} % of {r['items']} items well, "
                f"random {100 * r['random']:.1f} %"
            )


def _points(interval: Any) -> str:
    mean, low, high = (100 * value for value in interval)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _t_interval(values: list[float]) -> tuple[float, float, float]:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


if __name__ == "__main__":
    main()
