"""Prompts that three experts are told apart by, and questions to route."""

import random

_stream = random.Random(0)


def _drawn(alphabet: str, longest: int) -> list[str]:
    """Twenty questions in letters of an alphabet, of three to `longest` words."""

    def word() -> str:
        return "".join(_stream.choices(alphabet, k=_stream.randint(2, 6)))

    return ["Q: " + " ".join(word() for _ in range(_stream.randint(2, longest))) for _ in range(20)]


# Each expert's own sort; the wrapper is the same and lengths overlap.
PROMPTS = {
    "numbers": _drawn("0123456789", 5),
    "words": _drawn("abcdefghijklmnopqrstuvwxyz", 3),
    "signs": _drawn("<>#!{}~^@%&*", 4),
}
QUESTIONS = [
    "Q: 12 9 431 8",
    "Q: window sill",
    "Q: <!> {#} &&",
    "Q: 4 777 65 43155 777 90 2",
    "Q: seas and stone",
    "Q: ~%~ *@{",
]
RIGHT = [0, 1, 2, 0, 1, 2]
