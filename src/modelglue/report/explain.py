"""One or two plain sentences for each section, shared by the page and its Markdown twin."""

from modelglue.report import generations
from modelglue.report.data import RunReport

RESULT = (
    "Difference from the best single model in points out of 100, averaged over the tasks, with "
    "95 % intervals from resampling the same items for both. An interval that crosses the zero "
    "line leaves the sign open."
)
INTERVALS = (
    "Each interval is of one comparison and is not corrected for the number of rows. The best "
    "single model is the one that scores highest here, which nobody could know beforehand."
)
TABLE = (
    "Scores out of 100 on report items, which no choice of a merge or a router was based on. The "
    "oracle answers each task with whichever single model is best there, which nobody can know "
    "beforehand. Stored parameters cost disk and memory, active "
    "ones cost time for each token."
)
TABLE_BOLD = "The best value of a column, the oracle aside, is bold."
FATES = (
    "A coefficient is a model's weight in the merge of its family. Scores are out of 100 on the "
    "search items, which every choice was made on."
)
SIMILARITY = (
    "Cosine similarity of the attention and MLP weights of each pair. Models form a family if "
    "every pair of it reaches the threshold; only models of one family are merged."
)
FRAMES = "In the map each family has a frame, and models stand in the order of their families."
SEARCH = (
    "Each search starts from the best single model of a family and lets the others come up one by "
    "one: a candidate stays if the best mixture found with it scores higher on the search items. "
    "A mixture c : 1\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}c keeps c of what stood before."
)
EVOLUTION = (
    "An evolution draws each generation of candidates around a centre, then moves the centre, and "
    "the step size of the next draw, towards those that scored best on the search items."
)
DATA_FLOW = (
    "A search for an order of layers makes each generation by a few changes to the best order so "
    "far, and goes on from the best of the new ones unless it is worse."
)
ESTIMATES = (
    "A candidate that is stopped early counts with an estimate, which may lie above the best so "
    "far on all items."
)
SELECTED = (
    "The score of a search is that of the best of its trials, on the very items that it was chosen "
    "by: some of it is luck, and its interval is not corrected for that choice."
)
ACCEPTED = "Which merges were accepted"
ACCEPTANCE = (
    "Who looks at many candidates finds one that is lucky on its items. The best that was found "
    "in a family was therefore tested once more, on items that no search had seen: a merge is "
    "accepted only if a paired test finds it better than each rival, and otherwise the best single "
    "model stays. "
    "Differences are in points; p is the chance of one at least this large for a merge that is no "
    "better. An interval lies above 0 where the test says that the merge is better, and only "
    "there: both are corrected for the number of merges tested on these items. The candidates "
    "tried before need no correction here, as none of them was scored on these items."
)
ROUTING = (
    "How many report items of each task the router sent to each expert. It sees the prompt alone, "
    "and decides once."
)
MAKING = "What the run was given, so that it can be repeated and checked."

MAX_REASONS = 200
"""More pairs than this are left to report.json: a hundred models have 4,950."""


def search(report: RunReport) -> str:
    """How the searches of this run went."""
    evolved = any(path.generations for path in report.searches)
    stepped = any(path.steps for path in report.searches)
    told = {
        SEARCH: stepped or not evolved,
        EVOLUTION: any(generations.step_sizes(path) for path in report.searches),
        DATA_FLOW: any(
            path.generations and not generations.step_sizes(path) for path in report.searches
        ),
        ESTIMATES: evolved,
        SELECTED: bool(report.searches),
    }
    return " ".join(text for text, holds in told.items() if holds)


def no_searches(report: RunReport) -> str:
    """Why there is no search path to show."""
    if all(len(members) < 2 for members in report.similarity.families):
        return "No family has two models, so there was nothing to search."
    return "No search was run."


NO_ROUTING = "There is no router in this run: the result is one model."


def threshold(report: RunReport) -> str:
    """The families in one sentence."""
    families = report.similarity.families
    count = "1 family" if len(families) == 1 else f"{len(families)} families"
    return f"{count} at threshold {report.similarity.threshold:g}."
