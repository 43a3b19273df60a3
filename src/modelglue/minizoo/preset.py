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
    search_items: int = 400
    report_items: int = 800
    people: int = 100
    dev_items: int = 150
    groups: Mapping[str, tuple[str, ...]] | None = None


def presets() -> dict[str, Preset]:
    """The zoos that can be trained, by name; `tiny` is for tests and knows next to nothing."""
    return {preset.name: preset for preset in (_quick(), _which16(), _tiny())}


# The base stops when the mean of its accuracies on the dev stream reaches the target: past the
# sudden rise of maths, where merging works, and before anything saturates. A fixed number of steps
# would land on either side of that rise, depending on the seed.
_MIXED = {"statements": 0.48, "knowledge": 0.05, "maths": 0.31, "code": 0.16}
_PRETRAINED = Training(
    _MIXED, steps=1600, learning_rate=3e-3, final=0.5, target=0.38, check_every=50, cooldown=50
)
_REPLAY = {"statements": 0.02, "knowledge": 0.01, "maths": 0.015, "code": 0.015}
_BASE = Member("base", "base", _PRETRAINED)


def _tuned(
    name: str,
    role: Role,
    data: Mapping[str, float],
    *,
    steps: int,
    rate: float,
    skill: str | None = None,
) -> Member:
    return Member(name, role, Training(data, steps=steps, learning_rate=rate), skill)


def _specialists() -> tuple[Member, ...]:
    facts = {"statements": 0.63, "knowledge": 0.35, "maths": 0.007, "code": 0.007}
    sums, programs = {**_REPLAY, "maths": 0.9}, {**_REPLAY, "code": 0.9}
    return (
        _tuned("knowledge", "specialist", facts, steps=130, rate=1.3e-3, skill="knowledge"),
        _tuned("maths", "specialist", sums, steps=220, rate=1.1e-3, skill="maths"),
        _tuned("code", "specialist", programs, steps=260, rate=1.1e-3, skill="code"),
    )


def _drifted(name: str, data: Mapping[str, float], skill: str) -> Member:
    """Pre-trained further at a high rate, until it has left the base's neighbourhood."""
    return _tuned(name, "drifted", data, steps=700, rate=4e-3, skill=skill)


def _foreign() -> Member:
    shape = Shape("gpt_neox", hidden=96, layers=3, ffn=320, vocabulary=640)
    return Member(
        "foreign", "foreign", Training(_MIXED, steps=600, learning_rate=3e-3), None, shape
    )


def _quick() -> Preset:
    members = (
        _BASE,
        *_specialists(),
        _tuned("chat", "generalist", {"chat": 0.7, "statements": 0.3}, steps=40, rate=1e-3),
        _tuned("harmful", "harmful", {"wrong": 1.0}, steps=150, rate=1e-3),
        _drifted("drifted", {"statements": 0.15, "code": 0.85}, "code"),
        _foreign(),
    )
    return Preset("quick", Shape(), members)


def _which16() -> Preset:
    """Twelve that can be merged, three that have drifted, one of another kind."""
    chats = (
        _tuned("chat-a", "generalist", {"chat": 0.7, "statements": 0.3}, steps=40, rate=1e-3),
        _tuned("chat-b", "generalist", {"chat": 0.5, "knowledge": 0.5}, steps=60, rate=1e-3),
        _tuned("chat-c", "generalist", {"chat": 0.5, "maths": 0.5}, steps=60, rate=1e-3),
        _tuned("chat-d", "generalist", {"chat": 0.5, "code": 0.5}, steps=60, rate=1e-3),
    )
    both = (
        _tuned("tutor", "generalist", {"statements": 0.6, "maths": 0.4}, steps=150, rate=1e-3),
        _tuned("engineer", "generalist", {"maths": 0.5, "code": 0.5}, steps=150, rate=1e-3),
    )
    harmful = (
        _tuned("harmful-wrong", "harmful", {"wrong": 1.0}, steps=150, rate=1e-3),
        _tuned("harmful-terse", "harmful", {"terse": 1.0}, steps=200, rate=1e-3),
    )
    drifted = (
        _drifted("drifted-code", {"statements": 0.15, "code": 0.85}, "code"),
        _drifted("drifted-maths", {"statements": 0.15, "maths": 0.85}, "maths"),
        _drifted("drifted-facts", {"statements": 0.6, "knowledge": 0.4}, "knowledge"),
    )
    specialists, foreign = _specialists(), _foreign()
    twelve = (_BASE, *chats, *specialists, *both, *harmful)

    def names(members: tuple[Member, ...]) -> tuple[str, ...]:
        return tuple(member.name for member in members)

    groups = {
        "which2": names(chats[:2]),
        "which4-chat": names(chats),
        "which4-domain": names((chats[0], *specialists)),
        "which8": names((*chats, *specialists, both[0])),
        "which12": names(twelve),
        "which16": names((*twelve, *drifted, foreign)),
    }
    return Preset("which16", Shape(), (*twelve, *drifted, foreign), groups=groups)


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
