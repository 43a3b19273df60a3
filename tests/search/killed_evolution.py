"""An evolution in a folder that takes a second or two; to be killed on the way, and run again."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from landscapes import BLOCKS, answered, near, problem

from modelglue.journal import Journal
from modelglue.search.executors.serial import Serial
from modelglue.search.problem import Trial, Tried, search
from modelglue.search.study import Study
from modelglue.search.trials import JournalledObjective

GOAL = {"a": 0.55, "b": 0.4, "c": 0.05, "d": 0.0}


def hill(coefficients: Mapping[str, float]) -> float:
    return 0.5 + near(GOAL)(coefficients) / 2


def evolve(folder: Path, *, nap: float, mirrored: bool = False) -> dict[str, Any]:
    """Every evaluation takes so many seconds; a study may stand beside the journal."""

    def evaluate(coefficients: Mapping[str, float], block: int | None) -> Trial:
        time.sleep(nap)
        trial = answered(hill)(coefficients)
        assert trial.scores is not None
        return trial if block is None else Trial(BLOCKS.part(trial.scores, block))

    told: list[Tried] = []
    study = Study(folder / "study.log", "evolution") if mirrored else None

    def tell(tried: Sequence[Tried]) -> None:
        told.extend(tried)
        if study is not None:
            study.add(tried)

    with Journal(folder / "journal.jsonl") as journal:
        trying = JournalledObjective(Serial(evaluate), journal, scope="s", items=BLOCKS)
        options = {"trials": 45, "racing": "on", "stages": 2}
        given = problem(GOAL, trying, seed=5, options=options, tell=tell)
        result = search("evolution", given)
    return {"result": result, "told": told}


if __name__ == "__main__":
    evolve(Path(sys.argv[1]), nap=0.004, mirrored="mirrored" in sys.argv)
