"""How search items are cut into blocks."""

from hypothesis import given, settings
from hypothesis import strategies as st

from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.search.blocks import cut

# task → the group of each of its items, by the items' place
tasks = st.dictionaries(
    st.sampled_from("tuv"),
    st.lists(st.integers(0, 30).map(str), min_size=1, max_size=40),
    min_size=1,
)


def groups_of(given: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    return {task: {f"{task}{i}": g for i, g in enumerate(of)} for task, of in given.items()}


def numbered(groups: dict[str, dict[str, str]]) -> Scores:
    """Scores that are all different."""
    return Scores(
        tuple(
            TaskScores(
                task,
                tuple(of),
                tuple(i / len(of) for i in range(len(of))),
                groups=tuple(of.values()),
                metrics={"place": tuple(float(i) for i in range(len(of)))},
            )
            for task, of in groups.items()
        )
    )


@given(tasks, st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_every_block_has_a_like_share_of_every_task_and_no_group_is_torn(given, count) -> None:
    groups = groups_of(given)
    blocks = cut(groups, count)
    fewest = min(len(set(of.values())) for of in groups.values())
    number = len(blocks.items)
    assert number <= count
    assert number == count or 2**number > fewest
    parts = [2.0 ** (max(n, 1) - number) for n in range(number)]  # 1/4, 1/4, 1/2
    for task, of in groups.items():
        places = blocks.places[task]
        assert list(places) == list(of)
        held = [list(places.values()).count(block) for block in range(number)]
        largest = max(list(of.values()).count(group) for group in of.values())
        assert min(held) > 0
        for block in range(number):
            assert abs(held[block] - parts[block] * len(of)) <= largest
        assert len({(of[item], place) for item, place in places.items()}) == len(set(of.values()))


@given(tasks, st.integers(1, 8), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_a_file_and_the_other_tasks_change_nothing(given, count, random) -> None:
    groups = groups_of(given)
    blocks = cut(groups, count)
    shuffled = {task: dict(random.sample(list(of.items()), len(of))) for task, of in groups.items()}
    assert cut(shuffled, count).places == blocks.places
    for task in groups:
        alone = cut({task: groups[task]}, len(blocks.items))
        assert alone.places == {task: blocks.places[task]}


@given(tasks, st.integers(1, 8), st.randoms())
@settings(max_examples=50, deadline=None)
def test_what_was_cut_can_be_joined_in_the_order_of_the_file(given, count, random) -> None:
    groups = groups_of(given)
    scores, blocks = numbered(groups), cut(groups, count)
    parts = [blocks.part(scores, block) for block in range(len(blocks.items))]
    assert [sum(len(task.items) for task in part.tasks) for part in parts] == list(blocks.items)
    assert all(blocks.fits(part, block) for block, part in enumerate(parts))
    assert blocks.join(random.sample(parts, len(parts))) == scores
    assert blocks.fits(scores, None)
    if len(parts) > 1:
        assert not blocks.fits(scores, 0)
        assert not blocks.fits(parts[0], 1)


def test_blocks_are_drawn_from_all_over_the_file() -> None:
    groups = groups_of({"t": [f"{i:03}" for i in range(200)]})
    places = list(cut(groups, 3).places["t"].values())
    for block, size in enumerate((50, 50, 100)):
        found = [i for i, place in enumerate(places) if place == block]
        assert len(found) == size
        assert 80 < sum(found) / size < 120  # of the first quarter: 25
        assert len(set(places[block::4])) == 3  # nor every fourth, as files often repeat a pattern
