"""What each model brings to a union: its tokens, and the rows that it has for them."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from modelglue.checkpoint.files import read_small
from modelglue.checkpoint.naming import head_and_embedding
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.tokenizer import (
    UNNUMBERED,
    Tokens,
    same_vocabulary,
    tokenizer_file,
    tokens_of,
    vocabulary,
)
from modelglue.errors import NotMergeable


@dataclass(frozen=True)
class Party:
    """What a model brings to the table.

    Attributes:
        name: of the model.
        reference: what the configuration calls it.
        tokens: its vocabulary; another's, if it brings none.
        stored: rows of its embedding: it has not learnt tokens with higher numbers.
    """

    name: str
    reference: str
    tokens: Tokens
    stored: int

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token → row, for the tokens that have one."""
        return {token: row for token, row in self.tokens.ids.items() if row < self.stored}


def parties_of(models: Mapping[Checkpoint, str]) -> dict[Checkpoint, Party]:
    """What every model brings; one without a tokenizer is taken to have the first one's.

    Args:
        models: and what the configuration calls them.

    Raises:
        NotMergeable: none has a tokenizer.
    """
    first = next((model for model in models if tokenizer_file(model) is not None), None)
    if first is None:
        raise NotMergeable(
            "tokenizer: no model brings one. Put a tokenizer.json beside the weights, or leave "
            "the section out."
        )
    return {
        model: Party(
            model.name, reference, _tokens_of(model, first), stored_rows(model) or sys.maxsize
        )
        for model, reference in models.items()
    }


def stored_rows(model: Checkpoint) -> int | None:
    """Rows of the token embedding, if a model has one that is known by its name."""
    head, embedding = head_and_embedding(model.tensors)
    name = embedding or head
    return model.tensors[name].rows if name else None


def numbered(model: Checkpoint | Path) -> Tokens:
    """The tokens with the numbers of their rows.

    Raises:
        NotMergeable: the file does not say them.
    """
    path = tokenizer_file(model)
    if path is not None and path.name in UNNUMBERED:
        raise NotMergeable(
            f"{path}: it does not say which numbers the model's tokens have, so rows cannot be "
            "matched. Load the tokenizer with transformers and save it again, which writes a "
            "tokenizer.json."
        )
    return tokens_of(model)


def _tokens_of(model: Checkpoint, first: Checkpoint) -> Tokens:
    ours, theirs = tokenizer_file(model), tokenizer_file(first)
    if ours is None or theirs is None:
        return numbered(first)
    # Most models of a family share the file to the byte: it is parsed once.
    same = ours.name == theirs.name == "tokenizer.json" and read_small(ours) == read_small(theirs)
    return numbered(first if same else model)


def all_alike(models: Sequence[Checkpoint]) -> bool:
    """Whether all have the same tokens, and each has a row for every one that any has one for."""
    first = next((model for model in models if tokenizer_file(model) is not None), None)
    if first is None:
        return True
    if any(same_vocabulary(model, first) is not None for model in models):
        return False
    stored = [rows for model in models if (rows := stored_rows(model)) is not None]
    if len(set(stored)) < 2:
        return True
    return not any(min(stored) <= number < max(stored) for number in vocabulary(first).values())


def names_of(models: Mapping[Checkpoint, str]) -> list[str]:
    """What to call the models: their names, or their references where two have the same."""
    counts = Counter(model.name for model in models)
    return [model.name if counts[model.name] == 1 else name for model, name in models.items()]
