"""An adapter folder: which tensors it changes, and how."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelglue.checkpoint.delta import Delta, Tokens
from modelglue.checkpoint.files import Descriptors, read_json_object
from modelglue.checkpoint.pickled import read_pickled
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.safetensors_header import read_header
from modelglue.errors import CheckpointNotFound, CorruptCheckpoint, UnsupportedCheckpoint
from modelglue.registry import nearest

_FORMATS = (("adapter_model.safetensors", read_header), ("adapter_model.bin", read_pickled))
_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(\.default)?(\.(?P<kind>weight|bias))?"
)
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.default)?")
_WRAPPER = re.compile(r"\.(modules_to_save(\.default)?|token_adapter|base_layer)(?=\.)")
# Settings that change what the adapter's tensors mean in a way that is not read.
_REFUSED = {
    "layer_replication": "repeats layers of its base",
    "use_qalora": "groups its inputs (QALoRA)",
    "arrow_config": "routes between adapters (Arrow)",
    "target_parameters": "adapts fused experts (target_parameters)",
    "alora_invocation_tokens": "is active only after an invocation (aLoRA)",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class Adapter:
    """An opened adapter.

    Attributes:
        weights: its tensors; `config` is adapter_config.json.
        deltas: parameter of the base → what is added to it.
        replacements: parameter of the base → tensor of ours that takes its place.
        tokens: parameter of the base → rows of it that are ours.
        keeps_ties: a head tied to the embedding follows its changes.
    """

    path: Path
    name: str
    weights: Checkpoint
    deltas: dict[str, Delta]
    replacements: dict[str, str]
    tokens: dict[str, Tokens]
    base_name: str
    keeps_ties: bool


def open_adapter(path: Path, *, name: str | None = None) -> Adapter:
    """Open a folder that peft's `save_pretrained` wrote for a LoRA or DoRA adapter.

    Raises:
        CheckpointNotFound: there is no adapter there.
        CorruptCheckpoint: its files contradict themselves.
        UnsupportedCheckpoint: an adapter of another sort.
    """
    config = _config(path)
    weights = _weights(path, config)
    deltas, replacements, tokens = _sort(_Settings(path, config), weights)
    return Adapter(
        path,
        name or path.name or path.resolve().name,
        weights,
        deltas,
        replacements,
        tokens,
        str(config.get("base_model_name_or_path") or ""),
        config.get("ensure_weight_tying") is True,
    )


def _config(path: Path) -> dict[str, Any]:
    if not (path / "adapter_config.json").is_file():
        what = "a model" if (path / "config.json").is_file() else "neither adapter nor model"
        raise CheckpointNotFound(
            f"{path} is {what}: there is no adapter_config.json. After the + belongs an adapter."
        )
    config = read_json_object(path / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise UnsupportedCheckpoint(
            f"{path}: peft_type is {config.get('peft_type')!r}; only LORA (with DoRA) is read. "
            "Merge it with peft first."
        )
    for key, meaning in _REFUSED.items():
        if config.get(key):
            raise UnsupportedCheckpoint(f"{path}: the adapter {meaning}. Merge it with peft first.")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        raise UnsupportedCheckpoint(
            f"{path}: init_lora_weights is {start!r}, so the adapter belongs to a changed base. "
            "Convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    return config


def _weights(path: Path, config: dict[str, Any]) -> Checkpoint:
    for name, read in _FORMATS:
        if (path / name).exists():
            tensors, status = read(path / name)
            descriptors = Descriptors()
            descriptors.register(path / name, status)
            return Checkpoint(path, config, tensors, descriptors)
    raise CheckpointNotFound(
        f"{path}: there is neither adapter_model.safetensors nor adapter_model.bin."
    )


class _Settings:
    """The scale of each module, from adapter_config.json."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.transposed = config.get("fan_in_fan_out") is True
        self._tokens = config.get("trainable_token_indices")
        self.dora = config.get("use_dora") is True
        self._stabilised = config.get("use_rslora") is True
        self._alpha = self._number("lora_alpha", config.get("lora_alpha", 8))
        self._patterns = self._compiled(config.get("alpha_pattern") or {})

    def scale(self, module: str, rank: int) -> float:
        """α/r, or α/√r when rank-stabilised; the rank is that of the tensors themselves."""
        alpha = next((a for p, a in self._patterns if p.match(module)), self._alpha)
        return alpha / (math.sqrt(rank) if self._stabilised else rank)

    def tokens(self, module: str, tensor: str, weights: Checkpoint) -> Tokens:
        """Which rows of a module's tensor were trained alone."""
        found = self._tokens
        if isinstance(found, dict):
            named = [rows for key, rows in found.items() if f".{module}".endswith(f".{key}")]
            found = (named or [*found.values(), None])[0]  # a tied head is not named
        count = weights.tensors[tensor].shape[0]
        rows = found if isinstance(found, list) else []
        whole = all(type(row) is int and row >= 0 for row in rows)
        if not whole or not len(rows) == len(set(rows)) == count:
            raise CorruptCheckpoint(
                f"{self.path}: trainable_token_indices does not say which rows the {count} of "
                f"{tensor} are."
            )
        return Tokens(tuple(rows), tensor)

    def _compiled(self, patterns: Any) -> list[tuple[re.Pattern[str], float]]:
        if not isinstance(patterns, dict):
            raise CorruptCheckpoint(f"{self.path}: alpha_pattern is no object.")
        found = []
        for pattern, alpha in patterns.items():
            # A repeated group could make the matching of a hostile pattern take for ever.
            if re.search(r"\)[*+{]", pattern) or len(pattern) > 500:
                raise UnsupportedCheckpoint(
                    f"{self.path}: alpha_pattern {pattern[:80]!r} is not read. Name the modules."
                )
            try:
                # As in peft: a pattern stands for the end of a module's path.
                compiled = re.compile(rf"(.*\.)?({pattern})$")
            except (re.error, OverflowError, RecursionError):
                raise CorruptCheckpoint(
                    f"{self.path}: alpha_pattern {pattern[:80]!r} is no regular expression."
                ) from None
            found.append((compiled, self._number("alpha_pattern", alpha)))
        return found

    def _number(self, key: str, value: Any) -> float:
        if type(value) not in (int, float) or not abs(value) < 1e30:
            raise CorruptCheckpoint(f"{self.path}: {key} is {str(value)[:80]!r}, no usable number.")
        return float(value)


def _sort(
    settings: _Settings, weights: Checkpoint
) -> tuple[dict[str, Delta], dict[str, str], dict[str, Tokens]]:
    modules: dict[str, dict[str, str]] = {}
    replacements: dict[str, str] = {}
    tokens: dict[str, Tokens] = {}
    for tensor in weights.tensors:
        name = tensor.removeprefix("base_model.model.")
        lora = _LORA.fullmatch(name)
        if lora:
            part = lora["part"] + ("_bias" if lora["kind"] == "bias" else "")
            modules.setdefault(_WRAPPER.sub("", lora["module"]), {})[part] = tensor
        elif rows := _TOKENS.fullmatch(name):
            tokens[f"{rows['module']}.weight"] = settings.tokens(rows["module"], tensor, weights)
        elif "lora_" in name or "trainable_tokens" in name:
            raise UnsupportedCheckpoint(
                f"{settings.path}: {tensor} is no part of a LoRA adapter that is known. Merge it "
                "with peft first."
            )
        elif "original_module" not in name:
            replacements[_WRAPPER.sub("", name)] = tensor
    deltas: dict[str, Delta] = {}
    for module, parts in modules.items():
        deltas.update(_deltas(module, parts, settings, weights))
    if not deltas and not replacements and not tokens:
        raise CorruptCheckpoint(f"{settings.path}: the adapter holds no tensor.")
    return deltas, replacements, tokens


def _deltas(
    module: str, parts: dict[str, str], settings: _Settings, weights: Checkpoint
) -> dict[str, Delta]:
    embedding = "embedding_A" in parts or "embedding_B" in parts
    a, b = (parts.pop(f"embedding_{x}" if embedding else x, None) for x in "AB")
    magnitude, bias = parts.pop("magnitude_vector", None), parts.pop("B_bias", None)
    if a is None or b is None or parts:
        raise CorruptCheckpoint(
            f"{settings.path}: {module} does not have one lora_A and one lora_B. Fetch it again."
        )
    shapes = weights.tensors[a].shape, weights.tensors[b].shape
    if len(shapes[0]) != 2 or len(shapes[1]) != 2:
        raise UnsupportedCheckpoint(
            f"{settings.path}: {module} adapts a tensor of more than two dimensions. Merge it with "
            "peft first."
        )
    rank = shapes[0][0]
    if rank != shapes[1][1] or rank == 0:
        raise CorruptCheckpoint(
            f"{settings.path}: {module}: lora_A {list(shapes[0])} and lora_B {list(shapes[1])} "
            "cannot be multiplied. Fetch it again."
        )
    transposed = embedding or settings.transposed
    if settings.dora != (magnitude is not None) or (magnitude and transposed):
        raise UnsupportedCheckpoint(
            f"{settings.path}: {module}: DoRA is read for plain linear layers with their "
            "magnitudes. Merge it with peft first."
        )
    if magnitude and weights.tensors[magnitude].shape != (shapes[1][0],):
        raise CorruptCheckpoint(f"{settings.path}: {module}: the magnitudes have a wrong shape.")
    scale = settings.scale(module, rank)
    found = {f"{module}.weight": Delta(a, b, scale, transposed, magnitude)}
    if bias is not None:
        if len(weights.tensors[bias].shape) != 1:
            raise CorruptCheckpoint(f"{settings.path}: {module}: the bias has a wrong shape.")
        found[f"{module}.bias"] = Delta(None, bias, scale)
    return found


class Lookup:
    """The base's name for a parameter that an adapter names by its place in a live model."""

    def __init__(self, base: Checkpoint, tied_head: str | None) -> None:
        self._base = base
        self._known = set(base.tensors) | ({tied_head} if tied_head else set())

    def __call__(self, parameter: str, adapter: Adapter) -> str:
        """The name, or `UnsupportedCheckpoint`."""
        # Live models may wrap what is on disk in one more prefix ("transformer."), or the
        # other way round.
        name = parameter
        while name:
            if name in self._known:
                return name
            name = name.partition(".")[2] if name.count(".") > 1 else ""
        longer = [known for known in self._known if known.endswith("." + parameter)]
        if len(longer) == 1:
            return longer[0]
        raise UnsupportedCheckpoint(
            f"{adapter.path}: the adapter changes {parameter}, which {self._base.name} does not "
            f"have{nearest(parameter, self._known)}. It belongs to another model: "
            f"adapter_config.json names {adapter.base_name or 'none'}."
        )
