"""Problems of one merge, told together."""

import re
from collections.abc import Sequence

from modelglue.errors import InputError

_SHOWN = 20
_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")


class Problems:
    """All that is wrong; what is wrong alike in many layers, or with many experts, is told once."""

    def __init__(self) -> None:
        self._found: dict[object, InputError] = {}
        self._alike: dict[object, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, *problems: InputError) -> None:
        """Problems of the whole merge."""
        self._found |= {problem: problem for problem in problems}

    def tell(self, kind: type[InputError], tensor: str, text: str) -> None:
        """A problem of one tensor.

        Args:
            kind: of error.
            tensor: its name.
            text: what is wrong with it, without its name.
        """
        key = (kind, _NUMBER.sub("{}", tensor), text)
        names = self._alike.setdefault(key, [])
        if tensor not in names[-1:]:
            names.append(tensor)
        others = f" (and {len(names) - 1} like it)" if len(names) > 1 else ""
        self._found[key] = kind(f"{names[0]}{others}: {text}")

    def error(self) -> InputError:
        """One error for all of them."""
        return together(list(self._found.values()))


def together(problems: Sequence[InputError]) -> InputError:
    """One error for all of them, of the narrowest class that they share.

    Args:
        problems: at least one; the same one twice counts once.
    """
    told = list({str(problem): problem for problem in problems}.values())
    if len(told) == 1:
        return told[0]
    shared = next(
        kind for kind in type(told[0]).__mro__ if all(isinstance(problem, kind) for problem in told)
    )
    lines = [f"\n  - {problem}" for problem in told[:_SHOWN]]
    if len(told) > _SHOWN:
        lines.append(f"\n  - … and {len(told) - _SHOWN} more")
    error: InputError = shared(f"{len(told)} problems" + "".join(lines))
    return error
