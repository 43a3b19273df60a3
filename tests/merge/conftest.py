"""Models that several of these files plan merges of."""

from pathlib import Path

import hollow
import pytest


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four models of four layers."""
    root = tmp_path_factory.mktemp("zoo")
    return [hollow.save(root / name, 4) for name in "abcd"]
