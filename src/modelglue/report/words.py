"""What a report says in words and figures, the same on the page, in Markdown and in a terminal."""

import math
from collections.abc import Mapping, Sequence

from modelglue.report.data import (
    Difference,
    ModelFate,
    RunReport,
    SearchPath,
    SearchStep,
    TableRow,
    TaskInfo,
)

NONE = "–"
START = "■ start"
MINUS = "−"
VALIDATION = "Of these only for accepting"

FATES = {
    "merged": "● merged",
    "expert": "◆ expert",
    "dropped": "✕ dropped",
    "baseline": "○ baseline",
}
KINDS = {
    "single": "single model",
    "uniform": "uniform merge",
    "heuristic": "searched merge",
    "mixture": "not merged",
    "glued": "the result",
    "oracle": "upper bound",
}
_ORDER = ("single", "uniform", "heuristic", "mixture", "glued", "oracle")


def best_single(report: RunReport) -> TableRow | None:
    """The row that the others are compared with: the single one without a difference."""
    singles = [row for row in report.table if row.kind == "single"]
    reference = [row for row in singles if row.difference is None] or singles
    return max(reference, key=lambda row: _sortable(row.average), default=None)


def glued_row(report: RunReport) -> TableRow | None:
    """The row of the result itself."""
    return next((row for row in report.table if row.kind == "glued"), None)


def contestants(report: RunReport) -> list[TableRow]:
    """The best single model, then merges, mixture, result and oracle."""
    best = best_single(report)
    rest = [row for row in report.table if row.kind != "single"]
    rest.sort(key=lambda row: _ORDER.index(row.kind))
    return ([best] if best else []) + rest


def other_singles(report: RunReport) -> list[TableRow]:
    """Every other single model, best first."""
    best = best_single(report)
    singles = [row for row in report.table if row.kind == "single" and row is not best]
    return sorted(singles, key=lambda row: -_sortable(row.average))


def label(row: TableRow, report: RunReport) -> str:
    """What kind of contestant a row is."""
    return "best single model" if row is best_single(report) else KINDS[row.kind]


def task_names(report: RunReport) -> list[str]:
    """Tasks in the order of `tasks`, then any that only scores name."""
    names = [task.name for task in report.tasks]
    names += [name for row in report.table for name in row.scores]
    return list(dict.fromkeys(names))


def best_scores(report: RunReport) -> dict[str, float]:
    """The highest score of each task among all rows but the oracle; "" is the average."""
    best: dict[str, float] = {}
    for row in report.table:
        if row.kind == "oracle":
            continue
        for task, value in {**row.scores, "": row.average}.items():
            if math.isfinite(value):
                best[task] = max(value, best.get(task, -math.inf))
    return best


def glance(report: RunReport) -> list[tuple[str, str, str]]:
    """(what, figure, remark) of the four or six things to know first."""
    best, glued = best_single(report), glued_row(report)
    facts: list[tuple[str, str, str]] = []
    if best and glued:
        if glued.difference:
            remark = f"points; 95 % interval {interval(glued.difference)}"
            facts.append(("Gain", points(glued.difference.mean), remark))
        for what, verb, mine, theirs in (
            ("Cost to keep", "stored", glued.stored, best.stored),
            ("Cost to run", "active", glued.active, best.active),
        ):
            remark = f"{parameters(mine)} parameters {verb}, best single {parameters(theirs)}"
            facts.append((what, _times(mine, theirs), remark))
    used = [model for model in report.models if model.fate in ("merged", "expert")]
    dropped = sum(model.fate == "dropped" for model in report.models)
    facts.append(("Models used", f"{len(used)} of {len(report.models)}", f"{dropped} dropped"))
    if report.acceptance:
        accepted = sum(test.accepted for test in report.acceptance)
        remark = f"by {report.merge}; tested on items that no search had seen"
        facts.append(("Merges accepted", f"{accepted} of {len(report.acceptance)}", remark))
    elif any(model.fate == "merged" for model in report.models):
        method, _, parameters_of = report.merge.partition(" with ")
        facts.append(("Merged by", method, parameters_of or "the method of merging"))
    unmerged = next((row for row in report.table if row.kind == "mixture"), None)
    if unmerged and glued:
        remark = f"average, storing {parameters(unmerged.stored)} parameters"
        facts.append(("Without merging", score(unmerged.average), remark))
    return facts


def winning_search(report: RunReport, family: int | None) -> SearchPath | None:
    """The search whose result is the family's merge."""
    return next((s for s in report.searches if s.family == family and s.winner), None)


def searches_by_family(report: RunReport) -> list[tuple[int, list[SearchPath]]]:
    """Searches of each family, the winner first."""
    families = sorted({path.family for path in report.searches})
    return [
        (
            family,
            sorted((s for s in report.searches if s.family == family), key=lambda s: not s.winner),
        )
        for family in families
    ]


def by_family(models: Sequence[ModelFate]) -> list[ModelFate]:
    """Models in their order, family by family, those without one last."""
    return sorted(models, key=lambda m: math.inf if m.family is None else m.family)


def strategy(name: str) -> str:
    """`heuristic_coefficient` as the paper writes it."""
    return "-".join(word.capitalize() for word in name.split("_"))


def family(index: int | None) -> str:
    """Families are counted from 1 for people."""
    return NONE if index is None else f"{index + 1}"


def score(value: float) -> str:
    """A score out of 100."""
    return f"{100 * value:.1f}".replace("-", MINUS) if math.isfinite(value) else NONE


def points(value: float) -> str:
    """A signed difference in points."""
    if not math.isfinite(value):
        return NONE
    # The end of an interval just beside zero decides the verdict: it must not read as zero.
    digits = 2 if 0.00005 <= abs(value) < 0.0005 else 1
    text = f"{100 * value:+.{digits}f}".replace("-", MINUS)
    return "0.0" if text in ("+0.0", f"{MINUS}0.0") else text


def interval(difference: Difference) -> str:
    """The ends of an interval in points."""
    return f"{points(difference.low)} to {points(difference.high)}"


def difference(row: TableRow) -> str:
    """A row's difference with its interval."""
    if row.difference is None:
        return NONE
    return f"{points(row.difference.mean)} ({interval(row.difference)})"


def parameters(count: int) -> str:
    """A number of parameters: 950 k, 1.1 M, 7.2 B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return str(count)


def weight(value: float | None) -> str:
    """A coefficient."""
    if value is None or not math.isfinite(value):
        return NONE
    if 0 < abs(value) < 0.0005:
        return "< 0.001" if value > 0 else f"> {MINUS}0.001"
    return f"{value:.3f}".replace("-", MINUS)


def mixture(share: float | None) -> str:
    """c : 1 − c, what stood before against the candidate."""
    return NONE if share is None else f"{share:.2f} : {1 - share:.2f}"


def gain(step: SearchStep) -> str:
    """What the candidate did to the score."""
    return NONE if step.coefficient is None else points(step.score - step.incumbent)


def outcome(step: SearchStep, index: int) -> str:
    """What became of a candidate."""
    if index == 0 and step.coefficient is None and step.accepted:
        return START
    return "● came in" if step.accepted else "✕ dropped"


def validation(task: TaskInfo) -> str:
    """How many of a task's search items only accept."""
    return f"{task.validation_items}" if task.validation_items else NONE


def similar(value: float | None) -> str:
    """A cosine similarity."""
    return NONE if value is None else f"{value:.3f}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """A time that a person can read."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def share(count: int, counts: Sequence[int]) -> float:
    """A count's part of a row, 0 for an empty row."""
    return count / sum(counts) if sum(counts) else 0.0


def mean(scores: Mapping[str, float]) -> float:
    """Plain mean of the tasks, NaN without any."""
    return sum(scores.values()) / len(scores) if scores else math.nan


def _times(part: int, whole: int) -> str:
    return f"× {part / whole:.1f}" if whole else NONE


def _sortable(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
