"""Code that is executed: pass@1 of one completion per item.

prompt + completion + newline + tests is one program, run in a sandbox; it passes if it comes to
its end, which a failed assertion prevents.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from modelglue.errors import SandboxUnavailable
from modelglue.evaluate.encoding import before_stop
from modelglue.evaluate.kinds import Item, Measured, Settings, kinds, text_problems
from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.sandbox import Limits, Program, Sandbox
from modelglue.evaluate.settings import Setting, generation


@kinds.register("code")
class Code:
    """Items: `{"id", "prompt", "tests"}`."""

    settings: Mapping[str, Setting] = {
        "language": Setting(
            "choice", "python", "what the programs are", choices=("python", "javascript")
        ),
        "seconds": Setting("number", 5.0, "how long a program may compute", above=0.0, high=600.0),
        **generation(max_new_tokens=128),
    }
    runs_code = True

    def problems(self, record: Mapping[str, Any]) -> list[str]:
        """See `Kind.problems`."""
        return text_problems(record, "prompt", "tests")

    def question(self, record: Mapping[str, Any]) -> str:
        """The prompt."""
        return str(record["prompt"])

    def score(
        self,
        model: LanguageModel,
        items: Sequence[Item],
        settings: Settings,
        sandbox: Sandbox | None,
    ) -> Measured:
        """See `Kind.score`."""
        if sandbox is None:
            raise SandboxUnavailable("code is executed in a sandbox only, and none was given")
        written = model.generate(
            [item.record["prompt"] for item in items],
            max_new_tokens=settings["max_new_tokens"],
            stop=settings["stop"],
            temperature=settings["temperature"],
            top_p=settings["top_p"],
            seed=settings["seed"],
        )
        programs = [
            Program(program(item.record, before_stop(text, settings["stop"])), settings["language"])
            for item, text in zip(items, written, strict=True)
        ]
        outcomes = sandbox.run(programs, limits=Limits(seconds=settings["seconds"]))
        return Measured([float(outcome.passed) for outcome in outcomes])


def program(record: Mapping[str, Any], completion: str) -> str:
    """The source that is run.

    >>> print(program({"prompt": "def one():", "tests": "assert one() == 1"}, " return 1"))
    def one(): return 1
    assert one() == 1
    """
    return f"{record['prompt']}{completion}\n{record['tests']}"
