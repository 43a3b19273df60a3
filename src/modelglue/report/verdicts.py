"""Which merges were accepted, in words: the same on the page, in Markdown and in a terminal."""

import math
from dataclasses import dataclass

from modelglue.report import words
from modelglue.report.data import AcceptanceTest, RivalComparison, RunReport, SearchPath
from modelglue.search.knobs import is_plain

ACCEPTED = "● accepted"
REFUSED = "✕ not accepted"
UNTESTED = "○ nothing to accept"
NO_MERGE = "No merge helps here: the best single model stays."
HEAD = ("Against", "Difference (interval)", "p")


def mark(test: AcceptanceTest) -> str:
    """The verdict in a word."""
    return ACCEPTED if test.accepted else REFUSED


def title(test: AcceptanceTest, report: RunReport) -> str:
    """Whose merge was tested; the tasks too, where it was for some of them only."""
    purpose = f", for {', '.join(test.purpose)}" if _narrowed(test, report) else ""
    return f"Family {words.family(test.family)}{purpose}"


def said(test: AcceptanceTest) -> str:
    """The verdict in a sentence."""
    return test.text or ("The merge is accepted." if test.accepted else NO_MERGE)


@dataclass(frozen=True)
class Untested:
    """A search that was not put to the test, as the best that it found is a single model."""

    path: SearchPath
    model: str

    @property
    def title(self) -> str:
        """Whose search it was."""
        return f"Family {words.family(self.path.family)}, {words.strategy(self.path.strategy)}"

    @property
    def said(self) -> str:
        """What it came to in a sentence."""
        return (
            "No merge helps here: nothing that was tried is better than the best single model, "
            f"{self.model}, which stays."
        )


def untested(report: RunReport) -> list[Untested]:
    """The winners that are a single model, in a run whose merges must be accepted."""
    if not (report.acceptance or any(task.validation_items for task in report.tasks)):
        return []
    alone = [(path, _single(path)) for path in report.searches if path.winner]
    return [
        Untested(path, model)
        for path, model in alone
        if model is not None and of_path(report, path) is None
    ]


def any_told(report: RunReport) -> bool:
    """Whether there is anything to say of acceptance."""
    return bool(report.acceptance or untested(report))


def no_merge(report: RunReport) -> str:
    """What to say at the top if no family has a merge that helps; nothing if one has."""
    refusals: dict[int, str] = {}
    for test in report.acceptance:
        if test.accepted:
            return ""
        refusals.setdefault(test.family, said(test))
    for one in untested(report):
        refusals.setdefault(one.path.family, one.said)
    searched = {path.family for path in report.searches}
    if not refusals or searched - set(refusals):  # some merge was believed without a test
        return ""
    if len(refusals) == 1:
        return next(iter(refusals.values()))
    *most, last = map(words.family, sorted(refusals))
    return (
        f"No merge helps in families {', '.join(most)} and {last}: "
        "the best single model of each stays."
    )


def terms(test: AcceptanceTest) -> str:
    """What the test was, and how much had been looked at before."""
    shared = f", shared by {test.looks} tests on these items" if test.looks > 1 else ""
    tried = "1 candidate" if test.tried == 1 else f"{test.tried:,} candidates"
    return (
        f"Found by {words.strategy(test.candidate)} after {tried}; "
        f"tested at level {test.level:g}{shared}, with {confidence(test)}s."
    )


def confidence(test: AcceptanceTest) -> str:
    """What the intervals of a test are, which it gives itself.

    A one-sided test at level a, shared by n, belongs to an interval that misses 2·a/n.
    """
    missed = 2 * test.level / max(test.looks, 1)
    if not 0 < missed < 1:
        return "interval"
    return f"{100 - float(f'{100 * missed:.2g}'):.10g} % interval"


def evidence(comparison: RivalComparison) -> tuple[str, str]:
    """A difference with its interval, and its p."""
    gap = comparison.difference
    return f"{words.points(gap.mean)} ({words.interval(gap)})", p_value(comparison.p)


def p_value(p: float) -> str:
    """A p-value as papers print it.

    >>> p_value(0.0123), p_value(0.00002)
    ('0.012', '< 0.001')
    """
    if not math.isfinite(p):
        return words.NONE
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def p_is(p: float) -> str:
    """The same as a statement.

    >>> p_is(0.0123), p_is(0.00002)
    ('p = 0.012', 'p < 0.001')
    """
    shown = p_value(p)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def of_path(report: RunReport, path: SearchPath) -> AcceptanceTest | None:
    """The test of what a search found, None if it was not tested."""
    for test in report.acceptance:
        if test.family == path.family and path.strategy == _name(test, report):
            return test
    return None


def refused(report: RunReport, path: SearchPath) -> bool:
    """Whether what a search found was tested and not accepted."""
    test = of_path(report, path)
    return test is not None and not test.accepted


def _single(path: SearchPath) -> str | None:
    """The model that a result is, if it is one."""
    numbers = [(name, number) for name, number in path.coefficients.items() if number]
    if len(numbers) != 1 or numbers[0][1] != 1:
        return None
    name = numbers[0][0]
    stepped = any(step.candidate == name for step in path.steps)
    return name if stepped or "\n" in name or is_plain(name) else None


def _narrowed(test: AcceptanceTest, report: RunReport) -> bool:
    """Whether a merge is for some of the tasks only."""
    return bool(test.purpose) and set(test.purpose) < set(words.task_names(report))


def _name(test: AcceptanceTest, report: RunReport) -> str:
    """What the search is called that found it: a narrowed one after its tasks too."""
    tasks = f" for {', '.join(test.purpose)}"
    named = not _narrowed(test, report) or test.candidate.endswith(tasks)
    return test.candidate if named else test.candidate + tasks
