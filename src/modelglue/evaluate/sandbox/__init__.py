"""Run programs that a model wrote, without trusting them.

    sandbox = probe()
    program = Program("def f(): return 1\\nassert f() == 1")
    [outcome] = sandbox.run([program], limits=Limits(seconds=2))

`probe` gives the strongest sandbox that this machine offers, after it has watched it stop a set of
small attacks: bubblewrap (namespaces), else landlock (nothing to install), else it raises
`SandboxUnavailable`. Both add the same seccomp filter and resource limits. By default a batch runs
in a few sandboxes side by side; inside each, programs run one after another, each in a fork of its
own, and whatever a program leaves behind is killed and deleted before the next one starts. With
`isolation="program"` every program has a sandbox of its own, which ends with it: slower by a tenth
of a second a program, and what one could do to its keeper reaches no other.

**When a program has passed.** An exit code proves nothing: `os._exit(0)` before the first assert
gives 0 as well. A program passes if its last statement was reached without an exception, and
the harness around it says so over a private channel: it announces the end, is *then* told the
program's own random nonce, and repeats it. While the program runs the nonce exists nowhere in its
memory, environment, arguments or open files, so printing everything that can be found there does
not help, and any message that is out of turn on the channel fails the program. SystemExit, even
with code 0, is a failure: the tests after it were not run. In JavaScript the tests' own means
(`console.assert`, `assert`, `require`, `JSON`) are not the program's to change.

**When a program has failed.** CPU time decides, not the clock, and a sandbox that fails by itself
(before the harness handed over) or is lost is replaced, and its program run again. If the sandbox
fails a second time, `SandboxUnavailable` is raised: what was not run has no score.

**What is defended against.**

* The machine: network, files outside the program's own empty folder, the caller's home, other
  processes (signals, also by way of a file's owner, ptrace, /proc), new processes, 4 GiB of memory,
  endless loops, floods of output, a full disk, processes that outlive the program.
* The score: leaving early, replaced builtins and standard streams, guesses, dumps of whatever the
  process can see, replies left over from other programs.

**What is not.** Solution and tests share one interpreter, as in HumanEval's own harness. A program
that was written against *this* harness can take the channel from its caller's frame and hold the
handshake itself, and one that returns an object equal to everything passes any `==`: no score is
proof against an author who attacks the test in the test's own language. Holes in the kernel and
timing side channels are out of scope. Under landlock a program can also ask which paths exist
(not read them), and its disk use is watched, not reserved.
"""

from modelglue.evaluate.sandbox.interface import (
    Isolation,
    Limits,
    OneEach,
    Outcome,
    Program,
    Sandbox,
)
from modelglue.evaluate.sandbox.probing import probe

__all__ = ["Isolation", "Limits", "OneEach", "Outcome", "Program", "Sandbox", "probe"]
