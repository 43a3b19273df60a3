"""How thrifty and how honest a search is, on simulated families where the truth is known.

1. Races: 8 candidates about 10 points apart, 3 tasks of 200 items in groups of 4, 3 blocks. Share
   of the item evaluations used, and how often the one that is best on all items was stopped.
2. Evolutions: the strategy of that name, 64 candidates drawn beside the singles and the even
   mixture; every candidate on all items against racing, alone, with stages, and with curves for
   half of the items. Share of the item evaluations used; what is lost on 6,000 items that no search
   saw.
3. Estimates from a fifth of the items: root mean square error with curves and without.
4. Warm starts among specialists and a harmful model, 60 candidates: after how many of them an
   evolution from Heuristic-Average has climbed as high as a plain one after all, on average and in
   how many families within half of them.
5. Acceptance at 3 × 100 items: how often a merge is accepted that is no better, and one that is.

    python benchmarks/simulated_search.py [--races 1000] [--seeds 40] [--json FILE]

The simulations are those of the tests (tests/search/simulated*.py), with more draws.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from modelglue.journal import write_json

sys.path.append(str(Path(__file__).parents[1] / "tests" / "search"))

from simulated import WAYS, climb, compare, simulated_races
from simulated_answers import World, accepted, errors, rms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--races", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {
        "races": [races(arguments.races, level) for level in (0.02, 0.1, 0.3)],
        "evolutions": [evolutions(arguments.seeds, way) for way in WAYS if way != "no racing"],
        "estimates": [estimates(models) for models in (1, 2, 4, 8, 16)],
        "warm starts": [warm_starts(arguments.seeds, models) for models in (6, 12)],
        "acceptance": acceptance(arguments.races),
    }
    if arguments.json:
        write_json(arguments.json, found)


def races(number: int, level: float) -> dict[str, float]:
    """Races of many families at one level."""
    raced = simulated_races(range(number), level)
    used = float(np.mean([each.used for each in raced]))
    lost = float(np.mean([each.lost for each in raced]))
    show(f"race at level {level}: {used:.3f} of the items, {100 * lost:.1f} % of winners lost")
    return {"level": level, "races": number, "used": used, "lost": lost}


def evolutions(seeds: int, way: str) -> dict[str, Any]:
    """A way to evolve against full evaluation, over so many families."""
    used, loss, error = compare(seeds, way)
    show(
        f"evolution, {way}: {used:.3f} of the items, "
        f"{100 * loss:+.2f} ± {100 * error:.2f} points lost on unseen items"
    )
    return {"way": way, "seeds": seeds, "used": used, "loss": loss, "standard_error": error}


def estimates(models: int) -> dict[str, float]:
    """Estimates for merges of so many models from a fifth of the items."""
    mine, plain = [], []
    for seed in range(20):
        some = errors(World(seed, models=models), 30, 0.2)
        mine, plain = mine + some[0], plain + some[1]
    show(
        f"estimates from a fifth, {models} models: error {100 * rms(mine):.2f} points "
        f"(mean {100 * np.mean(mine):+.2f}), plain mean of the items {100 * rms(plain):.2f}"
    )
    return {"models": models, "error": rms(mine), "plain": rms(plain), "bias": float(np.mean(mine))}


def warm_starts(seeds: int, models: int) -> dict[str, Any]:
    """Plain evolutions and warm-started ones of so many models, over so many families."""
    plain, warm = (
        np.array([climb(seed, options, models=models) for seed in range(seeds)])
        for options in ({}, {"warm_start": "heuristic_average"})
    )
    above = warm.mean(axis=0) >= plain.mean(axis=0)[-1]
    trials = int(above.argmax()) + 1 if above.any() else None
    halved = float(np.mean(warm[:, plain.shape[1] // 2 - 1] >= plain[:, -1]))
    gain = float(np.mean(warm[:, -1] - plain[:, -1]))
    show(
        f"warm start, {models} models: as high as a plain evolution after {trials} trials on "
        f"average, within half of them in {100 * halved:.0f} % of families; in the end "
        f"{100 * gain:+.2f} points"
    )
    return {"models": models, "seeds": seeds, "trials": trials, "halved": halved, "gain": gain}


def acceptance(number: int) -> list[dict[str, Any]]:
    """How often a merge is accepted, by what it gains over its rivals."""
    cases = {
        "as good as the best single, 20 points above the base": ((0.0, 0.0, -0.2), 0.05, 1),
        "as good as both": ((0.0, 0.0, 0.0), 0.05, 1),
        "four finalists as good as the best single": ((0.0, 0.0), 0.05, 4),
        "5 points better than the best single": ((0.05, 0.0, -0.2), 0.05, 1),
        "5 points better, level 0.01": ((0.05, 0.0, -0.2), 0.01, 1),
        "10 points better, level 0.01": ((0.1, 0.0, -0.2), 0.01, 1),
    }
    rows = []
    for case, (gains, level, finalists) in cases.items():
        share = accepted(number, *gains, level=level, finalists=finalists) / number
        show(f"accepted at level {level}, {case}: {100 * share:.1f} %")
        rows.append({"case": case, "level": level, "draws": number, "accepted": share})
    return rows


def show(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
