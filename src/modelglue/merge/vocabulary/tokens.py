"""Which tokens the output of a merge has, and what that changes in a tokenizer's files.

A union adds tokens, in the sense of added tokens: they are found in a text before it is split. The
merge table (BPE) or the scores (Unigram) stay those of the tokenizer that it starts from, for there
is no telling how two of them would go together.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.source import open_checkpoint
from modelglue.checkpoint.tokenizer import tokenizer_file, tokens_of
from modelglue.checkpoint.tokenizer_files import added_token, next_number, settings_of
from modelglue.errors import CheckpointNotFound, NotMergeable
from modelglue.merge.config.schema import same_model
from modelglue.merge.config.tokenizer import TokenizerConfig
from modelglue.merge.vocabulary.parties import Party, numbered, stored_rows
from modelglue.registry import nearest


@dataclass(frozen=True)
class OutputTokens:
    """The output's vocabulary, as changes to a tokenizer that is there.

    Attributes:
        ids: token → number.
        tokenizer: whose files are taken.
        add: entries of tokenizer.json's `added_tokens` that are new.
        drop: added tokens to leave out.
    """

    ids: Mapping[str, int]
    tokenizer: Checkpoint | Path
    add: tuple[Mapping[str, Any], ...] = ()
    drop: frozenset[str] = frozenset()

    @property
    def end(self) -> int:
        """One more than the highest number."""
        return max(self.ids.values(), default=-1) + 1


def output_tokens(
    config: TokenizerConfig, parties: Mapping[Checkpoint, Party], root: Path
) -> OutputTokens:
    """Decide which tokens the output has.

    Args:
        config: what was asked.
        parties: what the models bring, the template's first.
        root: what a path in `config.source` is relative to.

    Raises:
        CheckpointNotFound: the source that was asked for is nowhere.
        NotMergeable: the vocabularies differ, and it was not said what shall become of that.
    """
    start = next(model for model in parties if tokenizer_file(model) is not None)
    template = without_rowless(start, parties[start])
    if config.source is None:
        for party in parties.values():
            refuse_unless_additions(parties[start], party)
    if config.source in (None, "union"):
        tokens = union(template, list(parties.values()))
    elif config.source == "base":
        tokens = template
    else:
        named = (
            m for m, p in parties.items() if same_model(p.reference) == same_model(config.source)
        )
        references = [party.reference for party in parties.values()]
        tokenizer = next(named, None) or located(config.source, root, references)
        tokens = OutputTokens(numbered(tokenizer).ids, tokenizer)
    found = with_tokens(tokens, config.tokens)
    _refuse_uneditable(found)
    return found


def without_rowless(tokenizer: Checkpoint | Path, party: Party) -> OutputTokens:
    """A model's tokens, less those that were added without its embedding growing along."""
    added = party.tokens.added
    drop = frozenset(token for token, entry in added.items() if entry["id"] >= party.stored)
    ids = {token: row for token, row in party.tokens.ids.items() if token not in drop}
    return OutputTokens(ids, tokenizer, drop=drop)


def union(start: OutputTokens, parties: Sequence[Party]) -> OutputTokens:
    """Add what `start` lacks: first the models' ordinary tokens, then their added ones.

    Within each kind in the order of the models and of the tokens' numbers. A token that any model
    has as an added one becomes one, with the flags that it has where it is met first.
    """
    added: dict[str, Mapping[str, Any]] = {}
    for party in parties:
        for token, entry in party.tokens.added.items():
            if entry["id"] < party.stored:
                added.setdefault(token, entry)
    ordinary = dict.fromkeys(
        token
        for party in parties
        for token, _ in sorted(party.ids.items(), key=lambda item: item[1])
        if token not in added and token not in start.ids
    )
    already = tokens_of(start.tokenizer).added
    flags = [(token, entry) for token, entry in added.items() if token not in already]
    # A token that `start` leaves out for want of a row comes back where another model has one.
    flags += [(token, added[token]) for token in sorted(start.drop & added.keys())]
    return _extended(start, [*((token, None) for token in ordinary), *flags])


def with_tokens(start: OutputTokens, tokens: Iterable[str]) -> OutputTokens:
    """Add the tokens that are missing, as plain added tokens."""
    return _extended(start, [(token, None) for token in tokens if token not in start.ids])


def refuse_unless_additions(template: Party, other: Party) -> None:
    """Two vocabularies may be united unasked only if nothing but added tokens tells them apart.

    Raises:
        NotMergeable: the same token has different numbers, or ordinary tokens are new.
    """
    reason = next(_conflicts(template, other), None)
    if reason is not None:
        raise NotMergeable(
            f"{other.name} and {template.name} have different vocabularies: {reason}. Unasked, "
            "only vocabularies that differ by added tokens are united. Say which tokens the merge "
            "shall have: tokenizer: {source: union} for those of all models, {source: base} for "
            "those of the base (without one: of the first model)."
        )


def sizes(config: TokenizerConfig, tokens: OutputTokens, template: Checkpoint) -> tuple[int, int]:
    """Rows of the output, and the row from which on a mean fills them."""
    stored = stored_rows(template)
    if stored is None:
        raise NotMergeable(
            f"{template.name}: none of its tensors has the name of a token embedding, so rows of "
            "different vocabularies cannot be united. Merge models with the same tokenizer."
        )
    if config.source is None:
        size = max(tokens.end, stored)
        return size, size
    multiple = config.pad_to_multiple_of or 1
    return -(-tokens.end // multiple) * multiple, tokens.end


def rows_of(party: Party, tokens: OutputTokens, size: int, filled: int) -> NDArray[np.int64]:
    """Output row → the model's row, −1 where it has none.

    A row of no token is the model's of the same number, if that is no token there either.
    """
    own = np.full(size, -1, np.int64)
    free = np.ones(size, bool)
    free[min(filled, party.stored) :] = False
    rows = np.fromiter(tokens.ids.values(), np.int64, len(tokens.ids))
    theirs = np.fromiter(party.ids.values(), np.int64, len(party.ids))
    free[rows] = False
    free[theirs[theirs < size]] = False
    own[free] = np.flatnonzero(free)
    ids = party.ids
    own[rows] = np.fromiter((ids.get(token, -1) for token in tokens.ids), np.int64, len(rows))
    return own


def moved(tokens: OutputTokens, template: Party) -> dict[int, int | None]:
    """The template's numbers that are others now; None where the token is gone."""
    found = {row: tokens.ids.get(token) for token, row in template.tokens.ids.items()}
    return {row: now for row, now in found.items() if now != row}


def located(source: str, root: Path, references: Sequence[str]) -> Checkpoint | Path:
    """A tokenizer that is none of the models'; a folder with no more than a tokenizer will do.

    Raises:
        CheckpointNotFound: it is nowhere.
    """
    for folder in (root / source, Path(source)):
        if folder.is_dir():
            return folder
    try:
        return open_checkpoint(source, root=root)
    except CheckpointNotFound as error:
        known = ["union", "base", *references]
        raise CheckpointNotFound(
            f"tokenizer source: {source!r} is neither union, base nor a model of the merge"
            f"{nearest(source, known)}; and {error}"
        ) from None


def _refuse_uneditable(tokens: OutputTokens) -> None:
    path = tokenizer_file(tokens.tokenizer)
    if (tokens.add or tokens.drop) and path is not None and path.name != "tokenizer.json":
        raise NotMergeable(
            f"{path}: tokens can only be added to a tokenizer.json, and there is none beside it. "
            "Load the tokenizer with transformers and save it again, which writes one."
        )
    # Whatever is wrong with them shall be told now, not when the weights are merged.
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings_of(tokens.tokenizer, name)


def _conflicts(template: Party, other: Party) -> Iterator[str]:
    for token, row in sorted(other.ids.items(), key=lambda item: item[1]):
        known = template.ids.get(token)
        if known is None and token not in other.tokens.added:
            yield f"token {token!r} is in {other.name} alone, and no added one"
        elif known not in (None, row) and not (
            token in template.tokens.added and token in other.tokens.added
        ):
            yield f"token {token!r} is number {row} in one and {known} in the other"


def _extended(
    start: OutputTokens, wanted: Sequence[tuple[str, Mapping[str, Any] | None]]
) -> OutputTokens:
    """More added tokens; one that is an ordinary token already keeps its number."""
    ids = dict(start.ids)
    add = list(start.add)
    fresh = [token for token, _ in wanted if token not in ids]
    if fresh:
        ids |= {token: number for number, token in enumerate(fresh, _next(start))}
    has = {token: entry["id"] for token, entry in tokens_of(start.tokenizer).added.items()}
    add += [
        {"id": ids[token], **added_token(token, like)}
        for token, like in wanted
        if has.get(token) != ids[token]  # else it is only back
    ]
    back = {token for token, _ in wanted}
    return OutputTokens(ids, start.tokenizer, tuple(add), start.drop - back)


def _next(start: OutputTokens) -> int:
    if any(entry["id"] == start.end - 1 for entry in start.add):
        return start.end
    return next_number(tokens_of(start.tokenizer), without=start.drop)
