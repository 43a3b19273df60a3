"""Merges as whole processes: modelglue, mergekit 0.1.5 and the floor, each in turn.

Makes Llama-shaped checkpoints of random weights in bf16 (a base and three fine-tunes) and an
environment for mergekit, both kept in the folder `--work` for the next run, and measures with
everything that is read in the page cache, and what was written deleted and synced between runs:

    compare   Every case on one core and on two: CPU seconds (user and system) of the whole process,
              start-up included; wall seconds; peak private memory (RssAnon + RssShmem, sampled
              every 20 ms: pages of mapped files are counted against nobody). The median of
              `--repeats`. One merge of each case is run beforehand and not counted, so that what
              either side compiles once and for all is compiled; what it took is written to the
              results. What takes seconds (ours, the floor) runs three times for each run of
              mergekit. The floor reads all inputs through one reused buffer of 4 MiB a thread and
              writes the output's bytes, synced. Wall beyond start-up is the wall of the merge less
              that of the same merge of tiny models.
    memory    Ours alone: peaks with models of 0.1, 1.1 and 7 B parameters, and with 2 to 16 models.
    tensors   Ours alone: 20,000 tiny tensors, and seconds per byte.
    show      The table of what was measured last.

Ours is the modelglue of the Python that runs this: one without extras, since mergekit's environment
has only what mergekit needs (numba loads scipy where it is, which costs 0.3 s and 80 MB).

    python benchmarks/merge.py compare [--cases ties slerp] [--cores 2] [--only ours floor]

The figures are written to benchmarks/results/merge.json (with another --size, to the folder of
--work), case by case. Where mergekit is not run its earlier figures stay, and are marked.
"""

import argparse
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fabricate import SIZES
from merge_cases import CASES, Bench
from merge_growth import measure_memory, measure_tensors, print_memory, print_tensors
from merge_table import print_comparison
from mergekit_env import TORCH, VERSION, mergekit_command
from modelglue.journal import read_json, write_json
from processes import Spent, median

HERE = Path(__file__).parent
SIDES = ("ours", "mergekit", "floor")
SHORT = 3
"""Runs in a row of what takes seconds, where mergekit has one: the shorter, the more they vary."""


def main() -> None:
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    name = "merge.json" if arguments.size == "1.1" else f"merge-{arguments.size}.json"
    folder = HERE / "results" if arguments.size == "1.1" else arguments.work
    path = arguments.json or folder / name
    results: dict[str, Any] = read_json(path) if path.exists() else {}
    if results.get("size") != arguments.size:
        results = {"size": arguments.size}
    if arguments.what != "show":
        results["machine"] = machine()
    bench = Bench(arguments.work)
    if arguments.what == "memory":
        results["memory"] = measure_memory(bench, arguments.cases, sizes=arguments.sizes)
    elif arguments.what == "tensors":
        results["tensors"] = measure_tensors(bench, arguments.cases, repeats=arguments.repeats)
    elif arguments.what == "compare":
        if "mergekit" in arguments.only:
            command = mergekit_command(arguments.work, arguments.mergekit)
            bench = replace(bench, mergekit=command)
        compare(bench, arguments, results, lambda: write_json(path, results))
    if arguments.what != "show":
        write_json(path, results)
    show(arguments.what, results)
    if arguments.what != "show":
        print(
            f"\n{path}\nCheckpoints and environments stay in {arguments.work}; delete it at will."
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("compare", "memory", "tensors", "show"))
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="where models are made")
    parser.add_argument("--size", choices=SIZES, default="1.1", help="billions of parameters")
    parser.add_argument("--cases", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", choices=SIDES, nargs="+", default=list(SIDES), help="sides to run"
    )
    parser.add_argument("--mergekit", type=Path, help="an environment that has mergekit already")
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=["0.1", "1.1", "7"])
    parser.add_argument("--json", type=Path, help="where the figures go")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": found[1] if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "modelglue": version("modelglue"),
        "mergekit": VERSION,
        "mergekit's torch": TORCH,
    }


def compare(
    bench: Bench, arguments: argparse.Namespace, results: dict[str, Any], save: Callable[[], None]
) -> None:
    """Measure the cases; each is saved as soon as it is measured."""
    cases = results.setdefault("cases", {})
    for name in arguments.cases:
        by_cores = cases.setdefault(name, {})
        for cores in arguments.cores:
            row = measure(bench, name, arguments, cores=cores)
            by_cores[str(cores)] = {**by_cores.get(str(cores), {}), **row}
            results["cases"] = {
                each: dict(sorted(cases[each].items())) for each in CASES if each in cases
            }
            save()


def measure(
    bench: Bench, name: str, arguments: argparse.Namespace, *, cores: int
) -> dict[str, dict[str, Any]]:
    """One case: all sides in turn, so many times."""
    case = CASES[name]
    tiny = bench.models("tiny", case.models)
    models = tiny if case.tiny else bench.models(arguments.size, case.models)
    sides: dict[str, Callable[[], Spent]] = {
        "ours": lambda: bench.ours(name, models, cores=cores),
        "mergekit": lambda: bench.mergekits(name, models, cores=cores),
        "floor": lambda: bench.floor(models, cores=cores),
        "tiny": lambda: bench.ours(name, tiny, cores=cores),
    }
    wanted = [side for side in SIDES if side in arguments.only]
    if case.tiny:
        wanted = [side for side in wanted if side != "floor"]
    elif "ours" in wanted:
        wanted.append("tiny")
    first = {"ours": bench.ours(name, tiny, cores=cores)} if "ours" in wanted else {}
    if "mergekit" in wanted:
        first["mergekit"] = bench.mergekits(name, tiny, cores=cores)
    runs: dict[str, list[Spent]] = {side: [] for side in wanted}
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    for _ in range(arguments.repeats):
        for side in wanted:
            for _ in range(1 if side == "mergekit" else SHORT):
                runs[side].append(sides[side]())
                print(f"{name}, {cores} cores, {side}: {_told(runs[side][-1])}", flush=True)
    return {
        side: {
            **median(all_runs).to_json(),
            "runs": [one.to_json() for one in all_runs],
            "run": started,
            **({"uncounted": first[side].to_json()} if side in first else {}),
        }
        for side, all_runs in runs.items()
    }


def _told(spent: Spent) -> str:
    return f"{spent.cpu:.2f} CPU s, {spent.wall:.2f} s, {spent.private / 1e6:.0f} MB"


def show(what: str, results: dict[str, Any]) -> None:
    """Print the tables of what was measured."""
    chosen: Sequence[str] = ("compare", "memory", "tensors") if what == "show" else (what,)
    if "compare" in chosen and "cases" in results:
        print_comparison(results["cases"])
    if "memory" in chosen and "memory" in results:
        print_memory(results["memory"])
    if "tensors" in chosen and "tensors" in results:
        print_tensors(results["tensors"])


if __name__ == "__main__":
    main()
