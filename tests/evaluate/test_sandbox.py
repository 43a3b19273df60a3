"""Every sandbox that this machine offers, under attack."""

import contextlib
import functools
import os
import socket
import sys
from pathlib import Path

import pytest

from modelglue.errors import SandboxUnavailable
from modelglue.evaluate.sandbox import (
    Isolation,
    Limits,
    OneEach,
    Outcome,
    Program,
    Sandbox,
    batch,
    interpreter,
)
from modelglue.evaluate.sandbox.bubblewrap import Bubblewrap
from modelglue.evaluate.sandbox.interface import DEFAULT_LIMITS
from modelglue.evaluate.sandbox.landlock import Landlock
from modelglue.evaluate.sandbox.probing import check
from modelglue.evaluate.sandbox.unprotected import Unprotected

BRIEF = Limits(seconds=1, wall_seconds=2)


def offered() -> list[Sandbox]:
    found: list[Sandbox] = []
    for kind in (Bubblewrap, Landlock):
        with contextlib.suppress(SandboxUnavailable):
            sandbox = kind()
            check(sandbox)
            found.append(sandbox)
    return found


OFFERED = offered()


@pytest.fixture(params=OFFERED, ids=lambda sandbox: sandbox.name)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return request.param


@pytest.fixture(params=[*OFFERED, Unprotected()], ids=lambda sandbox: sandbox.name)
def any_sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return request.param


def run(sandbox: Sandbox, source: str, limits: Limits = DEFAULT_LIMITS) -> Outcome:
    """Attacks are written so that they pass if they succeed."""
    [outcome] = sandbox.run([Program(source)], limits=limits)
    return outcome


# Correct and incorrect programs


def test_a_correct_program_passes(any_sandbox: Sandbox) -> None:
    source = (
        "import math, dataclasses, decimal, sqlite3, tempfile, threading, asyncio\n"
        "@dataclasses.dataclass\nclass Point:\n    x: 'int'\n"
        "async def f():\n    return 3\n"
        "assert asyncio.run(f()) == 3\n"
        "results = []\n"
        "thread = threading.Thread(target=results.append, args=(math.gcd(4, 6),))\n"
        "thread.start(); thread.join()\n"
        "with tempfile.NamedTemporaryFile('w+') as file:\n"
        "    file.write('x')\n"
        "assert (results, Point(1).x, __name__) == ([2], 1, '__main__')\n"
    )
    assert run(any_sandbox, source) == Outcome(True, "passed", "")


def test_a_failed_assertion_names_its_line(sandbox: Sandbox) -> None:
    outcome = run(sandbox, "def f():\n    return 1\nassert f() == 2, 'not two'")
    assert outcome == Outcome(False, "failed", "AssertionError: not two (line 3)")


def test_what_does_not_compile_or_import_fails(sandbox: Sandbox) -> None:
    sources = ["def f(:\n", "x = '\ud800'", "a\0b", "(" * 1000, "import nil", "  x = 1\ny = 2"]
    outcomes = sandbox.run([Program(source) for source in sources])
    assert [outcome.passed for outcome in outcomes] == [False] * len(sources)


def test_runaway_recursion_fails(sandbox: Sandbox) -> None:
    source = "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return [f(n + 1)]\nf(0)"
    assert not run(sandbox, source, Limits(seconds=1, memory=64 << 20)).passed


def test_a_program_meets_the_same_random_numbers_each_time(sandbox: Sandbox) -> None:
    probe = "import random\nraise ValueError(random.random(), hash('word'))"
    first, second = run(sandbox, probe), run(sandbox, probe)
    assert first == second
    assert "ValueError" in first.detail


# The machine


def test_the_network_is_out_of_reach(sandbox: Sandbox) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        address = listener.getsockname()
        source = f"import socket\nsocket.create_connection({address!r}, timeout=1)"
        assert not run(sandbox, source).passed
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_no_kind_of_socket_opens(sandbox: Sandbox) -> None:
    source = (
        "import socket\n"
        "for family in range(46):\n"
        "    for kind in range(1, 6):\n"
        "        try:\n"
        "            socket.socket(family, kind)\n"
        "        except OSError:\n"
        "            continue\n"
        "        raise SystemExit\n"
    )
    assert run(sandbox, source).passed


def test_nothing_outside_its_own_folder_is_writable(sandbox: Sandbox, tmp_path: Path) -> None:
    existing = tmp_path / "existing"
    existing.write_text("as it was")
    before = existing.stat()
    places = [str(tmp_path / "new"), str(existing), "/usr/new", "/etc/new", "/new", "/dev/shm/new"]
    source = (
        "import os\n"
        "done = []\n"
        "def attempt(action, *arguments):\n"
        "    try:\n"
        "        action(*arguments)\n"
        "    except OSError:\n"
        "        return\n"
        "    done.append(action)\n"
        f"for place in {places!r}:\n"
        "    attempt(open, place, 'a')\n"
        "    attempt(os.mkdir, place + '.folder')\n"
        "    attempt(os.symlink, '/', place + '.link')\n"
        f"existing = {str(existing)!r}\n"
        "attempt(os.truncate, existing, 0)\n"
        "attempt(os.chmod, existing, 0)\n"
        "attempt(os.utime, existing, (0, 0))\n"
        "attempt(os.setxattr, existing, 'user.mark', b'x')\n"
        "attempt(os.unlink, existing)\n"
        "attempt(os.rename, existing, existing + '2')\n"
        "attempt(os.link, existing, 'mine')\n"
        "assert done, 'nothing done'\n"
        "raise ValueError(done)\n"
    )
    assert run(sandbox, source).detail.startswith("AssertionError: nothing done")
    after = existing.stat()
    assert os.listdir(tmp_path) == ["existing"]
    assert existing.read_text() == "as it was"
    assert (before.st_mode, before.st_mtime) == (after.st_mode, after.st_mtime)


def test_the_callers_home_cannot_be_read(sandbox: Sandbox) -> None:
    home = Path.home()
    folders = [Path(folder) for folder in interpreter.private_folders()]
    # The way to the interpreter may lead through the home; nothing beside it is there.
    way = {f.relative_to(home).parts[0] for f in folders if f.is_relative_to(home)}
    source = f"import os\nassert set(os.listdir({str(home)!r})) - {way or {''}!r}"
    assert not run(sandbox, source).passed


def test_a_file_of_the_callers_cannot_be_read(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    assert not run(sandbox, f"open({str(tmp_path / 'secret')!r}).read()").passed


def test_the_callers_environment_cannot_be_read(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELGLUE_SECRET", "secret")
    assert not run(sandbox, "import os\nassert 'MODELGLUE_SECRET' in os.environ").passed


def test_other_processes_cannot_be_seen(sandbox: Sandbox) -> None:
    source = (
        "import os\n"
        f"for pid in (1, {os.getpid()}, os.getppid()):\n"
        "    for name in ('cmdline', 'environ', 'maps', 'mem'):\n"
        "        try:\n"
        "            open(f'/proc/{pid}/{name}', 'rb').read(1)\n"
        "        except OSError:\n"
        "            continue\n"
        "        raise SystemExit\n"
    )
    assert run(sandbox, source).passed


def test_a_fork_bomb_starts_nothing(sandbox: Sandbox) -> None:
    source = (
        "import os, time\n"
        "started = 0\n"
        "for _ in range(1000):\n"
        "    try:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(60)\n"
        "            os._exit(0)\n"
        "        started += 1\n"
        "    except OSError:\n"
        "        pass\n"
        "assert started, 'no process started'\n"
    )
    assert run(sandbox, source).detail.startswith("AssertionError: no process started")


@pytest.mark.parametrize(
    "way", ["subprocess.run(['/bin/true'])", "os.posix_spawn('/bin/true', ['true'], {})"]
)
def test_no_program_is_started(sandbox: Sandbox, way: str) -> None:
    assert not run(sandbox, f"import os, subprocess\n{way}").passed


def test_a_thread_bomb_ends_at_the_limit(sandbox: Sandbox) -> None:
    source = (
        "import threading, time\n"
        "threading.stack_size(32768)\n"
        "for _ in range(2000):\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    assert not run(sandbox, source).passed


@pytest.mark.parametrize(
    "source",
    [
        "x = bytearray(4 << 30)",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "import mmap\nx = mmap.mmap(-1, 4 << 30)",
        "import os\nos.memfd_create('x')",
    ],
    ids=["at once", "bit by bit", "shared", "memory file"],
)
def test_4_gib_of_memory_are_refused(sandbox: Sandbox, source: str) -> None:
    assert not run(sandbox, source).passed


def test_a_program_that_runs_out_of_memory_says_so(sandbox: Sandbox) -> None:
    assert run(sandbox, "x = bytearray(4 << 30)").reason == "memory"


def test_an_endless_program_times_out(sandbox: Sandbox) -> None:
    endless = [
        "while True: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "import time\ntime.sleep(60)",
    ]
    outcomes = sandbox.run([Program(source) for source in endless], limits=BRIEF)
    assert [outcome.reason for outcome in outcomes] == ["timeout"] * 3


def test_a_flood_of_output_is_cut_off(any_sandbox: Sandbox) -> None:
    outcome = run(any_sandbox, "while True: print('x' * 1000)")
    assert outcome == Outcome(False, "killed", "printed more than 1048576 bytes")


def test_a_large_file_is_refused(sandbox: Sandbox) -> None:
    source = (
        "block = bytes(1 << 20)\nwith open('x', 'wb') as f:\n    for _ in range(64): f.write(block)"
    )
    assert not run(sandbox, source).passed


def test_many_files_do_not_fill_the_disk(sandbox: Sandbox) -> None:
    source = (
        "import time\n"
        "for i in range(64):\n"
        "    with open(str(i), 'wb') as file:\n"
        "        file.write(bytes(1 << 20))\n"
        "time.sleep(1)\n"
    )
    assert not run(sandbox, source, Limits(disk=8 << 20)).passed


# The score

FORGERIES = {
    "immediate exit": "import os; os._exit(0)",
    "exit": "exit(0)",
    "sys.exit": "import sys; sys.exit(0)",
    "SystemExit": "raise SystemExit",
    "exit from a thread": "import _thread; _thread.exit()",
    "another program": "import os; os.execv('/bin/true', ['true'])",
    "own signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "at exit": "import atexit, os; atexit.register(os._exit, 0); raise KeyboardInterrupt",
    "exception hook": "import os, sys; sys.excepthook = lambda *_: os._exit(0)",
    "no assertion error": "AssertionError = type('Quiet', (SystemExit,), {})",
    "builtins": (
        "import builtins\nfor name in dir(builtins): setattr(builtins, name, lambda *a, **k: None)"
    ),
    "guesses": "print('passed'); print('ok'); print('0' * 32); print('finished')",
    "every stream": (
        "import os\n"
        "for fd in range(64):\n"
        "    for word in (b'passed', b'ok', b'1', b'0' * 32):\n"
        "        try: os.write(fd, word)\n"
        "        except OSError: pass\n"
        "os._exit(0)"
    ),
    "everything that can be seen": (
        "import gc, os, sys\n"
        "seen = [os.environ, sys.argv, sys.orig_argv]\n"
        "frame = sys._getframe()\n"
        "while frame:\n"
        "    seen += [frame.f_locals.copy(), frame.f_code.co_consts]\n"
        "    frame = frame.f_back\n"
        "text = repr(seen).encode()\n"
        "text += b''.join(x for x in gc.get_objects() if isinstance(x, bytes))\n"
        "for fd in range(64):\n"
        "    os.set_blocking(fd, False) if fd < 4 else None\n"
        "    try: text += os.read(fd, 4096)\n"
        "    except OSError: pass\n"
        "for fd in range(64):\n"
        "    try: os.write(fd, text[:60000])\n"
        "    except OSError: pass\n"
        "os._exit(0)"
    ),
    "closed streams": "import os; os.closerange(0, 4096)",
    "asleep before the tests": "import time; time.sleep(60)",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_success_fails(any_sandbox: Sandbox, forgery: str) -> None:
    assert not forged(any_sandbox)[forgery].passed


@functools.cache
def forged(sandbox: Sandbox) -> dict[str, Outcome]:
    """All in one batch: a sandbox each would take most of this file's time."""
    programs = [Program(f"{forgery}\nassert False") for forgery in FORGERIES.values()]
    return dict(zip(FORGERIES, sandbox.run(programs, limits=BRIEF), strict=True))


def test_a_pass_does_not_depend_on_the_exit_code(any_sandbox: Sandbox) -> None:
    source = "import atexit, os\natexit.register(os._exit, 3)"
    assert run(any_sandbox, source).passed


# Batches


def test_a_program_finds_no_file_of_another(sandbox: Sandbox) -> None:
    places = "import os\nplaces = ('.', '..', '/tmp', '/dev/shm', '/var/tmp')\n"
    leave = places + (
        "for place in places:\n"
        "    try: open(os.path.join(place, 'left-behind'), 'w').close()\n"
        "    except OSError: pass\n"
    )
    find = places + (
        "assert any('left-behind' in names for top in places for _, _, names in os.walk(top))\n"
    )
    outcomes = sandbox.run([Program(leave), Program(find), Program(leave + find)])
    assert [outcome.passed for outcome in outcomes] == [True, False, True]


def test_a_program_finds_no_other_in_its_memory(sandbox: Sandbox) -> None:
    # The mark must not stand in the text of the program that searches, only in its globals.
    search = (
        "import gc\n"
        "mark = '-'.join(['left', 'in', 'memory'])\n"
        "mine = globals()\n"
        "assert any(mark in repr(thing) for thing in gc.get_objects() if thing is not mine)\n"
    )
    plant = "kept = ['left-in-memory']\n"
    outcomes = sandbox.run([Program(plant), Program(search), Program(plant + search)])
    assert [outcome.passed for outcome in outcomes] == [True, False, True]


def test_a_program_that_kills_all_it_can_harms_no_other(sandbox: Sandbox) -> None:
    kill = (
        "import os, signal\n"
        "hit = []\n"
        "for pid in (-1, 0, 1, 2, os.getppid(), -os.getppid(), *range(3, 40)):\n"
        "    if pid == os.getpid(): continue\n"
        "    try: os.kill(pid, signal.SIGKILL)\n"
        "    except OSError: continue\n"
        "    hit.append(pid)\n"
        "assert hit, 'nobody hit'\n"
    )
    first, second = sandbox.run([Program(kill), Program("x = 1")])
    assert first.detail.startswith("AssertionError: nobody hit")
    assert second.passed


def test_a_program_cannot_take_time_from_its_keeper(sandbox: Sandbox) -> None:
    source = "import os, resource\nresource.prlimit(os.getppid() or 1, resource.RLIMIT_CPU, (1, 1))"
    assert not run(sandbox, source).passed


def test_no_file_is_made_to_signal_a_process(sandbox: Sandbox) -> None:
    """The kernel sends a file's signals on behalf of whoever asked for them, to whomever."""
    source = (
        "import fcntl, os, socket, struct\n"
        "file, me, done = socket.socketpair()[0], os.getpid(), []\n"
        "def attempt(call, command, argument):\n"
        "    try: call(file, command, argument)\n"
        "    except PermissionError: return\n"
        "    done.append(command)\n"
        "attempt(fcntl.fcntl, fcntl.F_SETOWN, me)\n"
        "attempt(fcntl.fcntl, 15, struct.pack('ii', 1, me))  # F_SETOWN_EX\n"
        "attempt(fcntl.fcntl, 10, 9)  # F_SETSIG\n"
        "attempt(fcntl.ioctl, 0x8901, struct.pack('i', me))  # FIOSETOWN\n"
        "attempt(fcntl.ioctl, 0x8902, struct.pack('i', me))  # SIOCSPGRP\n"
        "flags = fcntl.fcntl(file, fcntl.F_GETFL)\n"
        "fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_NONBLOCK)\n"
        "fcntl.ioctl(file, 0x541B, bytes(4))  # FIONREAD\n"
        "assert not done, done\n"
    )
    assert run(sandbox, source) == Outcome(True, "passed", "")


@pytest.mark.parametrize(
    "mess",
    [
        "import os\nos.mkdir('a')\nopen('a/b', 'w').close()\nos.chmod('a', 0)",
        "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')",
    ],
    ids=["locked", "deep"],
)
def test_a_folder_that_is_hard_to_delete_stops_nothing(sandbox: Sandbox, mess: str) -> None:
    outcomes = sandbox.run([Program(mess), Program("import os\nassert os.listdir() == []")])
    assert outcomes[1].passed


def test_a_lost_worker_costs_one_program() -> None:
    programs = [Program("a = 1"), Program("import os; os.kill(os.getppid(), 9)"), Program("c = 1")]
    reasons = [outcome.reason for outcome in Unprotected().run(programs)]
    assert reasons == ["passed", "killed", "passed"]


def test_outcomes_come_in_the_order_of_the_programs(any_sandbox: Sandbox) -> None:
    programs = [Program(f"assert {i} % 3") for i in range(40)]
    assert [o.passed for o in any_sandbox.run(programs)] == [i % 3 != 0 for i in range(40)]


def test_identical_programs_run_once(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = batch.Worker.ask

    def counting(self: batch.Worker, message: dict, *, timeout: float) -> dict | None:
        asked.extend([message["source"]] if "source" in message else [])
        return ask(self, message, timeout=timeout)

    monkeypatch.setattr(batch.Worker, "ask", counting)
    outcomes = sandbox.run([Program("a = 1"), Program("assert 0")] * 5)
    assert sorted(asked) == ["a = 1", "assert 0"]
    assert [outcome.passed for outcome in outcomes] == [True, False] * 5


def test_200_programs_share_a_few_sandboxes(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    start = batch.Worker.__init__

    def counting(self: batch.Worker, *arguments: object, **settings: object) -> None:
        started.append(self)
        start(self, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(batch.Worker, "__init__", counting)
    programs = [Program(f"assert {i} + 1 == {i + 1}") for i in range(200)]
    assert all(outcome.passed for outcome in sandbox.run(programs))
    assert len(started) <= 8


def test_an_empty_batch_gives_no_outcomes(any_sandbox: Sandbox) -> None:
    assert any_sandbox.run([]) == []


def test_nothing_is_left_in_the_temporary_folder(
    any_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(any_sandbox, "open('x', 'w').close()").passed
    assert os.listdir(tmp_path) == []


def test_the_interpreter_inside_is_the_one_outside(sandbox: Sandbox) -> None:
    assert run(sandbox, f"import sys\nassert sys.version == {sys.version!r}").passed


# One sandbox per program


@pytest.mark.parametrize("isolation", ["batch", "program"])
def test_what_a_program_does_to_its_keeper_reaches_the_next_only_in_a_batch(
    isolation: Isolation,
) -> None:
    """Nothing protects the keeper here, so that a program can leave it a lower limit for good."""
    poison = "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_FSIZE, (7, 7))"
    look = "import resource\nassert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == 7"
    first, second = Unprotected().run([Program(poison), Program(look)], isolation=isolation)
    assert first.passed
    assert second.passed == (isolation == "batch")


@pytest.mark.parametrize("isolation", ["batch", "program"])
def test_alone_a_program_cannot_tell_what_ran_before_it(
    sandbox: Sandbox, isolation: Isolation
) -> None:
    """Process numbers go on in a sandbox that is shared, and so does the keeper's own."""
    source = "import os\nraise ValueError(os.getpid() if os.getppid() == 1 else -os.getppid())"
    programs = [Program(f"{source}  # {n}") for n in range(3)]
    seen = {outcome.detail for outcome in sandbox.run(programs, isolation=isolation)}
    same_keeper = isolation == "batch"
    counts_within = sandbox.name == "bubblewrap"
    assert len(seen) == (3 if same_keeper == counts_within else 1)


def test_alone_every_program_has_a_sandbox_and_is_judged_as_in_a_batch(
    any_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    start = batch.Worker.__init__

    def counting(self: batch.Worker, *arguments: object, **settings: object) -> None:
        started.append(self)
        start(self, *arguments, **settings)  # type: ignore[arg-type]

    forgeries = [f"{forgery}\nassert False" for name, forgery in FORGERIES.items() if "sys" in name]
    fine = ["a = 1", "assert 0", "b = 2", "x = bytearray(4 << 30)"]
    programs = [Program(source) for source in [*fine, *forgeries, "a = 1"]]
    expected = any_sandbox.run(programs)
    monkeypatch.setattr(batch.Worker, "__init__", counting)
    assert any_sandbox.run(programs, isolation="program") == expected
    assert len(started) == len(set(programs))
    started.clear()
    assert OneEach(any_sandbox).run(programs, isolation="batch") == expected
    assert len(started) == len(set(programs))


def test_alone_a_program_that_takes_its_sandbox_down_harms_no_other() -> None:
    programs = [Program("a = 1"), Program("import os; os.kill(os.getppid(), 9)"), Program("c = 1")]
    outcomes = Unprotected().run(programs, isolation="program")
    assert [outcome.reason for outcome in outcomes] == ["passed", "killed", "passed"]
