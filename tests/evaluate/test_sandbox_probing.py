"""Which sandbox is chosen, and that none is trusted unseen."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from modelglue.errors import SandboxUnavailable
from modelglue.evaluate.sandbox import (
    Isolation,
    Limits,
    Outcome,
    Program,
    bubblewrap,
    interpreter,
    probe,
)
from modelglue.evaluate.sandbox.inside import landlock, seccomp
from modelglue.evaluate.sandbox.interface import DEFAULT_LIMITS
from modelglue.evaluate.sandbox.landlock import Landlock
from modelglue.evaluate.sandbox.probing import check
from modelglue.evaluate.sandbox.unprotected import Unprotected


@pytest.fixture
def no_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)


@pytest.fixture
def no_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)


def test_landlock_is_offered_exactly_where_the_kernel_has_it() -> None:
    if landlock.version() and seccomp.supported():
        assert Landlock().name == "landlock"
    else:
        with pytest.raises(SandboxUnavailable, match="landlock"):
            Landlock()


@pytest.mark.usefixtures("no_bubblewrap")
def test_without_bubblewrap_landlock_is_taken_where_there_is_one() -> None:
    try:
        name = probe().name
    except SandboxUnavailable as error:
        name = str(error)
    assert name == "landlock" if landlock.version() else "this kernel offers no landlock" in name


@pytest.mark.usefixtures("no_bubblewrap", "no_landlock")
def test_without_any_protection_code_is_refused_with_a_way_out() -> None:
    with pytest.raises(SandboxUnavailable) as caught:
        probe()
    for words in ("no bwrap on the path", "no landlock", "apt install bubblewrap", "--unsafe-code"):
        assert words in str(caught.value)


@pytest.mark.usefixtures("no_bubblewrap", "no_landlock")
def test_the_users_word_allows_unprotected_code() -> None:
    assert probe(unsafe=True).name == "unprotected"


def test_a_bubblewrap_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    shared = Path(tempfile.gettempdir())
    for folder in (tmp_path, *tmp_path.parents):
        if shared in folder.parents:
            folder.chmod(0o755)  # root starts it as a stranger
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: str(broken))
    with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace"):
        check(bubblewrap.Bubblewrap())


def test_a_sandbox_that_lets_attacks_through_is_refused() -> None:
    with pytest.raises(SandboxUnavailable, match="does not stop: read the caller's files, write"):
        check(Unprotected())


def test_a_sandbox_that_fails_everything_is_refused() -> None:
    class Refusing:
        name = "refusing"

        def run(
            self,
            programs: Sequence[Program],
            *,
            limits: Limits = DEFAULT_LIMITS,
            isolation: Isolation = "batch",
        ) -> list[Outcome]:
            return [Outcome(False, "failed", "no") for _ in programs]

    with pytest.raises(SandboxUnavailable, match="fails a correct program"):
        check(Refusing())


def test_javascript_passes_and_fails_by_its_assertions() -> None:
    sources = [
        "const add = (a, b) => a + b;\nconsole.assert(add(1, 2) === 3)",
        "console.assert(1 === 2)",
        "require('assert').strictEqual(1, 2)",
        "process.exit(0)",
        "process.reallyExit(0)",
        "setTimeout(() => { throw new Error('late') }, 1)",
        "Promise.reject(new Error('unheard'))",
        "require('child_process').execSync('true')",
        "require('net').connect(1, '127.0.0.1').on('error', (e) => { throw e })",
        "for (;;);",
    ]
    programs = [Program(source, "javascript") for source in sources]
    sandbox = probe(unsafe=True)
    if interpreter.node() is None:
        with pytest.raises(SandboxUnavailable, match="node"):
            sandbox.run(programs)
    else:
        outcomes = sandbox.run(programs, limits=Limits(seconds=2))
        assert [outcome.passed for outcome in outcomes] == [True] + [False] * 9


ASSERTS, REQUIRES = "console.assert(1 === 2)", "require('assert').strictEqual(1, 2)"
LATER = "setTimeout(() => console.assert(false), 1)"
REJECTS = "(async () => require('assert')(false))()"
COMPARES = "console.assert(JSON.stringify([1]) === JSON.stringify([2]))"
# What a completion might do to the tests that follow it.
SILENCED = {
    "an assertion that does nothing": ("console.assert = () => {}", ASSERTS),
    "defined anew": ("Object.defineProperty(console, 'assert', { value() {} })", ASSERTS),
    "another console": ("console = { assert() {} }", ASSERTS),
    "another global console": ("globalThis.console = { assert() {} }", ASSERTS),
    "a console of its own": ("const console = { assert() {} }", ASSERTS),
    "a variable of that name": ("var console = { assert() {} }", ASSERTS),
    "a function of that name": ("function console() {}\nconsole.assert = () => {}", ASSERTS),
    "a return": ("return", ASSERTS),
    "an exit": ("process.exit(0)", ASSERTS),
    "an exit within an error": ("Error = function () { process.exit(0) }", ASSERTS),
    "errors that are heard": ("process.on('uncaughtException', () => {})", LATER),
    "errors that nobody else hears": (
        "process.removeAllListeners('uncaughtException')\n"
        "process.on('uncaughtException', () => {})",
        LATER,
    ),
    "rejections that are heard": ("process.on('unhandledRejection', () => {})", REJECTS),
    "another module in the cache": (
        "require.cache.assert = { exports: { strictEqual() {} }, loaded: true }",
        REQUIRES,
    ),
    "another loader": ("require('module')._load = () => ({ strictEqual() {} })", REQUIRES),
    "another require": ("require = () => ({ strictEqual() {} })", REQUIRES),
    "a require of its own": ("function require() { return { strictEqual() {} } }", REQUIRES),
    "methods that do nothing": ("require('assert').strictEqual = () => {}", REQUIRES),
    "texts that are all the same": ("JSON.stringify = () => ''", COMPARES),
    "another JSON": ("globalThis.JSON = { stringify() {} }", COMPARES),
    "failures that are caught": ("", f"try {{ {ASSERTS} }} catch {{}}"),
}


@pytest.mark.skipif(interpreter.node() is None, reason="there is no node")
def test_no_completion_silences_its_tests_in_javascript() -> None:
    programs = [Program("\n".join(parts), "javascript") for parts in SILENCED.values()]
    outcomes = zip(SILENCED, probe(unsafe=True).run(programs), strict=True)
    assert [name for name, outcome in outcomes if outcome.passed] == []


@pytest.mark.skipif(interpreter.node() is None, reason="there is no node")
def test_ordinary_javascript_goes_on_working() -> None:
    sources = [
        "const fs = require('fs'), { strictEqual } = require('node:assert')\n"
        "require('assert').deepStrictEqual([1], [1])\nstrictEqual(typeof fs.statSync, 'function')",
        "module.exports = { f: () => 1 }\nconsole.assert(module.exports.f() === 1)",
        "exports.f = () => 1\nconsole.assert(__filename.endsWith('program.js'))",
        "const lines = []\nconsole.log = (line) => lines.push(line)\nconsole.log('x')\n"
        "console.assert(lines.length === 1 && require('util').inspect(lines) === \"[ 'x' ]\")",
        "'use strict'\nvar path = require('path'), self = 1\nlet name = 'x'\n"
        "console.assert(path.join(name, 'y') === 'x/y')",
        "import('fs').then((fs) => console.assert(fs.existsSync('.')))",
        "require('fs').writeFileSync('five.js', 'module.exports = 5')\n"
        "require('assert')(require('./five') === 5)",
    ]
    outcomes = probe(unsafe=True).run([Program(source, "javascript") for source in sources])
    assert [outcome.detail for outcome in outcomes if not outcome.passed] == []


def test_a_killed_caller_leaves_no_process_behind() -> None:
    script = (
        "from modelglue.evaluate.sandbox import *\n"
        "sandbox = probe(unsafe=True)\n"
        "print(sandbox.name, flush=True)\n"
        "sleep = Program('import time; time.sleep(60)')\n"
        "sandbox.run([sleep], limits=Limits(seconds=1, wall_seconds=5))\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    with caller, caller.stdout as lines:
        # Worker and program; bubblewrap has a process of its own before them.
        whole = 3 if lines.readline() == "bubblewrap\n" else 2
        wait_until(lambda: len(descendants(caller.pid)) >= whole)
        below = descendants(caller.pid)
        caller.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def descendants(root: int) -> set[int]:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def wait_until(condition: object, seconds: float = 30) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
