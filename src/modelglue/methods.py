"""The merge methods as functions on plain tensors, for the REPL.

    from modelglue import methods

    merged = methods.ties([a, b], base, weight=[0.5, 0.5], density=0.4)

`tensors` are of torch or numpy, `lambda` is spelt `lambda_`, and `help(methods.ties)` or
`modelglue methods ties` tells the parameters; see `modelglue.merge.method.Method.__call__`.
"""

from modelglue.merge.method import METHODS, Method


def __getattr__(name: str) -> Method:
    if name.startswith("_") or name not in METHODS:
        raise AttributeError(f"there is no merge method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]


def __dir__() -> list[str]:
    return list(METHODS)
