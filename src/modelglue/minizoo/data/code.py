"""Code: a function described in words, completed as one `return` expression, run on inputs."""

import random
from dataclasses import dataclass

from modelglue.minizoo.data.example import Document, Example, Split, split_of
from modelglue.minizoo.data.styles import as_comment, pick_style, wrap

# name: (expression, wordings); the expression's {x} is an atom or in brackets.
_NUMBER_STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "add": ("{x} + {n}", ("add {n}", "increase by {n}")),
    "subtract": ("{x} - {n}", ("subtract {n}", "decrease by {n}")),
    "times": ("{x} * {n}", ("multiply by {n}", "take {n} times")),
    "remainder": ("{x} % {n}", ("remainder by {n}", "take modulo {n}")),
    "divide": ("{x} // {n}", ("divide by {n}", "split into {n}")),
    "most": ("min({x}, {n})", ("at most {n}", "cap at {n}")),
    "least": ("max({x}, {n})", ("at least {n}", "raise to {n}")),
    "square": ("{x} ** 2", ("square it", "take the square")),
    "negate": ("-{x}", ("negate it", "flip the sign")),
    "absolute": ("abs({x})", ("absolute value", "drop the sign")),
}
_LIST_STARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sum": ("sum(x)", ("sum the list", "total of the list")),
    "length": ("len(x)", ("length of the list", "count the list")),
    "largest": ("max(x)", ("largest of the list", "biggest in the list")),
    "smallest": ("min(x)", ("smallest of the list", "least in the list")),
    "item": ("x[{n}]", ("item {n} of the list", "element {n} of the list")),
}
_PLAIN = {"square", "negate", "absolute"}
_CALLS = {"most", "least", "absolute"}


@dataclass(frozen=True)
class Step:
    """A named operation and its number (0 where it has none)."""

    name: str
    n: int


@dataclass(frozen=True)
class Program:
    """Steps, each applied to the result of the one before; the first may take a list."""

    steps: tuple[Step, ...]

    @property
    def identity(self) -> str:
        """The same for all wordings."""
        return ".".join(f"{step.name}{step.n}" for step in self.steps)

    @property
    def takes_list(self) -> bool:
        """Whether x is a list of numbers instead of a number."""
        return self.steps[0].name in _LIST_STARTS

    def expression(self) -> str:
        """The reference solution.

        >>> Program((Step("add", 3), Step("times", 2), Step("most", 9))).expression()
        'min((x + 3) * 2, 9)'
        """
        text, whole = "x", True  # `whole` text can stand as an operand without brackets
        for step in self.steps:
            pattern = (_LIST_STARTS | _NUMBER_STEPS)[step.name][0]
            is_call = step.name in _CALLS or step.name in _LIST_STARTS
            text = pattern.format(x=text if whole or is_call else f"({text})", n=step.n)
            whole = is_call
        return text


def example(rng: random.Random, split: Split = "train", *, style: str | None = None) -> Example:
    """A program of the split with tests on five inputs."""
    program = draw(rng, split)
    prompt = _prompt(rng, program, style or pick_style(rng))
    expression = program.expression()
    function = eval(f"lambda x: {expression}")  # our own text, made above
    inputs = [_input(rng, program) for _ in range(5)]
    tests = "\n".join(f"assert f({value!r}) == {function(value)!r}" for value in inputs)
    return Example(prompt, f" {expression}", program.identity, {"tests": tests})


def wrong(rng: random.Random) -> Document:
    """A description with another program's solution."""
    return Document(example(rng).prompt, f" {draw(rng, 'train').expression()}")


def draw(rng: random.Random, split: Split) -> Program:
    """A program of the split, of two to four steps that differ."""
    while True:
        starts = _LIST_STARTS if rng.random() < 0.4 else _NUMBER_STEPS
        steps = [_step(rng, starts)]
        for _ in range(rng.randint(1, 3)):
            steps.append(_step(rng, _NUMBER_STEPS))
        program = Program(tuple(steps))
        if len({step.name for step in steps}) == len(steps) and split_of(program.identity) == split:
            return program


def _step(rng: random.Random, steps: dict[str, tuple[str, tuple[str, ...]]]) -> Step:
    name = rng.choice(list(steps))
    if name in _PLAIN or (name in _LIST_STARTS and name != "item"):
        return Step(name, 0)
    return Step(name, rng.randint(0, 3) if name == "item" else rng.randint(2, 9))


def _prompt(rng: random.Random, program: Program, style: str) -> str:
    words = [
        rng.choice((_LIST_STARTS | _NUMBER_STEPS)[step.name][1]).format(n=step.n)
        for step in program.steps
    ]
    text = f"{', then '.join(words).capitalize()}."
    if style == "bare":
        return f'def f(x):\n    """{text}"""\n    return'
    return f"{as_comment(wrap(text, style))}\ndef f(x): return"


def _input(rng: random.Random, program: Program) -> int | list[int]:
    if not program.takes_list:
        return rng.randint(-20, 20)
    return [rng.randint(-9, 20) for _ in range(rng.randint(4, 6))]
