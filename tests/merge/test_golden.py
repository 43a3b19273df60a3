"""What mergekit 0.1.5 made of the same configurations, tensor by tensor."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modelglue.merge.run import merge

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("config", sorted(GOLDEN.glob("configs/*.yml")), ids=lambda path: path.stem)
def test_a_merge_agrees_with_mergekit(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(GOLDEN)
    out = merge(config.relative_to(GOLDEN), tmp_path / "out")
    expected = load_file(GOLDEN / "expected" / f"{config.stem}.safetensors")
    found = load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - tensor.float()).abs().max() <= 1e-6, name
