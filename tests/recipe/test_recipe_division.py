"""What proposes and what accepts never share a group, and neither order nor file names matter."""

import json
import random
from pathlib import Path

import pytest

from modelglue.errors import ConfigError
from modelglue.evaluate.file_task import FileTask
from modelglue.evaluate.task import Task
from modelglue.recipe.division import divide


def task(folder: Path, *, groups: int, each: int = 3, shuffle: int | None = None) -> Task:
    folder.mkdir(exist_ok=True)
    items = [
        {"id": f"{g}-{i}", "group": f"g{g}", "prompt": f"{g} {i}?", "answer": "x"}
        for g in range(groups)
        for i in range(each)
    ]
    if shuffle is not None:
        random.Random(shuffle).shuffle(items)
    seen = {**items[0], "id": "r", "group": "r", "prompt": "another?"}
    for split, lines in {"search": items, "report": [seen]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(i) + "\n" for i in lines))
    mapping = {"name": "t", "kind": "generate", "search": "search.jsonl", "report": "report.jsonl"}
    return FileTask.from_mapping(mapping, root=folder)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_the_parts_share_no_group_and_hold_every_item(tmp_path: Path, share: float) -> None:
    one = task(tmp_path, groups=40)
    division = divide([one], share)
    propose, accept = division.propose["t"], division.accept["t"]
    assert sorted(propose + accept) == list(range(120))
    groups = [item.group for item in one.items("search")]
    assert not {groups[i] for i in propose} & {groups[i] for i in accept}
    assert share * 120 <= len(accept) < share * 120 + 3


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    found = []
    for seed in (None, 1, 2):
        one = task(tmp_path / str(seed), groups=30, shuffle=seed)
        ids = [item.id for item in one.items("search")]
        found.append({ids[i] for i in divide([one], 0.4).accept["t"]})
    assert found[0] == found[1] == found[2]


def test_without_a_share_every_item_proposes(tmp_path: Path) -> None:
    division = divide([task(tmp_path, groups=2)], 0.0)
    assert division.propose == {"t": tuple(range(6))}
    assert division.accept == {}


def test_too_few_groups_are_refused_with_the_tasks_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.validation: task t has 3 groups"):
        divide([task(tmp_path, groups=3)], 0.5)
