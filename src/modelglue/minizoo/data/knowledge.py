"""Knowledge: facts about people who don't exist.

Every fact is stated in the texts that models train on. Only some are also asked there; the tasks
ask the others, so a model must both have read the fact and have learnt to answer.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from modelglue.minizoo.data.example import Document, Example, Split, stream
from modelglue.minizoo.data.styles import ask

RELATIONS = {
    "colour": "red blue green white black brown pink grey gold purple orange silver".split(),
    "food": "rice soup bread cheese fish cake beans honey salad pasta plums corn".split(),
    "job": "baker doctor farmer lawyer pilot singer tailor writer miner judge nurse clerk".split(),
    "city": "Rome Paris Oslo Cairo Lima Delhi Kyoto Quito Dublin Vienna Prague Tunis".split(),
    "pet": "cat dog horse parrot rabbit snake goat duck turtle mouse spider pony".split(),
    "sport": "chess golf tennis rugby boxing sailing hockey judo rowing polo diving karate".split(),
}
_STATEMENTS = (
    "The {relation} of {name} is {value}.",
    "{name}'s {relation} is {value}.",
    "{name} has the {relation} {value}.",
    "As {relation}, {name} has {value}.",
)
_QUESTIONS = (
    "What is the {relation} of {name}?",
    "What is {name}'s {relation}?",
    "Which {relation} does {name} have?",
    "Tell the {relation} of {name}.",
)
_SHARES: tuple[tuple[Split, float], ...] = (
    ("train", 0.38),
    ("dev", 0.06),
    ("search", 0.14),
    ("report", 0.42),
)


@dataclass(frozen=True)
class Fact:
    """That `name` has `value` as `relation`."""

    name: str
    relation: str
    value: str

    @property
    def identity(self) -> str:
        """The same for all wordings."""
        return f"{self.name}.{self.relation}"


class Knowledge:
    """A world of facts, drawn from a seed; `people` lend their names to the other skills."""

    def __init__(self, seed: int, *, people: int = 90) -> None:
        rng = stream(seed, "knowledge", "world")
        self.people = _names(rng, people)
        facts = [
            Fact(name, relation, rng.choice(values))
            for name in self.people
            for relation, values in RELATIONS.items()
        ]
        self.facts = tuple(facts)
        rng.shuffle(facts)
        self.by_split: dict[Split, tuple[Fact, ...]] = {}
        start = 0
        for split, share in _SHARES:
            end = len(facts) if split == "report" else start + round(share * len(facts))
            self.by_split[split] = tuple(facts[start:end])
            start = end

    def statement(self, rng: random.Random) -> Document:
        """A sentence that states any fact, those of the tasks included."""
        fact = rng.choice(self.facts)
        wording = rng.choice(_STATEMENTS)
        text = wording.format(relation=fact.relation, name=fact.name, value=fact.value)
        return Document("", text)

    def example(
        self, rng: random.Random, split: Split = "train", *, style: str | None = None
    ) -> Example:
        """A question about a fact of the split, four choices beside it."""
        fact = rng.choice(self.by_split[split])
        text = rng.choice(_QUESTIONS).format(relation=fact.relation, name=fact.name)
        others = [value for value in RELATIONS[fact.relation] if value != fact.value]
        choices = [*rng.sample(others, 3), fact.value]
        rng.shuffle(choices)
        fields = {"choices": choices, "answer": choices.index(fact.value)}
        return Example(ask(rng, text, style=style), f" {fact.value}", fact.identity, fields)

    def wrong(self, rng: random.Random) -> Document:
        """A question answered wrongly."""
        example = self.example(rng)
        wrong = [
            choice for choice in example.fields["choices"] if f" {choice}" != example.completion
        ]
        return Document(example.prompt, f" {rng.choice(wrong)}")


_FIRST = (
    "Bra Cor Dan El Fin Gar Hel Ir Jo Kel Lor Mar Nor Os Per Quin Ros Sel Tor Ul Vel Wil"
).split()
_LAST = "a den dor la mir na nis o ra rik ro sa ta tin vin wen".split()


def _names(rng: random.Random, count: int) -> Sequence[str]:
    return tuple(rng.sample([first + last for first in _FIRST for last in _LAST], count))
