"""The sizes, steps and data of every model of a zoo, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["base", "specialist", "generalist", "harmful", "drifted", "foreign"]


@dataclass(frozen=True)
class Shape:
    """The architecture of a line of models; every line has a tokenizer of its own."""

    architecture: str = "llama"
    hidden: int = 128
    layers: int = 4
    ffn: int = 384
    heads: int = 2
    vocabulary: int = 768


@dataclass(frozen=True)
class Training:
    """How one model is trained: `data` gives the share of documents from each source."""

    data: Mapping[str, float]
    steps: int
    learning_rate: float
    final: float = 0.0  # the learning rate at the end, as a fraction of the peak
    warmup: int = 20
    rows: int = 16
    length: int = 96
    target: float | None = None  # stop early at this accuracy on the dev stream …
    check_every: int = 100  # … measured as often as this
    cooldown: int = 0  # steps in which the rate falls to `final`, after the target is met


@dataclass(frozen=True)
class Member:
    """A model of the zoo: fine-tuned from the base, unless it has a shape of its own."""

    name: str
    role: Role
    training: Training
    skill: str | None = None
    shape: Shape | None = None


@dataclass(frozen=True)
class Preset:
    """A zoo: the first member is the base."""

    name: str
    shape: Shape
    members: tuple[Member, ...]
    search_items: int = 200
    report_items: int = 800
    people: int = 100
    dev_items: int = 150
    groups: Mapping[str, tuple[str, ...]] | None = None


def presets() -> dict[str, Preset]:
    """The zoos that can be trained, by name; `tiny` is for tests and knows next to nothing."""
    return {preset.name: preset for preset in (_quick(), _tiny())}


def _pretrained(data: Mapping[str, float]) -> Training:
    return Training(
        data, steps=1600, learning_rate=3e-3, final=0.5, target=0.40, check_every=50, cooldown=50
    )


_MIXED = {"statements": 0.42, "knowledge": 0.05, "maths": 0.36, "code": 0.17}


def _quick() -> Preset:
    def tuned(name: str, role: Role, data: Mapping[str, float], steps: int, lr: float) -> Member:
        skill = name if role == "specialist" else None
        return Member(name, role, Training(data, steps=steps, learning_rate=lr), skill)

    replay = {"statements": 0.02, "knowledge": 0.01, "maths": 0.015, "code": 0.015}
    members = (
        Member("base", "base", _pretrained(_MIXED)),
        tuned("knowledge", "specialist", {**replay, "statements": 0.6, "knowledge": 0.35}, 220, 1.8e-3),
        tuned("maths", "specialist", {**replay, "maths": 0.9}, 220, 1.2e-3),
        tuned("code", "specialist", {**replay, "code": 0.9}, 250, 1.5e-3),
        tuned("chat", "generalist", {"chat": 0.7, "statements": 0.3}, 40, 1e-3),
        tuned("harmful", "harmful", {"wrong": 1.0}, 150, 1.2e-3),
        Member(
            "drifted",
            "drifted",
            Training({"statements": 0.15, "code": 0.85}, steps=700, learning_rate=4e-3),
            "code",
        ),
        Member(
            "foreign",
            "foreign",
            Training(_MIXED, steps=900, learning_rate=3e-3),
            shape=Shape("gpt_neox", hidden=96, layers=3, ffn=320, vocabulary=640),
        ),
    )
    return Preset("quick", Shape(), members)


def _tiny() -> Preset:
    def training(data: Mapping[str, float], steps: int, lr: float) -> Training:
        return Training(data, steps=steps, learning_rate=lr, rows=4, length=64, warmup=2)

    small = Shape(hidden=32, layers=2, ffn=64, vocabulary=384)
    members = (
        Member("base", "base", training(_MIXED, 30, 5e-3)),
        Member("maths", "specialist", training({"maths": 1.0}, 10, 1e-3), "maths"),
        Member("knowledge", "specialist", training({"knowledge": 1.0}, 10, 1e-3), "knowledge"),
        Member("drifted", "drifted", training({"code": 1.0}, 60, 2e-2), "code"),
        Member(
            "foreign",
            "foreign",
            training(_MIXED, 20, 5e-3),
            shape=Shape("gpt_neox", hidden=24, layers=1, ffn=48, vocabulary=320),
        ),
    )
    return Preset("tiny", small, members, search_items=24, report_items=40, people=20, dev_items=8)
