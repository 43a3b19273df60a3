"""A bundle of three tiny experts, one of them without a chat template, and a server over it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving_samples import PROMPTS, TEMPLATE, process

import tiny
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.mix import mix


@pytest.fixture(scope="session")
def expert_folders(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("served")
    folders = {name: make_model(root / name, seed=i) for i, name in enumerate(PROMPTS, 1)}
    for name in ("numbers", "words"):
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory, expert_folders: dict[str, Path]) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "glued"
    mix(expert_folders, PROMPTS, out)
    return out


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.load(bundle_path)


@pytest.fixture(scope="session")
def served(bundle_path: Path) -> Iterator[str]:
    """The address of a real `modelglue serve`."""
    with process(["-m", "modelglue.cli", "serve", bundle_path, "--port", 0]) as (_, address):
        yield address
