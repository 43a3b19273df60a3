"""Models whose vocabularies differ, united token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelglue.checkpoint.reader import Checkpoint
from modelglue.merge.rows import RowUnion
from modelglue.merge.tokenizer_config import TokenizerConfig


@dataclass(frozen=True)
class Vocabulary:
    """The output's tokens, and where the rows of every tensor that has one a token come from.

    Attributes:
        report: what was united and how, as plain data, for the model card and `--dry-run`.
    """

    report: Mapping[str, Any]

    def rows(self, name: str, stored: int) -> int:
        """Rows of the output tensor that the template calls `name` and stores `stored` rows of."""
        raise NotImplementedError

    def union(
        self, models: Sequence[int], stored: Sequence[int], base_stored: int | None, rows: int
    ) -> RowUnion | None:
        """How the rows of one tensor come together; None where all have the same, in order.

        Args:
            models: its sources, as indices into the merge's models.
            stored: the rows that each of them stores.
            base_stored: the rows that the base stores; None where the method doesn't read it.
            rows: of the output.
        """
        raise NotImplementedError

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A `config.json` of the template with the output's vocabulary size and special ids."""
        raise NotImplementedError

    def files(self, *, code: bool = False) -> dict[str, bytes]:
        """All that belongs beside the weights: tokenizer, chat template, generation settings.

        Args:
            code: also the template's Python files. Pass the result to `CheckpointWriter.commit`
                as `extra`, and no `files_from`: stale files of the template would come with it.
        """
        raise NotImplementedError


def vocabulary_tensors(model: Checkpoint) -> frozenset[str]:
    """The names of the tensors that have one row a token: embedding, head, the head's bias."""
    raise NotImplementedError


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
        base: the base, if one is named, whether or not the method reads it.
        references: what the configuration calls each model; by default their names.
        base_reference: what it calls the base.
        root: what a path in `config.source` is relative to.

    Raises:
        NotMergeable: the vocabularies differ in a way that needs a decision; the message says
            which.
    """
    raise NotImplementedError
