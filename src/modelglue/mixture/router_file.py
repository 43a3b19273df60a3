"""The router of a bundle as a file of tensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modelglue.errors import MixtureError
from modelglue.mixture.router import LinearRouter, MLPRouter, Router, from_tensors
from modelglue.mixture.router_scores import NearestRouter

ROUTER_FILE = "router.safetensors"

PromptRouter = Router | NearestRouter
"""What can decide for a whole prompt."""

KINDS: Mapping[str, type] = {"linear": LinearRouter, "mlp": MLPRouter, "knn": NearestRouter}


def kind_of(router: PromptRouter) -> str:
    """Its name in `KINDS`."""
    return next(name for name, made in KINDS.items() if isinstance(router, made))


def write_router(router: PromptRouter, folder: Path) -> None:
    """Write the router's tensors into a folder that nobody else sees yet."""
    tensors = {name: tensor.contiguous() for name, tensor in router.tensors().items()}
    save_file(tensors, folder / ROUTER_FILE)


def read_router(folder: Path, kind: str, *, experts: int, features: int) -> PromptRouter:
    """The router in a bundle's folder.

    Raises:
        MixtureError: its file can't be read, or it is not one of that kind for so many experts and
            features.
    """
    path = folder / ROUTER_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise MixtureError(f"{path} can't be read: {error}") from None
    try:
        router = (NearestRouter.from_tensors if kind == "knn" else from_tensors)(tensors)
    except MixtureError as error:
        raise _misfit(path, kind, experts, features, str(error)) from None
    if (kind_of(router), router.experts, router.features) != (kind, experts, features):
        said = (
            f"it is {kind_of(router)} over {router.experts} experts of {router.features} features"
        )
        raise _misfit(path, kind, experts, features, said)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise MixtureError(f"{path}: holds NaN or infinity")
    return router


def _misfit(path: Path, kind: str, experts: int, features: int, said: str) -> MixtureError:
    return MixtureError(
        f"{path}: holds no {kind} router for {experts} experts and an encoder of width "
        f"{features}; {said}"
    )
