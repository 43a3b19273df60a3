"""Who lends a row to whom, for one tensor with one row a token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import NotMergeable
from modelglue.merge.config.schema import same_model
from modelglue.merge.config.tokenizer import TokenizerConfig, TokenSource
from modelglue.merge.vocabulary.parties import Party
from modelglue.merge.vocabulary.rows import Indices, Loans, RowUnion
from modelglue.merge.vocabulary.tokens import OutputTokens
from modelglue.registry import nearest

BASE = -1
"""Stands for the base where models are counted."""
NOBODY = -2
"""Stands for zeros."""
_EXAMPLES = 10


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
    problems = []
    for one in asked:
        if one.row in places and one.lender is not None:
            offers[:, places[one.row]] = -1
            try:
                if one.lender != NOBODY:
                    offers[_lender(one, sources), places[one.row]] = one.number
            except NotMergeable as error:
                problems.append(error)
    _raise(problems)
    apart = models[-1] == BASE
    n = len(models) - apart
    return RowUnion(
        tuple(own[:n]),
        own[n] if apart else None,
        Loans(lacking, tuple(offers[:n]), offers[n] if apart else None),
        filled,
    )


def refuse_lost(
    union: RowUnion,
    asked: Sequence[Asked],
    owners: Mapping[str, Indices],
    tokens: Mapping[str, int],
) -> None:
    """Zeros may stand for a token that no model knows, not for one that some model has learnt.

    Args:
        union: what is planned.
        asked: what the configuration says about single tokens: those may be zeros.
        owners: of every model that has no part in this tensor, output row → its row.
        tokens: of the output.

    Raises:
        NotMergeable: a model has a row for a token, and has no part in this tensor.
    """
    offers = [*union.loans.models, *([] if union.loans.base is None else [union.loans.base])]
    zeros = union.loans.rows[(np.stack(offers) < 0).all(axis=0)]
    zeros = np.setdiff1d(zeros, [one.row for one in asked if one.lender is not None])
    zeros = np.intersect1d(zeros, np.fromiter(tokens.values(), np.int64, len(tokens)))
    has = {name: zeros[own[zeros] >= 0].tolist() for name, own in owners.items()}
    lost = sorted({row for rows in has.values() for row in rows})
    if not lost:
        return
    text = {row: token for token, row in tokens.items()}
    shown = ", ".join(repr(text[row]) for row in lost[:_EXAMPLES])
    raise NotMergeable(
        f"tokenizer: {' and '.join(name for name, rows in has.items() if rows)} alone could lend "
        f"a row for {shown}{', …' if len(lost) > _EXAMPLES else ''}, without a part in merging the "
        "embedding or the head. Take the tokens of a model that is merged there, with tokenizer: "
        "{source: …}, or say under tokenizer.tokens what each row shall be."
    )


def lent_counts(
    loans: Loans, models: Sequence[int], base: int | None, tokens: Mapping[str, int]
) -> dict[str, int]:
    """How many tokens' rows are lent, by whom.

    Args:
        loans: of one tensor.
        models: its sources, the base last if it is read beside them.
        base: which model is the base where it is one of them.
        tokens: of the output.
    """
    offers = np.stack([*loans.models, *([] if loans.base is None else [loans.base])]) >= 0
    offers = offers[:, np.isin(loans.rows, list(tokens.values()))]
    lenders = offers.sum(axis=0)
    bases = [at for at, model in enumerate(models) if model in (BASE, base)]
    by_base = offers[bases].any(axis=0) & (lenders == 1)
    return {
        "by the base": int(by_base.sum()),
        "by one model": int((~by_base & (lenders == 1)).sum()),
        "as a mean": int((lenders > 1).sum()),
        "as zeros": int((lenders == 0).sum()),
    }


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
    found, problems = [], []
    for token, source in config.tokens.items():
        try:
            found.append(_one(token, tokens.ids[token], source, parties, places))
        except NotMergeable as error:
            problems.append(error)
    _raise(problems)
    return tuple(found)


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


def _raise(problems: Sequence[NotMergeable]) -> None:
    """All problems as one, if there are any."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = "".join(f"\n    - {problem}" for problem in problems)
        raise NotMergeable(f"tokenizer.tokens: {len(problems)} problems{lines}")


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
