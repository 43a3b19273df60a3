"""Damaged checkpoints are read as the formats' own libraries read them, or refused."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import make_damaged
from safetensors.torch import load_file

OPENER = Path(__file__).with_name("open_damaged.py")


@pytest.fixture(scope="module")
def models(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model in every form: one file, shards, `.bin`, shards of `.bin`, and the older `.bin`."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24}
    made = {
        "single": make_model(root / "single", dtype=torch.bfloat16, **sizes),
        "shards": make_model(root / "shards", max_shard_size="8KB", **sizes),
    }
    state = load_file(root / "single/model.safetensors")
    for name in ("bin", "legacy", "bin-shards"):
        made[name] = root / name
        made[name].mkdir()
        (made[name] / "config.json").write_bytes((root / "single/config.json").read_bytes())
    torch.save(state, root / "bin/pytorch_model.bin")
    torch.save(state, root / "legacy/pytorch_model.bin", _use_new_zipfile_serialization=False)
    places = {}
    for i, name in enumerate(state):
        places[name] = f"pytorch_model-{1 + i % 2:05d}-of-00002.bin"
    for shard in set(places.values()):
        part = {name: state[name] for name in state if places[name] == shard}
        torch.save(part, root / "bin-shards" / shard)
    index = root / "bin-shards/pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for folder in made.values():  # what plays no part here, so that damage hits what does
        for path in folder.glob("*token*"):
            path.unlink()
        (folder / "generation_config.json").unlink(missing_ok=True)
    return list(made.values())


def outcomes(folders: dict[Path, Path], cache: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(OPENER)],
        input="".join(f"{folder}\t{original}\n" for folder, original in folders.items()),
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=60 + len(folders),
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(folders), done.stderr
    assert max(answer["seconds"] for answer in answers) < 10
    return [answer["outcome"] for answer in answers]


def check(models: list[Path], root: Path, *, count: int, seed: int) -> None:
    damaged = make_damaged(models, root, count=count, seed=seed)
    originals = {folder: original for folder, (original, _) in damaged.items()}
    found = dict(zip(damaged, outcomes(originals, root / "cache"), strict=True))
    wrong = [
        f"{folder} ({damaged[folder][0].name}, {damaged[folder][1]}): {outcome}"
        for folder, outcome in found.items()
        if outcome != "read" and not outcome.startswith("refused: ")
    ]
    assert wrong == []
    for folder, outcome in found.items():
        # The name of the file or folder, and a message that a person can take in.
        assert outcome == "read" or str(folder) in outcome
        assert len(outcome) < 1500
    kinds = Counter("read" if outcome == "read" else "refused" for outcome in found.values())
    assert kinds["refused"] > count / 2
    assert kinds["read"] > 0


def test_the_undamaged_models_are_read(models: list[Path], tmp_path: Path) -> None:
    found = outcomes({model: model for model in models}, tmp_path / "cache")
    assert found == ["read"] * len(models)


def test_200_damaged_checkpoints_are_read_rightly_or_refused(
    models: list[Path], tmp_path: Path
) -> None:
    check(models, tmp_path, count=200, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_2000_more_damaged_checkpoints_are_read_rightly_or_refused(
    models: list[Path], tmp_path: Path, seed: int
) -> None:
    check(models, tmp_path, count=200, seed=seed)
