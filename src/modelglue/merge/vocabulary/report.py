"""What became of the rows where vocabularies were united: plain data, and sentences from it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelglue.merge.vocabulary.lending import Asked
from modelglue.merge.vocabulary.parties import Party
from modelglue.merge.vocabulary.rows import Indices
from modelglue.merge.vocabulary.tokens import OutputTokens

_EXAMPLES = 10


def united_report(
    tokens: OutputTokens,
    numbers: Mapping[str, Indices],
    asked: Sequence[Asked],
    *,
    parties: Mapping[str, Party],
    template: str | None,
    source: str,
    rows: int,
    filled: int,
) -> dict[str, Any]:
    """Which rows came from where.

    Args:
        tokens: of the output.
        numbers: by model, output row → its row, −1 where it has none.
        asked: what the configuration says about single tokens.
        parties: by model, what it brings.
        template: the chat template of the output.
        source: where the tokens are from.
        rows: of the output's embedding.
        filled: from this row on a mean stands.

    Returns:
        `tokens` and `rows`; `added` to the tokenizer and `left_out` of it; how many tokens all
        models have (`shared`); `partial`, those that only some have, by who does; `lost`, those of
        each model that the output lacks, and which of them its chat template names
        (`template_lacks`); `asked`, tokens with a source of their own; `padding`, rows that are no
        token's.
    """
    named = np.zeros(rows, bool)
    named[list(tokens.ids.values())] = True
    text = {row: token for token, row in tokens.ids.items()}
    has = np.stack([own >= 0 for own in numbers.values()])  # [models, rows]
    lacked = named & ~has.all(axis=0)
    patterns, group = np.unique(has[:, lacked], axis=1, return_inverse=True)
    partial = []
    for at, pattern in enumerate(patterns.T):
        members = np.flatnonzero(lacked)[group.reshape(-1) == at].tolist()
        partial.append(
            {
                "models": [name for name, one in zip(numbers, pattern, strict=True) if one],
                "tokens": len(members),
                "examples": [text[row] for row in members[:_EXAMPLES]],
            }
        )
    added = [entry["content"] for entry in tokens.add]
    lost = {name: _lost(party, tokens) for name, party in parties.items()}
    # An ordinary token may well be part of a word of the template.
    marks = {t for name, party in parties.items() for t in lost[name] if t in party.tokens.added}
    return {
        "source": source,
        "tokens": int(named.sum()),
        "rows": rows,
        "added": {"tokens": len(added), "examples": added[:_EXAMPLES]},
        "left_out": sorted(tokens.drop),
        "shared": int((named & has.all(axis=0)).sum()),
        "partial": sorted(partial, key=lambda one: -one["tokens"]),
        "lost": [
            {"model": name, "tokens": len(gone), "examples": gone[:_EXAMPLES]}
            for name, gone in lost.items()
            if gone
        ],
        "template_lacks": sorted(t for t in marks | tokens.drop if t in (template or "")),
        "asked": [one.token for one in asked if one.lender is not None or one.force],
        "padding": int(rows - named.sum()),
        "mean_from_row": filled if filled < rows else None,
    }


def padding_report(stored: Mapping[str, int | None], rows: int) -> dict[str, Any]:
    """The same for vocabularies that are alike; empty where the embeddings are, too."""
    if set(stored.values()) <= {rows}:
        return {}
    return {"source": "all alike", "rows": rows, "stored": dict(stored)}


def sentences(report: Mapping[str, Any]) -> list[str]:
    """The report in words, for the model card and the terminal."""
    if "stored" in report:
        lengths = ", ".join(f"{name} {rows}" for name, rows in report["stored"].items())
        return [
            f"The embeddings differ in padding ({lengths} rows): they were cut or filled up to "
            f"{report['rows']} rows."
        ]
    if not report:
        return []
    said = [
        f"The vocabulary has {report['tokens']} tokens in {report['rows']} rows; "
        f"{report['shared']} tokens are in all models."
    ]
    for one in report["partial"]:
        who = " and ".join(one["models"]) or "no model"
        said.append(f"In {who} alone: {_count(one)}.")
    lent = [f"{count} {how}" for how, count in report["lent"].items() if count]
    if lent:
        said.append(f"Rows that a model lacks were lent: {', '.join(lent)}.")
    if report["added"]["tokens"]:
        said.append(f"Added to the tokenizer: {_count(report['added'])}.")
    if report["left_out"]:
        names = ", ".join(map(_quoted, report["left_out"]))
        said.append(f"The tokenizer lost tokens for which the embedding has no row: {names}.")
    for one in report["lost"]:
        said.append(f"The output lacks {_count(one)} of {one['model']}.")
    if report["template_lacks"]:
        names = ", ".join(map(_quoted, report["template_lacks"]))
        said.append(
            f"The chat template names tokens that the output lacks: {names}. "
            "Choose another chat_template, or a tokenizer source that has them."
        )
    return said


def _lost(party: Party, tokens: OutputTokens) -> list[str]:
    """A model's tokens that the output lacks, added ones first."""
    added = party.tokens.added
    gone = [token for token in party.ids if token not in tokens.ids]
    return sorted(gone, key=lambda token: (token not in added, party.ids[token]))


def _count(some: Mapping[str, Any]) -> str:
    """A number of tokens and the first of them."""
    shown = ", ".join(map(_quoted, some["examples"]))
    more = ", …" if some["tokens"] > len(some["examples"]) else ""
    return f"{some['tokens']} token{'s' if some['tokens'] != 1 else ''} ({shown}{more})"


def _quoted(token: str) -> str:
    """As Markdown shows it: unquoted, `<tool>` would be taken for HTML."""
    longest = max((len(run) for run in re.findall("`+", token)), default=0)
    return f"{'`' * (longest + 1)}{token!r}{'`' * (longest + 1)}"
