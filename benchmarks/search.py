"""Searches on the miniature zoo: what they cost, what they find, and whether it is so.

    python benchmarks/search.py overhead   # a candidate's evaluation beside its forward passes
    python benchmarks/search.py racing     # item evaluations and report scores, raced or not
    python benchmarks/search.py warm       # trials that a warm start saves
    python benchmarks/search.py table      # strategies, methods and groups, on the report items
    python benchmarks/search.py drifted    # the best single model, merged with strangers
    python benchmarks/search.py nothing    # a zoo in which no merge helps

Zoos are trained where they lack (`--folder`), runs go on where they stopped, and figures are kept
beside this file in results/search.json, seed by seed; `show` prints them again.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelglue.evaluate.statistics import paired_difference
from modelglue.journal import read_json, write_json
from search_nothing import nothing_helps, print_nothing
from search_overhead import overhead, print_overhead
from search_zoo import EVOLUTION, TRIALS, Zoo

RESULTS = Path(__file__).parent / "results" / "search.json"
RACING = {
    "full": {"racing": "off"},
    "racing": {},
    "racing, 2 stages": {"stages": 2},
    "racing, 3 stages": {"stages": 3},
    "racing, irt": {"proxy": "irt"},
    "racing, 2 stages, irt": {"stages": 2, "proxy": "irt"},
}
METHODS: Mapping[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "task_arithmetic": {"method": "task_arithmetic"},
    "ties": {"method": "ties"},
    "dare_linear": {"method": "dare_linear"},
    "dare_ties": {"method": "dare_ties"},
}
HEURISTICS = (
    "heuristic_average",
    "heuristic_coefficient",
    "heuristic_similarity",
    "greedy_soup",
)
GROUPED = {
    "evolution, layers apart": {"group_size": 1},
    "evolution, pairs of layers": {"group_size": 2},
    "evolution, roles apart": {"roles": "apart"},
}
WARM = "heuristic_average"

Figures = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    kept: Path = arguments.json
    results: dict[str, dict[str, Figures]] = read_json(kept) if kept.exists() else {}
    if arguments.what != "show":
        measure = MEASURES[arguments.what]
        found = results.setdefault(arguments.what, {})
        for seed in arguments.seeds or SEEDS[arguments.what]:
            zoo = Zoo(arguments.folder, arguments.preset, seed, recipe=arguments.recipe)
            name = zoo.name if arguments.what != "nothing" else str(seed)
            if name not in found:
                found[name] = measure(zoo)
                _keep(kept, arguments.what, name, found[name])
            print(f"{arguments.what}, {name}: done", flush=True)
    for what in results if arguments.what == "show" else [arguments.what]:
        print(f"\n{what}\n")
        PRINTS[what](results[what])


def _keep(path: Path, what: str, name: str, figures: Figures) -> None:
    """Beside what stands, and what another process may have added in the meantime."""
    results: dict[str, dict[str, Figures]] = read_json(path) if path.exists() else {}
    results.setdefault(what, {})[name] = figures
    write_json(path, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=(*MEASURES, "show"))
    parser.add_argument("--folder", type=Path, default=Path("zoo/benchmark"))
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--recipe", default="glue.yaml", help="of the zoo: glue-which12.yaml, say")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures are kept")
    return parser.parse_args()


def racing(zoo: Zoo) -> Figures:
    """One evolution, scored in full, raced, raced with stages, raced with curves."""
    found = {}
    for name, options in RACING.items():
        result = zoo.searched(name, [{**EVOLUTION, **options}]).searches[0]
        report = zoo.report(result.coefficients)
        found[name] = {
            "items": result.items,
            "search": result.score,
            "report": report.mean,
            "error": zoo.standard_error(result.coefficients),
        }
    return found


def print_racing(found: Mapping[str, Figures]) -> None:
    print(f"{'':26}items of full       report average, out of 100, and its distance from full's")
    for name in RACING:
        measured = [one for one in found.values() if name in one]
        if not measured:
            continue
        shares = [one[name]["items"] / one["full"]["items"] for one in measured]
        reports = [100 * one[name]["report"] for one in measured]
        gaps = [(one[name]["report"] - one["full"]["report"]) for one in measured]
        spread = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
        within = sum(
            abs(gap) <= one["full"]["error"] or gap > 0
            for gap, one in zip(gaps, measured, strict=True)
        )
        print(
            f"{name:22}{statistics.fmean(shares):8.2f} ({min(shares):.2f}–{max(shares):.2f})"
            f"{statistics.fmean(reports):10.1f}   "
            f"{100 * statistics.fmean(gaps):+.2f} ± {100 * spread:.2f} points; "
            f"within one standard error, or better, in {within} of {len(measured)} seeds"
        )


def warm(zoo: Zoo) -> Figures:
    """A plain evolution, and one from a heuristic: how high they had climbed after each trial."""
    plain = zoo.searched("full", [{**EVOLUTION, **RACING["full"]}]).searches[0]
    start = {**EVOLUTION, **RACING["full"], "warm_start": WARM}
    warmed = zoo.searched("warm", [start]).searches[0]
    return {
        "plain": zoo.climb("full"),
        "warm": zoo.climb("warm"),
        "report": {
            "plain": zoo.report(plain.coefficients).mean,
            "warm": zoo.report(warmed.coefficients).mean,
        },
    }


def print_warm(found: Mapping[str, Figures]) -> None:
    """When each seed's second reaches the first's score, and when their averages do.

    The best of 60 noisy scores is a matter of luck, which averages even out.
    """
    climbs = {name: (whole(one["plain"]), whole(one["warm"])) for name, one in found.items()}
    mean = (np.mean(each, axis=0) for each in zip(*climbs.values(), strict=True))
    climbs["average"] = tuple(climb.tolist() for climb in mean)
    print(f"{'':14}plain  after  from {WARM}  reaches it after")
    reached = {}
    for name, (plain, warmed) in climbs.items():
        score = plain[-1]
        reached[name] = next((n for n, at in enumerate(warmed, 1) if at >= score), None)
        told = "never" if reached[name] is None else f"{reached[name]} trials"
        print(
            f"{name:12}{100 * score:7.1f}{plain.index(score) + 1:7}{100 * warmed[-1]:16.1f}"
            f"{told:>20}"
        )
    halved = [name for name, n in reached.items() if n is not None and n <= TRIALS / 2]
    seeds = len(found)
    print(f"within half of the {TRIALS} trials in {len(set(halved) & set(found))} of {seeds}")
    for way in ("plain", "warm"):
        reports = [100 * one["report"][way] for one in found.values()]
        print(f"report average, {way}: {statistics.fmean(reports):.1f}")


def whole(climbed: Sequence[float]) -> list[float]:
    """Over all trials: one that comes again is none of its own, and leaves the climb shorter."""
    return [*climbed, *climbed[-1:] * (TRIALS - len(climbed))]


def table(zoo: Zoo) -> Figures:
    """Everything on the report items: averages with intervals, search scores, what was accepted."""
    rows: Figures = {}
    heuristics = zoo.searched("heuristics", list(HEURISTICS))
    best = max(heuristics.singles, key=lambda name: zoo.report({name: 1.0}).mean)
    rival = zoo.report({best: 1.0})
    rows["best single"] = {**zoo.row({best: 1.0}, rival), "note": best}
    members = heuristics.members
    rows["uniform merge"] = zoo.row(dict.fromkeys(members, 1 / len(members)), rival)
    for result in heuristics.searches:
        rows[result.strategy] = zoo.row(result.coefficients, rival, result=result)
    for name, merge in METHODS.items():
        key = f"evolution, {name}"
        choice = zoo.searched(key, [EVOLUTION], merge=merge)
        (result,) = choice.searches
        rows[key] = zoo.row(result.coefficients, rival, merge=merge, choice=choice, result=result)
    for key, options in GROUPED.items():
        choice = zoo.searched(key, [{**EVOLUTION, **options}])
        (result,) = choice.searches
        rows[key] = zoo.row(result.coefficients, rival, choice=choice, result=result)
    for start in ("heuristic_average", "heuristic_coefficient"):
        key = f"{start} → evolution"
        spent = next(each.trials for each in heuristics.searches if each.strategy == start)
        # The heuristic's own trials come on top; the table counts them.
        options = {**EVOLUTION, "warm_start": start, "trials": TRIALS + spent}
        choice = zoo.searched(key, [options])
        (result,) = choice.searches
        rows[key] = zoo.row(result.coefficients, rival, choice=choice, result=result)
    return rows


def print_table(found: Mapping[str, Figures]) -> None:
    for name, rows in found.items():
        print(f"\n{name}: {rows['best single']['note']} is the best single model\n")
        print(
            "| candidate | search | report | against the best single (95 %) | trials | accepted |"
        )
        print("|---|---|---|---|---|---|")
        for key, row in rows.items():
            search = "–" if row.get("search") is None else f"{100 * row['search']:.1f}"
            gap = "–" if key == "best single" else points(row["difference"])
            accepted = {True: "yes", False: "no"}.get(row.get("accepted"), "–")
            print(
                f"| {key} | {search} | {100 * row['report']:.1f} | {gap} "
                f"| {row.get('trials') or '–'} | {accepted} |"
            )
    zoos = dict.fromkeys(name.rpartition(",")[0] for name in found)
    for zoo in zoos:
        seeds = [rows for name, rows in found.items() if name.rpartition(",")[0] == zoo]
        if len(seeds) < 2:
            continue
        print(f"\nagainst the best single, mean over {len(seeds)} seeds of {zoo}\n")
        for key in seeds[0]:
            gaps = [100 * rows[key]["difference"][0] for rows in seeds]
            spread = statistics.stdev(gaps) / math.sqrt(len(gaps))
            print(f"{key:40}{statistics.fmean(gaps):+6.1f} ± {spread:.1f} points")


def drifted(zoo: Zoo) -> Figures:
    """The best single model merged evenly with a specialist, and with a model that drifted away."""
    singles = {name: zoo.report({name: 1.0}) for name in zoo.members}
    best = max(singles, key=lambda name: singles[name].mean)
    rows: Figures = {"best single": {"note": best, "report": singles[best].mean}}
    for role in ("specialist", "drifted"):
        for name in zoo.of_role(role):
            if name != best:
                merged = zoo.report({best: 0.5, name: 0.5}, members=(best, name))
                gap = paired_difference(merged, singles[best])
                difference = [gap.mean, gap.low, gap.high]
                rows[name] = {"role": role, "report": merged.mean, "difference": difference}
    return rows


def print_drifted(found: Mapping[str, Figures]) -> None:
    for name, rows in found.items():
        best = rows["best single"]
        print(f"{name}: {best['note']} alone {100 * best['report']:.1f}; half of it and half of")
        for other, row in rows.items():
            if other != "best single":
                told = f"{100 * row['report']:.1f}, {points(row['difference'])}"
                print(f"    {other} ({row['role']}): {told}")


def points(interval: Sequence[float]) -> str:
    """A difference with its interval, in points."""
    mean, low, high = (100 * value for value in interval)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


MEASURES: Mapping[str, Callable[[Zoo], Figures]] = {
    "overhead": overhead,
    "racing": racing,
    "warm": warm,
    "table": table,
    "drifted": drifted,
    "nothing": nothing_helps,
}
PRINTS: Mapping[str, Callable[[Mapping[str, Figures]], None]] = {
    "overhead": print_overhead,
    "racing": print_racing,
    "warm": print_warm,
    "table": print_table,
    "drifted": print_drifted,
    "nothing": print_nothing,
}
SEEDS = {
    "overhead": [300],
    "racing": [300, 301, 302, 303, 304],
    "warm": [300, 301, 302, 303, 304],
    "table": [300, 301, 302],
    "drifted": [300, 301, 302],
    "nothing": list(range(20)),
}


if __name__ == "__main__":
    main()
