"""Who lends a row to whom, for one tensor with one row a token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import NotMergeable
from modelglue.merge.config.schema import same_model
from modelglue.merge.config.tokenizer import TokenizerConfig, TokenSource
from modelglue.merge.vocabulary.rows import Indices, Loans, RowUnion
from modelglue.merge.vocabulary.tokens import OutputTokens, Party
from modelglue.registry import nearest

BASE = -1
"""Stands for the base where models are counted."""
NOBODY = -2
"""Stands for zeros."""


@dataclass(frozen=True)
class Asked:
    """What the configuration says about one token.

    Attributes:
        token: of the output.
        row: its number there.
        lender: a model, `BASE` or `NOBODY`; None leaves it to the usual rule.
        number: the row of the lender that is lent.
        force: whether models that have the token get the loan as well.
    """

    token: str
    row: int
    lender: int | None = None
    number: int = -1
    force: bool = False


@dataclass(frozen=True)
class Stored:
    """One source of the tensor.

    Attributes:
        model: which of the merge's models it is, or `BASE`.
        own: output row → its row, −1 where it has none.
        rows: how many it stores.
    """

    model: int
    own: Indices
    rows: int


def row_union(
    sources: Sequence[Stored], *, base: int | None, asked: Sequence[Asked], filled: int
) -> RowUnion | None:
    """Put the rows of one tensor together; None where all sources have the same, in order.

    Args:
        sources: the tensor's, in order; the base, if it is read beside them, last.
        base: which model is the base where it is one of them.
        asked: what the configuration says about single tokens.
        filled: rows from here on are filled with a mean.

    Raises:
        NotMergeable: a row shall be lent that the lender doesn't have.
    """
    rows = len(sources[0].own)
    if filled == rows and not asked and all(_plain(source) for source in sources):
        return None
    found = np.stack([source.own for source in sources])
    found[:, filled:] = -1
    own = found.copy()
    own[:, [one.row for one in asked if one.force]] = -1
    lacking = np.flatnonzero((own[:, :filled] < 0).any(axis=0))
    offers = found[:, lacking]
    models = [source.model for source in sources]
    preferred = next((models.index(m) for m in (BASE, base) if m in models), None)
    if preferred is not None:
        others = np.arange(len(models)) != preferred
        offers[np.ix_(others, offers[preferred] >= 0)] = -1
    places = {row: at for at, row in enumerate(lacking.tolist())}
    for one in asked:
        if one.row in places and one.lender is not None:
            offers[:, places[one.row]] = -1
            if one.lender != NOBODY:
                lender = _lender(one, sources)
                offers[lender, places[one.row]] = one.number
    apart = models[-1] == BASE
    n = len(models) - apart
    return RowUnion(
        tuple(own[:n]),
        own[n] if apart else None,
        Loans(lacking, tuple(offers[:n]), offers[n] if apart else None),
        filled,
    )


def asked_of(
    config: TokenizerConfig,
    tokens: OutputTokens,
    parties: Mapping[Checkpoint, Party],
    places: Mapping[Checkpoint, int],
) -> tuple[Asked, ...]:
    """What the configuration says about single tokens, as rows.

    Args:
        config: what was asked.
        tokens: of the output.
        parties: what the models bring.
        places: which of the merge's models each is, or `BASE`.

    Raises:
        NotMergeable: a lender is no model of the merge or lacks the token.
    """
    return tuple(
        _one(token, tokens.ids[token], source, parties, places)
        for token, source in config.tokens.items()
    )


def _one(
    token: str,
    row: int,
    source: TokenSource,
    parties: Mapping[Checkpoint, Party],
    places: Mapping[Checkpoint, int],
) -> Asked:
    if source.zero:
        return Asked(token, row, NOBODY, force=source.force)
    if source.model is None:
        return Asked(token, row, force=source.force)
    wanted = same_model(source.model)
    lender = next((m for m, p in parties.items() if same_model(p.reference) == wanted), None)
    if lender is None:
        known = [party.reference for party in parties.values()]
        raise NotMergeable(
            f"tokenizer.tokens.{token}: {source.model!r} is no model of the merge"
            f"{nearest(source.model, known)}."
        )
    number = source.token_id
    if number is None:
        other = token if source.token is None else source.token
        number = parties[lender].ids.get(other)
        if number is None:
            raise NotMergeable(
                f"tokenizer.tokens.{token}: {parties[lender].name} has no row for {other!r}."
            )
    return Asked(token, row, places[lender], number, source.force)


def _plain(source: Stored) -> bool:
    return source.rows == len(source.own) and bool((source.own == np.arange(source.rows)).all())


def _lender(one: Asked, sources: Sequence[Stored]) -> int:
    at = next((i for i, source in enumerate(sources) if source.model == one.lender), None)
    if at is None:
        raise NotMergeable(
            f"tokenizer.tokens.{one.token}: the model that shall lend the row has no part in "
            "merging the embedding or the head. Name another one."
        )
    if not 0 <= one.number < sources[at].rows:
        raise NotMergeable(
            f"tokenizer.tokens.{one.token}: row {one.number} shall be lent, the model has "
            f"{sources[at].rows}."
        )
    return at
