"""Real tiny checkpoints, made once a session."""

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Fingerprints of test checkpoints are kept out of the user's cache.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="modelglue-tests-")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings

import tiny

# Whoever runs tests in the background may have Ctrl-C ignored, and all their children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
transformers.utils.logging.disable_progress_bar()
# A busy machine is no defect.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """`tiny.save_model`: writes a real checkpoint with random weights."""
    return tiny.save_model


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three fine-tunes of it: [base, ft0, ft1, ft2]."""
    root = tmp_path_factory.mktemp("llamas")
    base = tiny.save_model(root / "base", seed=0)
    return [base, *(tiny.save_variant(base, root / f"ft{i}", seed=i + 1) for i in range(3))]


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[str, list[dict[str, Any]]], Path]:
    """Write items to a file in the test's folder."""
    import json

    def write(name: str, items: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        return path

    return write
