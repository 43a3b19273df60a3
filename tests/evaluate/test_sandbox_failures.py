"""Programs are judged by what they do, not by what befalls their sandbox or the machine."""

from dataclasses import asdict

import pytest

from modelglue.errors import SandboxUnavailable
from modelglue.evaluate.sandbox import Limits, Outcome, Program, batch, interpreter, probe
from modelglue.evaluate.sandbox.landlock import start_here
from modelglue.evaluate.sandbox.remembering import Remembering
from modelglue.evaluate.sandbox.unprotected import Unprotected


def test_a_worker_that_the_machine_takes_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, lost = batch.Worker.ask, []

    def losing(self: batch.Worker, message: dict, *, timeout: float) -> dict | None:
        if message.get("source") == "b = 1" and not lost:
            lost.append(self)
            self.stop()
        return ask(self, message, timeout=timeout)

    monkeypatch.setattr(batch.Worker, "ask", losing)
    outcomes = Unprotected().run([Program(f"{name} = 1") for name in "abc"])
    assert [outcome.reason for outcome in outcomes] == ["passed"] * 3
    assert lost


def test_a_program_whose_keeper_cannot_fork_for_it_gets_another() -> None:
    """Nothing protects the keeper here: one program takes its files, the next one needs them."""
    poison = "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (8, 8))"
    outcomes = Unprotected(cores=1).run([Program(poison), Program("a = 1"), Program("assert 0")])
    assert [outcome.reason for outcome in outcomes] == ["passed", "passed", "failed"]


class Broken(Unprotected):
    """Programs cannot be confined as they should be, until it is mended."""

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, object] = {"protection": "landlock"}

    def start(self, limits: Limits) -> batch.Worker:
        present = {"limits": asdict(limits), "processes_present": 512}
        return start_here({**present, **self.settings})


def test_a_sandbox_that_fails_by_itself_is_no_verdict_and_is_not_remembered() -> None:
    broken = Broken()
    remembering = Remembering(broken)
    program = Program("a = 1")
    with pytest.raises(SandboxUnavailable, match=r"before its program's first line: KeyError"):
        remembering.run([program])
    broken.settings = {"protection": "none"}
    assert remembering.run([program]) == [Outcome(True, "passed")]


@pytest.mark.skipif(interpreter.node() is None, reason="there is no node")
def test_a_node_that_does_not_start_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "node", lambda: "/bin/false")
    with pytest.raises(SandboxUnavailable, match="first line: exit code 1"):
        Unprotected().run([Program("let a = 1", "javascript")])


@pytest.mark.parametrize("word", ["started", "not started", "not started\n", ""])
def test_a_program_cannot_pass_for_a_failure_of_its_sandbox(word: str) -> None:
    silenced = f"import os\nos.write(3, {word.encode()!r})\nos._exit(1)"
    assert Unprotected().run([Program(silenced)])[0].reason == "failed"


def test_a_process_beside_others_starts_no_more_sandboxes_than_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[object] = []
    start = batch.Worker.__init__

    def counting(self: batch.Worker, *arguments: object, **settings: object) -> None:
        started.append(self)
        start(self, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(batch.Worker, "__init__", counting)
    monkeypatch.setattr(batch.os, "sched_getaffinity", lambda _: range(3))
    programs = [Program(f"a = {n}") for n in range(24)]
    for cores, count in ((1, 1), (2, 2), (None, 3)):
        sharing = probe(unsafe=True, cores=cores)
        started.clear()
        assert all(outcome.passed for outcome in sharing.run(programs))
        assert len(started) == count


def test_time_on_the_clock_is_a_backstop_for_programs_that_wait() -> None:
    for seconds in (0.1, 1.0, 5.0, 60.0, 600.0):
        assert Limits(seconds=seconds).wall_seconds >= max(30.0, 5 * seconds)
    assert Limits(seconds=60.0, wall_seconds=3.0).wall_seconds == 3.0
