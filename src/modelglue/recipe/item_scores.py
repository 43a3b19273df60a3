"""What the experts scored on the search items, item by item, for routers that go by scores."""

from collections.abc import Mapping, Sequence
from contextlib import closing

import torch

from modelglue.errors import EvaluationError
from modelglue.evaluate.scores import Scores
from modelglue.evaluate.task import Task
from modelglue.mixture.router_scores import ScoreTable
from modelglue.recipe.choose import prompts_of
from modelglue.recipe.family_choice import FamilyChoice
from modelglue.recipe.session import Session
from modelglue.recipe.workers import blocks_of
from modelglue.search.trials import JournalledObjective


def scores_at_all_tasks(session: Session, choice: FamilyChoice, whole: FamilyChoice) -> Scores:
    """The chosen model's scores on the search items of every task, its family's own or not.

    A family that was searched once more for its own tasks has a merge that nobody tried at the
    others: there it is scored now, and journalled as any candidate. Where it cannot be scored the
    task is left out, with a note.

    Args:
        choice: what became of the family.
        whole: what was chosen in it for all tasks.
    """
    if choice.single is not None:
        return whole.singles[choice.single]
    if choice.coefficients == whole.coefficients:
        return whole.scores
    tasks = [task for task in session.inputs.tasks if task.name not in choice.tasks]
    session.tell("mixture", f"{choice.label} at {', '.join(task.name for task in tasks)}")
    items = {task.name: tuple(range(len(task.items("search")))) for task in tasks}
    with closing(session.executor(choice.members, tasks, {None: items})) as executor:
        objective = JournalledObjective(
            executor,
            session.run.journal,
            scope=f"elsewhere-{choice.number}",
            items=blocks_of(tasks, items, 1),
        )
        trial = objective(choice.coefficients)
    if trial.scores is None:
        names = ", ".join(task.name for task in tasks)
        session.note(f"{choice.label} cannot be scored at {names}: {trial.failure}")
        return choice.scores
    return Scores((*choice.scores.tasks, *trial.scores.tasks))


def score_table(tasks: Sequence[Task], experts: Mapping[str, Scores]) -> ScoreTable:
    """Every search item as the router sees it, with each expert's score.

    Args:
        tasks: whose items are the rows, in their order.
        experts: in the order of the columns; the items of a task in any order. Who has no scores at
            a task is there as bad as the worst of the others.

    Raises:
        EvaluationError: no expert has scores at a task, or one has none of an item.
    """
    texts: list[str] = []
    rows: list[torch.Tensor] = []
    for task in tasks:
        columns = [_column(task, scores) for scores in experts.values()]
        known = [column for column in columns if column is not None]
        if not known:
            raise EvaluationError(f"no expert has scores at task {task.name}")
        least = torch.stack(known).amin(dim=0)
        rows.append(torch.stack([least if own is None else own for own in columns], dim=1))
        texts += prompts_of(task, "search")
    return ScoreTable(texts, torch.cat(rows))


def _column(task: Task, scores: Scores) -> torch.Tensor | None:
    """An expert's score on each search item, in the order of the items."""
    own = next((each for each in scores.tasks if each.task == task.name), None)
    if own is None:
        return None
    by_item = dict(zip(own.items, own.values, strict=True))
    wanted = [item.id for item in task.items("search")]
    if missing := [item for item in wanted if item not in by_item]:
        raise EvaluationError(
            f"task {task.name}: {len(missing)} search items have no score, {missing[0]} for one"
        )
    return torch.tensor([by_item[item] for item in wanted])
