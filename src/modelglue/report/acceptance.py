"""The page's section on which merges were accepted."""

from modelglue.report import figures, verdicts, words
from modelglue.report.data import AcceptanceTest, RunReport
from modelglue.report.markup import Markup, element


def acceptance(report: RunReport) -> list[Markup]:
    """One box a test: the verdict in words, then each rival's difference with its interval.

    A search that came back to a single model has a box too.
    """
    gaps = [one.difference for test in report.acceptance for one in test.comparisons]
    low, high, marks = figures.scale(gaps)
    axis = element("div", figures.forest_axis(low, high, marks), class_="axis-row")
    tested = [_verdict(test, report, low, high, axis) for test in report.acceptance]
    return tested + [
        element(
            "article",
            _title(one.title, verdicts.UNTESTED),
            element("p", one.said, class_="said"),
            class_="test refused",
        )
        for one in verdicts.untested(report)
    ]


def _verdict(
    test: AcceptanceTest, report: RunReport, low: float, high: float, axis: Markup
) -> Markup:
    rivals = [
        element(
            "li",
            element("div", "against ", element("b", one.rival), class_="who"),
            figures.forest_track(
                one.difference,
                low,
                high,
                f"against {one.rival}",
                interval=verdicts.confidence(test),
            ),
            element(
                "div",
                element(
                    "b",
                    words.points(one.difference.mean),
                    class_=figures.tone_of(one.difference),
                ),
                " ",
                element("span", f"({words.interval(one.difference)})", class_="muted nowrap"),
                element("span", verdicts.p_is(one.p), class_="kind"),
                class_="value",
            ),
        )
        for one in test.comparisons
    ]
    tone = "accepted" if test.accepted else "refused"
    return element(
        "article",
        _title(verdicts.title(test, report), verdicts.mark(test)),
        element("p", verdicts.said(test), class_="said"),
        element("div", element("ul", rivals), axis, class_="forest") if rivals else None,
        element("p", verdicts.terms(test), class_="keys"),
        class_=f"test {tone}",
    )


def _title(whose: str, mark: str) -> Markup:
    return element("h3", f"{whose}\N{NO-BREAK SPACE} ", element("span", mark, class_="verdict"))
