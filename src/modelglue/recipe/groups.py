"""Groups of tensors that have numbers of their own in a candidate, and how a merge spells them.

Groups are told from names alone: "layers 0-1", "layers 0-1 attention", and "rest" for all that is
in no other. A configuration selects tensors by parts of their names, so a group becomes the
shortest such parts that its tensors have and no others.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache

from modelglue.checkpoint.naming import Place, place
from modelglue.merge.config.values import Conditional, Setting

REST = "rest"
"""Embeddings, head, final norm; where roles are apart, the norms inside of layers as well."""

ROLES = ("attention", "mlp")

_LABEL = re.compile(r"layers? (?P<first>\d+)(?:-(?P<last>\d+))?(?: (?P<role>attention|mlp))?")


def labels(names: Iterable[str], *, size: int | None, roles: bool = False) -> tuple[str, ...]:
    """The groups of a model: `size` adjacent layers each, the last perhaps of fewer, and the rest.

    Args:
        names: of its tensors.
        size: layers in a group; None for all layers in one.
        roles: whether attention and MLP are apart.

    Returns:
        In the order of the layers; none where nothing was asked for.

    >>> labels(["embed.weight", *(f"layers.{i}.mlp.up_proj.weight" for i in range(5))], size=2)
    ('layers 0-1', 'layers 2-3', 'layer 4', 'rest')
    """
    if size is None and not roles:
        return ()
    places = [place(name) for name in names]
    numbers = sorted({at.layer for at in places if at.layer is not None})
    step = size or len(numbers) or 1
    runs = [numbers[i : i + step] for i in range(0, len(numbers), step)]
    spelled = [_spelled(run[0], run[-1]) for run in runs]
    if roles:
        spelled = [f"{layers} {role}" for layers in spelled for role in ROLES]
    wanted = [label for label in spelled if any(map(_member(label), places))]
    inside = [_member(label) for label in wanted]
    left = any(not any(member(at) for member in inside) for at in places)
    return (*wanted, *([REST] if left else []))


def members(label: str, names: Iterable[str], others: Iterable[str] = ()) -> tuple[str, ...]:
    """The tensors of a group.

    Args:
        label: of the group.
        names: of all tensors.
        others: labels of all groups, which say what is the rest.

    Raises:
        ValueError: there is no such group.
    """
    if label != REST:
        return tuple(name for name in names if _member(label)(place(name)))
    apart = [_member(other) for other in others if other != REST]
    return tuple(name for name in names if not any(member(place(name)) for member in apart))


def setting(values: Mapping[str, float], names: Collection[str], *, default: float) -> Setting:
    """What a configuration says for numbers by group; a single number where all are the same.

    Args:
        values: by the groups' labels; "" for what is in none of them.
        names: of all tensors.
        default: where none of them says anything.
    """
    rest = values.get(REST, values.get("", default))
    groups = tuple(label for label in values if label not in ("", REST))
    if all(values[label] == rest for label in groups):
        return rest
    found = selectors(groups, tuple(names))
    return (*(Conditional(values[label], text) for text, label in found), Conditional(rest))


@lru_cache(maxsize=64)
def selectors(groups: tuple[str, ...], names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(a part of names, the group of all tensors that have it), for all groups but the rest.

    Args:
        groups: labels, not that of the rest.
        names: of all tensors.
    """
    of = {name: label for label in groups for name in members(label, names, groups)}
    found: dict[str, str] = {}
    for name in names:
        label = of.get(name)
        if label is None or any(text in name and found[text] == label for text in found):
            continue
        for text in _parts(name):
            if all(of.get(other) == label for other in names if text in other):
                found[text] = label
                break
        else:
            # A name that is a part of another's: the longer one is asked for first.
            found[name] = label
    return tuple(sorted(found.items(), key=lambda item: -len(item[0])))


def _parts(name: str) -> Iterable[str]:
    """What a name begins with, up to each of its dots, the shortest first."""
    return (name[: dot.end()] for dot in re.finditer(r"\.|$", name))


def _spelled(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}-{last}"


@lru_cache(maxsize=1024)
def _member(label: str) -> Callable[[Place], bool]:
    read = _LABEL.fullmatch(label)
    if read is None:
        raise ValueError(f"{label!r} is no group of tensors")
    first = int(read["first"])
    last, role = int(read["last"] or first), read["role"]

    def member(at: Place) -> bool:
        inside = at.layer is not None and first <= at.layer <= last
        return inside and role in (None, at.role)

    return member
