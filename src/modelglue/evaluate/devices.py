"""One model over several GPUs: whole layers on each, held together by accelerate's hooks.

Whatever is given to the model goes to its input embedding's device; a hook brings every layer what
it needs, and what comes out to where the input was. Nothing is left on the CPU or on disk, where
weights that a hook fetches could not be merged into.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from modelglue.errors import EvaluationError, InputError


def input_device(module: Any) -> torch.device:
    """Where a model takes its inputs: with its input embedding."""
    embeddings = getattr(module, "get_input_embeddings", lambda: None)()
    device: torch.device = getattr(getattr(embeddings, "weight", module), "device", module.device)
    return device


def devices_of(module: Any) -> tuple[str, ...]:
    """The devices that a module's parameters stand on, in their order."""
    return tuple(dict.fromkeys(str(parameter.device) for parameter in module.parameters()))


def spreading_problem(gpus: int) -> str | None:
    """Why no model can be spread over so many GPUs here; None if one can."""
    if find_spec("accelerate") is None:
        return (
            f"{gpus} GPUs for one model need accelerate, which is not installed: "
            "pip install accelerate"
        )
    if (found := torch.cuda.device_count()) < gpus:
        return f"{gpus} GPUs for one model, and this process sees {found}"
    return None


def spread(module: Any, gpus: int) -> Any:
    """The module, dispatched over the first `gpus` GPUs, to each about as much of it.

    It must lie on the CPU, and is changed in place.

    Raises:
        InputError: accelerate is not installed, or there are not so many GPUs.
        EvaluationError: it does not fit there.
    """
    if (problem := spreading_problem(gpus)) is not None:
        raise InputError(problem)
    return dispatched(module, device_map(module, _free(gpus)))


def dispatched(module: Any, places: Mapping[str, int | str]) -> Any:
    """The module with its parts on these devices, and hooks that bring each what it is given.

    Args:
        places: part of the module by name → its device.
    """
    from accelerate import dispatch_model

    # A cache belongs to many layers, each of which keeps its part where it stands.
    skipped = {"past_key_values", *(getattr(module, "_skip_keys_device_placement", None) or ())}
    return dispatch_model(
        module,
        dict(places),
        main_device=next(iter(places.values())),
        skip_keys=sorted(skipped),
        force_hooks=True,
    )


def device_map(module: Any, room: Mapping[int, int]) -> dict[str, int]:
    """Which part of a module goes to which GPU: whole layers, evenly.

    Args:
        room: number of a GPU → its bytes.

    Raises:
        EvaluationError: they have no room for it.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = sorted(getattr(module, "_no_split_modules", None) or ())
    even = get_balanced_memory(module, dict(room), no_split_module_classes=whole)
    found: dict[str, int] = infer_auto_device_map(module, even, no_split_module_classes=whole)
    if set(found.values()) - set(room):
        need = sum(p.numel() * p.itemsize for p in module.parameters()) / 1e9
        have = ", ".join(f"{nbytes / 1e9:.1f}" for nbytes in room.values())
        raise EvaluationError(
            f"a model of {need:.1f} GB does not fit on {len(room)} GPUs with {have} GB free, "
            "whole layers on each; give a model more of them"
        )
    return found


def _free(gpus: int) -> dict[int, int]:
    torch.cuda.empty_cache()
    return {gpu: int(torch.cuda.mem_get_info(gpu)[0]) for gpu in range(gpus)}
