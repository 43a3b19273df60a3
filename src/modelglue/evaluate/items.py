"""Task files: JSON Lines, one item a line, every problem found at once."""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelglue.evaluate.kinds import Item, Kind


@dataclass(frozen=True)
class Split:
    """What one file holds: its items, and all that is wrong with it, each "file:line: …"."""

    path: Path
    items: tuple[Item, ...]
    lines: tuple[int, ...]
    problems: tuple[str, ...]


def read_split(path: Path, kind: Kind) -> Split:
    """Read a task file; problems are listed, not raised."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError:
        return Split(path, (), (), (f"{path}: there is no such file{_nearest_file(path)}",))
    except UnicodeDecodeError as error:
        return Split(path, (), (), (f"{path}: byte {error.start} is not UTF-8",))
    except OSError as error:
        return Split(path, (), (), (f"{path}: cannot be read: {error.strerror}",))
    items: list[Item] = []
    numbers: list[int] = []
    problems: list[str] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        item, found = _read_item(line, kind)
        if item is not None and item.id in first_line:
            found.append(f"id: {item.id!r} is also the id of line {first_line[item.id]}")
        problems += [f"{path}:{number}: {problem}" for problem in found]
        if item is not None and not found:
            items.append(item)
            numbers.append(number)
        if item is not None:
            first_line.setdefault(item.id, number)
    if not items and not problems:
        problems.append(f"{path}: holds no items")
    return Split(path, tuple(items), tuple(numbers), tuple(problems))


def overlaps(
    search: Split, report: Split, kind: Kind, *, where: str = "in the search split"
) -> list[str]:
    """Every item of the report split whose id, group or question also stands in the search split.

    A score on items that the search has seen is no evidence; nor is one on the same fact in other
    words, which is what sharing a group means.

    Args:
        where: what the first of the two is called in the problems.
    """
    aspects: dict[str, Callable[[Item], str]] = {
        "id": lambda item: item.id,
        "question": lambda item: kind.question(item.record),
        "group": lambda item: item.group,
    }
    seen = {
        name: {aspect(item): line for item, line in zip(search.items, search.lines, strict=True)}
        for name, aspect in aspects.items()
    }
    problems = []
    for item, line in zip(report.items, report.lines, strict=True):
        for name, aspect in aspects.items():
            if (other := seen[name].get(aspect(item))) is not None:
                problems.append(
                    f"{report.path}:{line}: {name}: the same stands {where}, "
                    f"{search.path.name}:{other}"
                )
                break  # the id is its group by default: one problem an item is enough
    return problems


def shown(problems: Sequence[str], *, most: int = 20) -> str:
    """The problems as one message, the first `most` of them in full."""
    if len(problems) == 1:
        return problems[0]
    # A problem may be such a list itself.
    lines = [f"{len(problems)} problems", *(p.replace("\n", "\n  ") for p in problems[:most])]
    if len(problems) > most:
        lines.append(f"… and {len(problems) - most} more")
    return "\n  - ".join(lines)


def _read_item(line: str, kind: Kind) -> tuple[Item | None, list[str]]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return None, [f"is not JSON: {error.msg} at column {error.colno}"]
    except (ValueError, RecursionError) as error:
        return None, [f"is not JSON that can be read: {error}"]
    if not isinstance(record, dict):
        return None, ["must be an object, {…}"]
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return None, ["holds half of a surrogate pair (\\ud800 … \\udfff), which is no text"]
    found = []
    for name in ("id", "group"):
        value = record.get(name)
        if name == "id" and value is None:
            found.append("id: is missing")
        elif value is not None and not _is_name(value):
            found.append(f"{name}: must be text or a whole number, not {value!r:.60}")
    found += kind.problems(record)
    if not _is_name(record.get("id")):
        return None, found
    return Item(str(record["id"]), _group(record), record), found


def _is_name(value: Any) -> bool:
    return (isinstance(value, str) and value != "") or (
        isinstance(value, int) and not isinstance(value, bool)
    )


def _group(record: Mapping[str, Any]) -> str:
    group = record.get("group")
    return str(record["id"] if group is None else group)


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
