"""A sandbox that remembers gives what the one inside gives, and asks it once."""

from collections.abc import Sequence

import pytest

from modelglue.evaluate.sandbox import Outcome, Program, probe
from modelglue.evaluate.sandbox.interface import DEFAULT_LIMITS, Isolation, Limits, Sandbox
from modelglue.evaluate.sandbox.remembering import Remembering

RIGHT, WRONG = Program("x = 1\nassert x == 1"), Program("assert False")
ENDLESS = Program("while True: pass")


class Counting:
    """The real sandbox, and what it was asked to run."""

    def __init__(self, inner: Sandbox) -> None:
        self.inner = inner
        self.asked: list[Program] = []

    @property
    def name(self) -> str:
        return self.inner.name

    def run(
        self,
        programs: Sequence[Program],
        *,
        limits: Limits = DEFAULT_LIMITS,
        isolation: Isolation = "batch",
    ) -> list[Outcome]:
        self.asked += programs
        return self.inner.run(programs, limits=limits, isolation=isolation)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return probe()


def test_a_program_is_run_once_whoever_asks_again(sandbox: Sandbox) -> None:
    counting = Counting(sandbox)
    remembering = Remembering(counting)
    first = remembering.run([RIGHT, WRONG])
    again = remembering.run([WRONG, RIGHT, Program("pass")])
    assert [outcome.passed for outcome in first] == [True, False]
    assert again[:2] == first[::-1]
    assert counting.asked == [RIGHT, WRONG, Program("pass")]


def test_a_program_that_ran_out_of_time_is_run_again(sandbox: Sandbox) -> None:
    counting = Counting(sandbox)
    remembering = Remembering(counting)
    limits = Limits(seconds=1.0, wall_seconds=3.0)
    for _ in range(2):
        assert remembering.run([ENDLESS], limits=limits)[0].reason == "timeout"
    assert counting.asked == [ENDLESS, ENDLESS]


def test_other_limits_are_another_question(sandbox: Sandbox) -> None:
    counting = Counting(sandbox)
    remembering = Remembering(counting)
    remembering.run([RIGHT])
    remembering.run([RIGHT], limits=Limits(seconds=2.0))
    assert counting.asked == [RIGHT, RIGHT]
