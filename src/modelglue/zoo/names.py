"""A name for every model, so that a table can speak of them."""

from collections import Counter
from collections.abc import Sequence

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import InputError


def unique_names(
    checkpoints: Sequence[Checkpoint], names: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The names given, or the folders' names with as many parents as tell them apart.

    `runs/a/model` and `runs/b/model` are called "a/model" and "b/model"; a model whose folder's
    name is its own alone keeps that.

    Raises:
        InputError: two models have one name, or one folder was given twice.
    """
    if names is not None:
        if len(names) != len(checkpoints):
            raise InputError(f"{len(names)} names for {len(checkpoints)} models: give one each.")
        _refuse_repeated(names, "two models are called {}: give each a name of its own.")
        return tuple(names)
    found = [checkpoint.name for checkpoint in checkpoints]
    # The first folder is an adapter's own, where there is one; only its base would be the same.
    paths = [checkpoint.folders[0].absolute() for checkpoint in checkpoints]
    repeated = {name for name, count in Counter(found).items() if count > 1}
    same = [i for i, name in enumerate(found) if name in repeated]
    _refuse_repeated(
        [" + ".join(str(folder.absolute()) for folder in checkpoints[i].folders) for i in same],
        "{} was given twice: leave one out, or give names.",
    )
    for i in same:
        rivals = [j for j in same if j != i and checkpoints[j].name == checkpoints[i].name]
        for depth in range(1, len(paths[i].parts)):
            parents = paths[i].parts[-1 - depth : -1]
            if all(paths[j].parts[-1 - depth : -1] != parents for j in rivals):
                break
        found[i] = "/".join([*parents, checkpoints[i].name])
    _refuse_repeated(found, "two models would both be called {}: give names.")
    return tuple(found)


def _refuse_repeated(names: Sequence[str], message: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(message.format(name))
