import random

import pytest
import torch

from modelglue.evaluate.encoding import Continued
from modelglue.evaluate.tree import Rows, families, filled, lay_out, trees


def texts(seed: int, *, before: tuple[int, ...] = ()) -> list[Continued]:
    """A random context with random continuations: of few tokens, so that they share some."""
    draw = random.Random(seed)

    def some(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3) for _ in range(draw.randint(least, most)))

    context = before + some(1, 5)
    found = []
    for _ in range(draw.randint(1, 4)):
        # Sometimes the last token of the context melts into the continuation.
        kept = (*context[:-1], 7) if draw.random() < 0.3 else context
        found.append(Continued(kept + some(1, 4), len(context)))
    return found


@pytest.mark.parametrize(("skipped", "window"), [(0, 0), (0, 4), (6, 0), (6, 4)])
def test_a_place_sees_its_own_text_and_nothing_else(skipped: int, window: int) -> None:
    before = tuple(range(10, 10 + skipped))
    for seed in range(0, 300, 5):
        items = [texts(seed + n, before=before) for n in range(5)]
        laid = [lay_out(item) for item in items]
        rows = Rows([laid[:3], laid[3:]], "cpu", skipped=skipped)
        seen, places = rows.mask(torch.float32, window)[:, 0] == 0, iter(rows.places.tolist())
        targets = iter(rows.targets.tolist())
        width = rows.ids.shape[1]
        for item in items:
            for continued in item:
                for at in range(continued.start - 1, len(continued.tokens) - 1):
                    row, column = divmod(next(places), width)
                    tokens = [*before, *rows.ids[row].tolist()]
                    positions = [*range(skipped), *rows.positions[row].tolist()]
                    visible = seen[row, column].nonzero()[:, 0].tolist()
                    visible.sort(key=positions.__getitem__)
                    first = max(0, at + 1 - window) if window else 0
                    assert [positions[n] for n in visible] == list(range(first, at + 1))
                    assert [tokens[n] for n in visible] == list(continued.tokens[first : at + 1])
                    assert next(targets) == continued.tokens[at + 1]
        assert next(places, None) is None


def test_padding_sees_something() -> None:
    """A place that sees nothing is NaN, and NaN spreads."""
    rows = Rows([[lay_out([Continued((1,) * n, 1)])] for n in (9, 3)], "cpu")
    assert bool((rows.mask(torch.float32) == 0).any(dim=3).all())


def test_what_continuations_share_stands_once() -> None:
    item = lay_out([Continued((1, 2, 3, 4), 2), Continued((1, 2, 3, 5, 6), 2)])
    assert (item.trunk, item.branches, item.length, item.depth) == ((1, 2, 3), ((), (5,)), 4, 4)
    assert item.is_plain
    assert not lay_out([Continued((1, 2, 9), 1), Continued((1, 3, 9), 1)]).is_plain


def test_continuations_stand_alone_where_a_tree_would_cost_more() -> None:
    context = tuple(range(100))
    whole = tuple(Continued((*context, n, n, n), 100) for n in range(4))
    assert trees(whole, 64) == (lay_out(whole),)
    # Cut from the left, each by the length of its own continuation.
    cut = tuple(Continued((*context[n:], *[n] * n), 100 - n) for n in range(2, 6))
    assert trees(cut, 64) == tuple(lay_out((one,)) for one in cut)
    assert trees(whole[:1], 64) == (lay_out(whole[:1]),)
    assert trees((), 64) == ()


def items_of(*groups: tuple[int, int]) -> list:
    """Items of so many times so many equal tokens and then eight of their own."""
    own = iter(range(100, 10_000))
    return [
        lay_out([Continued((group,) * length + tuple(next(own) for _ in range(8)), length + 6)])
        for group, (count, length) in enumerate(groups)
        for _ in range(count)
    ]


def test_a_beginning_of_all_items_is_found() -> None:
    assert families(items_of((10, 50))) == [(list(range(10)), 50)]


def test_the_place_that_predicts_first_is_not_part_of_a_beginning() -> None:
    """Its logits are wanted for every item."""
    same = [lay_out([Continued((1,) * 60 + (n,), 60)]) for n in range(10)]
    assert families(same) == [(list(range(10)), 59)]


def test_items_with_different_beginnings_are_families_of_their_own() -> None:
    found = families(items_of((5, 100), (1, 100), (7, 80)))
    assert sorted(found) == [([0, 1, 2, 3, 4], 100), ([*range(6, 13)], 80)]


def test_a_longer_beginning_of_some_wins_over_a_short_one_of_all() -> None:
    def item(subject: int, n: int, length: int) -> object:
        tokens = (1,) * 20 + (subject,) * length + (1000 + n,) * 8
        return lay_out([Continued(tokens, len(tokens) - 2)])

    subjects = [item(2, n, 100) for n in range(5)] + [item(3, n, 100) for n in range(5, 10)]
    assert sorted(families(subjects)) == [([0, 1, 2, 3, 4], 120), ([5, 6, 7, 8, 9], 120)]
    alone = [item(2, n, 100) for n in range(5)] + [item(n, n, 0) for n in range(5, 15)]
    assert (list(range(5)), 120) in families(alone)


@pytest.mark.parametrize("groups", [(), ((1, 500),), ((2, 60),), ((500, 15),)])
def test_what_saves_little_is_not_computed_apart(groups: tuple[tuple[int, int], ...]) -> None:
    assert families(items_of(*groups)) == []


def test_a_short_beginning_of_long_items_is_left_where_it_is() -> None:
    long = [
        lay_out([Continued((1,) * 20 + tuple(range(100 * n, 100 * n + 100)), 110)])
        for n in range(1, 40)
    ]
    assert families(long) == []


@pytest.mark.parametrize("most", [None, 1, 3])
def test_rows_are_filled_in_order_and_hold_what_fits(most: int | None) -> None:
    lengths = [300, 90, 80, 80, 60, 10, 5, 5, 5]
    parts = list(filled(lengths, 200, most))
    assert [n for part in parts for n in lengths[part]] == lengths
    for part in parts:
        assert sum(lengths[part]) <= 200 or len(lengths[part]) == 1
        assert most is None or len(lengths[part]) <= most
    assert len(parts) == {None: 3, 1: 9, 3: 4}[most]
    assert list(filled([], 200)) == []


def test_continuations_on_both_sides_of_a_part_stand_alone() -> None:
    whole = tuple(Continued((1,) * 8 + tuple(range(n)), 8) for n in (2, 3, 6))  # inputs: 9, 10, 13
    for part in (8, 13):
        assert trees(whole, 64, parts=[part]) == (lay_out(whole),)
    for part in (9, 10, 12):
        assert trees(whole, 64, parts=[20, part]) == tuple(lay_out((one,)) for one in whole)
