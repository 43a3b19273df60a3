"""Models whose vocabularies differ, united token by token.

Every output row is a token of the output's tokenizer; each model's row for it is found by the
token's text, not by its number. A model that lacks a token is lent a row (as Goddard et al., 2024,
arXiv 2403.13257): the base's if the base has the token, else the mean of the models that have it,
or what the configuration says for that token. So a token that only one fine-tune has comes out of
a merge as that model's row.

Without a word about tokenizers in the configuration:

- The same tokens everywhere: rows stay what they are. Embeddings that are padded to different
  lengths are cut or filled up to the length of the template (the base, else the first model).
- Vocabularies that differ by added tokens alone become their union, on the template's tokenizer.
- Anything else is refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modelglue.checkpoint.chat_templates import (
    find_template,
    template_of,
    template_problem,
    with_template,
)
from modelglue.checkpoint.naming import head_and_embedding, place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.tokenizer_files import edited, other_files, settings_of, tokenizer_files
from modelglue.errors import ConfigError
from modelglue.merge.config.tokenizer import TokenizerConfig
from modelglue.merge.vocabulary.lending import (
    BASE,
    Asked,
    Stored,
    asked_of,
    lent_counts,
    refuse_lost,
    row_union,
)
from modelglue.merge.vocabulary.parties import all_alike, names_of, parties_of, stored_rows
from modelglue.merge.vocabulary.report import padding_report, sentences, united_report
from modelglue.merge.vocabulary.rows import Indices, RowUnion
from modelglue.merge.vocabulary.special_ids import ends_of, followed, roles_of, taken_over
from modelglue.merge.vocabulary.tokens import OutputTokens, moved, output_tokens, rows_of, sizes

_GENERATION = "generation_config.json"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The output's tokens, and where the rows of every tensor that has one a token come from.

    Attributes:
        template: gives the output its configuration.
        size: rows of the output's embedding; None: those that the template stores.
        filled: from this row on there is padding, filled with a mean.
    """

    template: Checkpoint
    size: int | None = None
    filled: int | None = None
    _report: Mapping[str, Any] = field(default_factory=dict)
    _tokens: OutputTokens | None = None
    _numbers: Mapping[int, Indices] = field(default_factory=dict)  # by model, BASE for the base
    _base: int | None = None
    _asked: tuple[Asked, ...] = ()
    _ids: Mapping[int, int | None] = field(default_factory=dict)
    _roles: Mapping[str, int] = field(default_factory=dict)
    _chat_template: str | None = None
    _named: Checkpoint | Path | None = None  # whose tokenizer was asked for
    _names: Mapping[int, str] = field(default_factory=dict)  # as _numbers
    _lent: list[dict[str, int]] = field(default_factory=list)

    @property
    def report(self) -> Mapping[str, Any]:
        """What was united and how, as plain data; empty where there was nothing to do.

        What is `lent` is known once the unions were asked for; it is that of the tensor that is
        lent most.
        """
        if self._tokens is None:
            return self._report
        most = max(self._lent, key=lambda lent: sum(lent.values()), default={})
        return {**self._report, "lent": most}

    @property
    def notes(self) -> tuple[str, ...]:
        """The report in words, a sentence each."""
        return tuple(sentences(self.report))

    def rows(self, name: str, stored: int) -> int:
        """Rows of the output tensor `name` where the template stores `stored`."""
        return stored if self.size is None else self.size

    def union(
        self, models: Sequence[int], stored: Sequence[int], base_stored: int | None, rows: int
    ) -> RowUnion | None:
        """How the rows of one tensor come together; None where all have the same, in order.

        Args:
            models: its sources, as indices into the merge's models.
            stored: the rows that each of them stores.
            base_stored: the rows that the base stores; None where the method doesn't read it
                apart from the models. Then it cannot lend either.
            rows: of the output, as `rows` says.

        Raises:
            NotMergeable: the configuration wants a row that the lender doesn't have, or a model
                that has no part in this tensor alone has a token's row.
        """
        sources = [
            self._source(model, count, rows) for model, count in zip(models, stored, strict=True)
        ]
        if base_stored is not None:
            sources.append(self._source(BASE, base_stored, rows))
        filled = rows if self.filled is None else self.filled
        union = row_union(sources, base=self._base, asked=self._asked, filled=filled)
        if union is not None and self._tokens is not None:
            tokens = self._tokens.ids
            columns = [source.model for source in sources]
            apart = self._numbers.keys() - columns - (set() if self._base is None else {BASE})
            owners = {self._names[model]: self._numbers[model] for model in sorted(apart)}
            refuse_lost(union, self._asked, owners, tokens)
            self._lent.append(lent_counts(union.loans, columns, self._base, tokens))
        return union

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The template's `config.json` with the output's vocabulary size and special ids."""
        found = followed(config, self._ids, self._roles)
        if self._named is not None:
            found = taken_over(found, ends_of(self._named, self._roles, "config.json"))
        if self.size is None:
            return found
        nested = found.get("text_config")
        holders = [part for part in (found, nested) if isinstance(part, dict)]
        named = [part for part in holders if "vocab_size" in part] or holders[-1:]
        for part in named:
            part["vocab_size"] = self.size
            if "vocab_size_per_layer_input" in part:
                part["vocab_size_per_layer_input"] = self.size
        return found

    def files(self) -> dict[str, bytes]:
        """All that belongs beside the weights: tokenizer, chat template, generation settings.

        For `CheckpointWriter.commit` as `extra`, without `files_from`: that would copy files of the
        template's tokenizer that no longer hold.
        """
        found = other_files(self.template, code="auto_map" in self.template.config)
        settings = self._generation()
        if settings != settings_of(self.template, _GENERATION):
            found[_GENERATION] = (json.dumps(settings, indent=2) + "\n").encode()
        tokens = self._tokens
        tokenizer = tokenizer_files(tokens.tokenizer if tokens else self.template)
        if tokens and (tokens.add or tokens.drop):
            tokenizer = edited(tokenizer, add=tokens.add, drop=tokens.drop)
        if self._chat_template is not None:
            tokenizer = with_template(tokenizer, self._chat_template)
        return {**found, **tokenizer}

    def _generation(self) -> dict[str, Any]:
        """What `generation_config.json` says; empty for none."""
        found = followed(settings_of(self.template, _GENERATION), self._ids, self._roles)
        named = self._named
        if named is None or not (found or settings_of(named, _GENERATION)):
            return found
        return taken_over(found, ends_of(named, self._roles, _GENERATION, "config.json"))

    def _source(self, model: int, stored: int, rows: int) -> Stored:
        own = np.arange(rows) if self._tokens is None else self._numbers[model].copy()
        own[own >= stored] = -1
        return Stored(model, own, stored)


def vocabulary_tensors(model: Checkpoint) -> frozenset[str]:
    """The names of the tensors that have one row a token: embedding, head, the head's bias."""
    found = {name for name in head_and_embedding(model.tensors) if name is not None}
    counts = {model.tensors[name].shape[:1] for name in found}
    for name, spec in model.tensors.items():
        if name.endswith("embed_tokens_per_layer.weight") or (
            spec.shape[:1] in counts
            and (
                place(name).role == "head" or name.endswith((".embed_tokens.weight", "head.weight"))
            )
        ):
            found.add(name)
    return frozenset(found)


def unite(
    config: TokenizerConfig | None,
    models: Sequence[Checkpoint],
    base: Checkpoint | None,
    *,
    references: Sequence[str] = (),
    base_reference: str | None = None,
    root: Path = Path(),
) -> Vocabulary:
    """Decide the output's tokens and where their rows come from.

    Args:
        config: what was asked for; None for nothing.
        models: to be merged.
        base: the base, if one is named, whether or not the method reads it; where the method takes
            it for one of the models, the same object as that.
        references: what the configuration calls each model; by default their names.
        base_reference: what it calls the base.
        root: what a path in `config.source` is relative to.

    Raises:
        ConfigError: no such chat template.
        NotMergeable: the vocabularies differ in a way that needs a decision; the message says
            which.
    """
    config = config or TokenizerConfig()
    template = base or models[0]
    everyone = {model: model.name for model in (template, *models)}
    everyone |= dict(zip(models, references, strict=False))
    if base is not None and base_reference is not None:
        everyone[base] = base_reference
    chat = _chat_template(config, list(everyone))
    if config.source is None and all_alike(list(everyone)):
        rows = stored_rows(template)
        stored = dict(zip(names_of(everyone), map(stored_rows, everyone), strict=True))
        report = padding_report(stored, rows) if rows else {}
        return Vocabulary(template, _report=report, _base=_index(base, models), _chat_template=chat)
    parties = parties_of(everyone)
    tokens = output_tokens(config, parties, root)
    size, filled = sizes(config, tokens, template)
    numbers = {model: rows_of(party, tokens, size, filled) for model, party in parties.items()}
    places = {model: index for index, model in enumerate(models)}
    places |= {base: BASE} if base is not None and base not in places else {}
    asked = asked_of(config, tokens, parties, places)
    ids = moved(tokens, parties[template])
    named = config.source not in (None, "union", "base")
    names = dict(zip(everyone, names_of(everyone), strict=True))
    return Vocabulary(
        template,
        size,
        filled,
        united_report(
            tokens,
            {names[model]: own for model, own in numbers.items()},
            asked,
            parties={names[model]: party for model, party in parties.items()},
            template=chat or template_of(tokens.tokenizer),
            source=config.source or "union",
            rows=size,
            filled=filled,
        ),
        tokens,
        {places[model]: own for model, own in numbers.items()}
        | ({} if base is None else {BASE: numbers[base]}),
        _index(base, models),
        asked,
        ids,
        roles_of(tokens.tokenizer, tokens.ids),
        chat,
        tokens.tokenizer if named and tokens.tokenizer is not template else None,
        {place: names[model] for model, place in places.items()}
        | ({} if base is None else {BASE: names[base]}),
    )


def _index(base: Checkpoint | None, models: Sequence[Checkpoint]) -> int | None:
    return next((index for index, model in enumerate(models) if model is base), None)


def _chat_template(config: TokenizerConfig, models: Sequence[Checkpoint]) -> str | None:
    if config.chat_template is None:
        return None
    problem = template_problem(config.chat_template)
    if problem is not None:
        raise ConfigError(f"chat_template: {problem}")
    return find_template(config.chat_template, models)
