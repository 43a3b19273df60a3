"""Ways to put a question, shared by all skills, so that the wrapping does not tell the skill."""

import random

STYLES = {
    "question": "Question: {text}\nAnswer:",
    "letter": "Q: {text}\nA:",
    "chat": "User: {text}\nAssistant:",
    "bare": "{text}",
}


def pick_style(rng: random.Random) -> str:
    """One of the styles, all equally likely."""
    return rng.choice(list(STYLES))


def wrap(text: str, style: str) -> str:
    """Put a question in a style.

    >>> wrap("Who?", "letter")
    'Q: Who?\\nA:'
    """
    return STYLES[style].format(text=text)


def as_comment(text: str) -> str:
    """The same as Python comments, which code needs and the other skills use at times."""
    return "\n".join(f"# {line}" for line in text.split("\n"))


def ask(rng: random.Random, text: str, *, style: str | None = None) -> str:
    """A question in the style given or a random one; now and then as a comment."""
    style = style or pick_style(rng)
    wrapped = wrap(text, style)
    return as_comment(wrapped) if style != "bare" and rng.random() < 0.2 else wrapped
