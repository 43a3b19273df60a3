"""What routers are trained on, read from files, and parted so that a report is honest."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from modelglue.errors import InputError
from modelglue.evaluate.items import shown
from modelglue.mixture.router_scores import ScoreTable
from modelglue.registry import nearest

Found = TypeVar("Found")


@dataclass(frozen=True)
class Sample:
    """A text whose loss is to be low.

    Attributes:
        text: what is predicted.
        prompt: what stands before it, and is routed on; where empty, the text itself is.
    """

    text: str
    prompt: str = ""

    @property
    def routed_on(self) -> str:
        """What the router sees."""
        return self.prompt or self.text


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file.

    Args:
        path: `.txt` in UTF-8, a document a line; or `.jsonl`, in each line "text", or "prompt" and
            "completion".

    Raises:
        InputError: the file can't be read, or holds lines that are no samples, or none that is.
    """
    if path.suffix == ".jsonl":
        return _records(path, _sample)
    if path.suffix != ".txt":
        raise InputError(f"{path}: text to train on is a .txt or a .jsonl file")
    # Not splitlines(), which also ends a line at a form feed and at U+2028.
    samples = [Sample(line.rstrip("\r")) for line in _content(path).split("\n") if line.strip()]
    if not samples:
        raise InputError(f"{path}: holds no text")
    return samples


def read_scores(path: Path, experts: Sequence[str]) -> ScoreTable:
    """A table of scores from a `.jsonl` file.

    Args:
        path: in each line "text" and "scores": {expert: number}; higher is better.
        experts: their names, in the order of the table's columns.

    Raises:
        InputError: the file can't be read, or a line has no text, or not a finite score for every
            expert.
    """

    def parse(record: Mapping[str, Any]) -> tuple[str, list[float]] | str:
        text, scores = record.get("text"), record.get("scores")
        if not isinstance(text, str):
            return 'must have a text in "text"'
        if not isinstance(scores, dict):
            return 'must have a mapping from experts to numbers in "scores"'
        for name in scores:
            if name not in experts:
                return f"scores: {name!r} is no expert{nearest(name, experts)}"
        row = [scores.get(name) for name in experts]
        for name, number in zip(experts, row, strict=True):
            if isinstance(number, bool) or not isinstance(number, int | float):
                return f"scores: {name!r} must have a number, and has {number!r}"
            if not math.isfinite(number):
                return f"scores: that of {name!r} is {number}"
        return text, [float(number) for number in row if number is not None]

    rows = _records(path, parse)
    return ScoreTable(
        [text for text, _ in rows], torch.tensor([row for _, row in rows], dtype=torch.double)
    )


@dataclass(frozen=True)
class Parts:
    """Numbers of samples, each in one part.

    Args:
        fit: what a router is trained on.
        stop: what says when to stop, and whether the result is kept.
        report: what nothing is chosen by.
    """

    fit: tuple[int, ...]
    stop: tuple[int, ...]
    report: tuple[int, ...]


def parted(texts: Sequence[str], *, seed: int, stop: float, report: float) -> Parts:
    """Part samples at random; equal texts fall into one part.

    Raises:
        InputError: there are too few to leave one in each part.
    """
    unique = list(dict.fromkeys(texts))
    count = len(unique)
    held = [max(1, round(share * count)) for share in (report, stop)]
    if count - sum(held) < 1:
        raise InputError(
            f"{count} different texts are too few to train on some, stop by others and report on "
            "the rest; give at least 3"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator).tolist()
    part_of = {
        unique[place]: "report" if n < held[0] else "stop" if n < sum(held) else "fit"
        for n, place in enumerate(order)
    }
    return Parts(
        *(
            tuple(i for i, text in enumerate(texts) if part_of[text] == part)
            for part in ("fit", "stop", "report")
        )
    )


def _sample(record: Mapping[str, Any]) -> Sample | str:
    if isinstance(text := record.get("text"), str) and text.strip():
        return Sample(text)
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str) and completion:
        return Sample(completion, prompt)
    return 'must have a text in "text", or texts in "prompt" and "completion"'


def _records(path: Path, parse: Callable[[Mapping[str, Any]], Found | str]) -> list[Found]:
    """What `parse` makes of each line's object; where it gives a text, that is what is wrong."""
    found: list[Found] = []
    problems = []
    for number, line in enumerate(_content(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}:{number}: is not JSON: {error}")
            continue
        made = parse(record) if isinstance(record, dict) else "must be an object"
        if isinstance(made, str):
            problems.append(f"{path}:{number}: {made}")
        else:
            found.append(made)
    if problems:
        raise InputError(shown(problems))
    if not found:
        raise InputError(f"{path}: holds nothing")
    return found


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
