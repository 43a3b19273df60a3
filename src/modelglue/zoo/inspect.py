"""What a checkpoint is, read from its configuration and headers alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from modelglue.checkpoint.naming import head_and_embedding, place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.settings import architecture, language_config


@dataclass(frozen=True)
class Description:
    """What `modelglue inspect` shows of a model.

    Attributes:
        name: the folder's name.
        path: the folder.
        architecture: the class that the configuration names, else the model type.
        model_type: as in the configuration; "unknown" if it does not say.
        parameters: elements of all tensors stored.
        dtypes: how many parameters each dtype holds, most first.
        layers: the number of layers that the tensors have.
        hidden: width of the residual stream; None where the configuration does not say, as below.
        intermediate: width of the MLP.
        heads: attention heads.
        key_value_heads: as many as `heads` without grouped queries.
        vocabulary: rows of the embedding.
        tied: whether the head is the embedding.
        files: weight files and their bytes.
        nbytes: of all weights.
        adapters: adapters that are added to the weights as they are read.
    """

    name: str
    path: str
    architecture: str
    model_type: str
    parameters: int
    dtypes: Mapping[str, int]
    layers: int
    hidden: int | None
    intermediate: int | None
    heads: int | None
    key_value_heads: int | None
    vocabulary: int | None
    tied: bool
    files: Mapping[str, int]
    nbytes: int
    adapters: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "adapters": list(self.adapters)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Description":
        """What `to_json` made."""
        return cls(**{**data, "adapters": tuple(data["adapters"])})


def describe(checkpoint: Checkpoint) -> Description:
    """What a checkpoint is; no weight is read."""
    config = language_config(checkpoint.config)
    tensors = checkpoint.tensors.values()
    dtypes: Counter[str] = Counter()
    for spec in tensors:
        dtypes[spec.dtype] += spec.numel
    layers = [layer for spec in tensors if (layer := place(spec.name).layer) is not None]
    _, embedding = head_and_embedding(checkpoint.tensors)
    rows = None if embedding is None else checkpoint.tensors[embedding].rows
    heads = _number(config, "num_attention_heads", "n_head", "num_heads")
    return Description(
        name=checkpoint.name,
        path=str(checkpoint.path),
        architecture=architecture(checkpoint.config),
        model_type=str(checkpoint.config.get("model_type") or "unknown"),
        parameters=checkpoint.parameters,
        dtypes=dict(dtypes.most_common()),
        layers=max(layers, default=-1) + 1,
        hidden=_number(config, "hidden_size", "n_embd", "d_model"),
        intermediate=_number(config, "intermediate_size", "n_inner", "ffn_dim"),
        heads=heads,
        key_value_heads=_number(config, "num_key_value_heads") or heads,
        vocabulary=rows or _number(config, "vocab_size"),
        tied=checkpoint.tied,
        files={file.name: file.stat().st_size for file in sorted({s.file for s in tensors})},
        nbytes=checkpoint.nbytes,
        adapters=tuple(str(folder) for folder in checkpoint.folders[:-1]),
    )


def _number(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of these settings that the configuration has; families differ in what they say."""
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)
