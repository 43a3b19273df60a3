"""What was measured of each merge, judged against what is promised, and printed."""

from collections.abc import Mapping
from typing import Any

from merge_cases import CASES, MEMORY

Row = Mapping[str, Any]
"""One case on so many cores: the figures of each side, and the wall of the case on tiny models."""

WALL_CORES = 2
"""The wall is promised on so many cores."""


def same_run(row: Row) -> bool:
    """Whether both sides were run in turn, so that their ratio may be claimed."""
    return "mergekit" in row and row["mergekit"]["run"] == row["ours"]["run"]


def cpu_ratio(row: Row) -> float | None:
    """How many times less CPU than mergekit ours took."""
    return row["mergekit"]["cpu"] / row["ours"]["cpu"] if "mergekit" in row else None


def beyond_start(row: Row) -> float:
    """Wall seconds of ours less those of the same merge of tiny models."""
    return max(0.0, float(row["ours"]["wall"]) - float(row["tiny"]["wall"]))


def wall_ratio(row: Row) -> float | None:
    """Wall beyond start-up against the floor's."""
    return beyond_start(row) / row["floor"]["wall"] if "floor" in row and "tiny" in row else None


def verdicts(name: str, cores: int, row: Row) -> dict[str, bool]:
    """What is promised of this case on so many cores, each kept or not."""
    case = CASES[name]
    found = {"memory": row["ours"]["private"] <= MEMORY}
    cpu, wall = cpu_ratio(row), wall_ratio(row)
    if cpu is not None and same_run(row):
        found["cpu"] = cpu >= case.cpu
    if wall is not None and case.wall is not None and cores == WALL_CORES:
        found["wall"] = wall <= case.wall
    return found


def print_comparison(rows: Mapping[str, Mapping[str, Row]]) -> None:
    """The table: cases by name, then by the number of cores."""
    print(
        f"\n{'':17}{'':6}{'CPU s of the whole process':^34}"
        f"{'wall s':^37}{'peak private MB':^26}\n"
        f"{'case':17}{'cores':>5} {'ours':>7}{'mergekit':>9}{'ratio':>8}{'':10}"
        f"{'ours':>6}{'start':>6}{'floor':>7}{'ratio':>7}{'':11}"
        f"{'ours':>5}{'':5}{'mergekit':>10}"
    )
    for name, by_cores in rows.items():
        for cores, row in by_cores.items():
            print(_line(name, int(cores), row))
    print(
        "\nratio of CPU: mergekit's to ours. start: the wall of the same merge of tiny models.\n"
        "ratio of wall: (ours − start) to the floor, which reads all inputs and writes and syncs\n"
        "the output's bytes with as many threads. mergekit syncs nothing; ours does."
    )
    every = [row for by_cores in rows.values() for row in by_cores.values()]
    if any("mergekit" not in row for row in every):
        print("–: mergekit was not run.")
    if any("mergekit" in row and not same_run(row) for row in every):
        print("*: mergekit's figure is from an earlier run, so its ratio is no claim.")


def _line(name: str, cores: int, row: Row) -> str:
    case, ours, kept = CASES[name], row["ours"], verdicts(name, cores, row)
    cpu, wall = cpu_ratio(row), wall_ratio(row)
    theirs = row.get("mergekit")
    text = f"{name:17}{cores:>5} {ours['cpu']:7.2f}"
    if theirs is None or cpu is None:
        text += f"{'–':>9}{'':18}"
    else:
        mark = "×" if same_run(row) else "*"
        judged = _judged(kept, "cpu", f"≥ {case.cpu:g}")
        text += f"{theirs['cpu']:9.2f}{cpu:7.1f}{mark} {judged:9}"
    text += f"{ours['wall']:6.2f}"
    if wall is None:
        text += f"{'':31}"
    else:
        limit = f"≤ {case.wall:g}" if case.wall else ""
        text += f"{row['tiny']['wall']:6.2f}{row['floor']['wall']:7.2f}{wall:6.2f}× "
        text += f"{_judged(kept, 'wall', limit):10}"
    text += f"{ours['private'] / 1e6:6.0f} {_judged(kept, 'memory', ''):4}"
    return text + (f"{theirs['private'] / 1e6:10.0f}" if theirs else f"{'–':>10}")


def _judged(kept: Mapping[str, bool], what: str, limit: str) -> str:
    if what not in kept:
        return ""
    return f"{limit} {'yes' if kept[what] else 'NO'}".strip()
