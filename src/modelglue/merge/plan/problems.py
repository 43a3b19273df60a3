"""Problems of one merge, told together."""

from collections.abc import Sequence

from modelglue.errors import InputError

_SHOWN = 20


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
