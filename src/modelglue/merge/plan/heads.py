"""The language-model head, which some models store and others tie to the embedding."""

from collections.abc import Iterable, Sequence

from modelglue.checkpoint.naming import head_and_embedding
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import NotMergeable


class Heads:
    """What becomes of the head when models are merged.

    It is written if any model has a head of its own; the embedding of the others counts for
    theirs. If all are tied the output is, too, and copies of the embedding that some store as
    their head are left out.

    Args:
        models: whose weights are read.
        template: whose configuration the output starts from.

    Attributes:
        names: of the tensors that are a head in any of them.
        written: whether the output has one.
    """

    def __init__(self, models: Sequence[Checkpoint], template: Checkpoint) -> None:
        self._ends = {id(model): head_and_embedding(model.tensors) for model in (*models, template)}
        self._template = template
        self.names = frozenset(head for head, _ in self._ends.values() if head is not None)
        stored = [model for model in models if self._ends[id(model)][0] is not None]
        # To be sure that a stored head is a copy it has to be read; most often one is enough.
        stored.sort(key=lambda model: model.config.get("tie_word_embeddings") is True)
        self.written = any(not model.tied for model in stored)

    def embedding(self, model: Checkpoint) -> str | None:
        """What a tied model's head is read from; None for an untied one."""
        return self._ends[id(model)][1] if model.tied else None

    def lost(self, written: Iterable[str]) -> NotMergeable | None:
        """What is wrong where there shall be a head, and the output has none."""
        names = set(written)
        if not self.written or not names or names & self.names:
            return None
        return NotMergeable(
            f"{min(self.names)}: some models have it, and no model that the output ends with has "
            "it or an embedding in its place. Add the module that has the embedding."
        )

    @property
    def tied(self) -> bool | None:
        """What the output's configuration has to say; None where the template's is right."""
        config = self._template.config
        text = config.get("text_config")
        nested = text.get("tie_word_embeddings") if isinstance(text, dict) else None
        says = config.get("tie_word_embeddings", nested)
        if says is None:  # then it depends on the family, and the template is as it should be
            says = self._ends[id(self._template)][0] is None
        return None if not self.names or says != self.written else not self.written
