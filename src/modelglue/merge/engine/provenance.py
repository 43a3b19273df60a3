"""The model card that says what a checkpoint was made of and how."""

from collections.abc import Mapping

from modelglue.checkpoint.card import model_card
from modelglue.merge.plan.merge_plan import MergePlan


def provenance(plan: MergePlan, name: str, nonfinite: Mapping[str, int] | None = None) -> str:
    """A model card with every input, the configuration and the versions.

    Fingerprints are shown where they are known: computing one takes longer than the merge.
    """
    inputs = [*plan.models, *plan.statistics]
    if plan.base is not None and plan.base not in plan.models:
        inputs.append(plan.base)
    notes = [f"- {note}" for note in plan.notes]
    notes += [
        f"- {tensor}: {count:,} entries are NaN or infinite"
        for tensor, count in (nonfinite or {}).items()
    ]
    return model_card(
        name,
        method=plan.method,
        inputs=[
            (model.name, model.ref, model.known_fingerprint() or "not computed") for model in inputs
        ],
        config=plan.config.to_mapping(),
        notes="\n".join(notes),
    )
