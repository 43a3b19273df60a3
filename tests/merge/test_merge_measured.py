"""What a merge measures before it merges, what it must see whole, and what it leaves as it is."""

from pathlib import Path
from typing import Any

import hollow
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import modelglue
from modelglue.errors import ConfigError, NonFiniteTensor, NotMergeable
from modelglue.merge.memory import merge_tensors, resolve
from modelglue.merge.method import METHODS, Parameter

NAME = "model.layers.{}.w.weight"


def save(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    hollow.save(path, {"x": (1,)}, num_hidden_layers=3)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def merged(out: Path, method: str, models: list[Path], **more: Any) -> dict[str, torch.Tensor]:
    own = more.pop("own", {})
    entries = [{"model": str(model), "parameters": own} for model in models]
    config = {"merge_method": method, "models": entries, "dtype": "float32", **more}
    return load_file(modelglue.merge(config, out) / "model.safetensors")


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """A base of zeros and a model whose layers changed ever less."""
    layers = {NAME.format(i): numbers(i, 10, 10) * 10.0**-i for i in range(3)}
    base = {name: torch.zeros(10, 10) for name in layers}
    return [save(tmp_path / "base", base), save(tmp_path / "model", layers)]


@pytest.mark.parametrize("rescale", [False, True])
def test_under_a_global_trim_what_the_cut_does_not_read_may_vary(
    pair: list[Path], tmp_path: Path, rescale: bool
) -> None:
    base, model = pair
    common = {"trim": "global", "normalize": False, "rescale": rescale}
    settings = {"base_model": str(base), "parameters": common}
    plain = merged(tmp_path / "plain", "ties", [model], own={"density": 0.34}, **settings)
    weight = [
        {"filter": "layers.0", "value": 0.5},
        {"filter": "layers.1", "value": 2},
        {"value": 3},
    ]
    own = {"density": 0.34, "weight": weight}
    varied = merged(tmp_path / "varied", "ties", [model], own=own, **settings)
    for layer, factor in enumerate([0.5, 2, 3]):
        name = NAME.format(layer)
        assert torch.allclose(varied[name], factor * plain[name])
        assert bool(plain[name].any()) == (layer < 2)


def test_under_a_global_trim_what_the_cut_reads_may_not_vary(
    pair: list[Path], tmp_path: Path
) -> None:
    base, model = pair
    own = {"density": [{"filter": "layers.0", "value": 0.5}, {"value": 0.3}], "weight": [1.0, 0.5]}
    settings = {"base_model": str(base), "parameters": {"trim": "global"}}
    with pytest.raises(NotMergeable, match="so its density cannot vary"):
        merged(tmp_path / "out", "ties", [model], own=own, **settings)


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].statistics == "none"])
def test_a_row_longer_than_a_chunk_is_merged_as_in_memory(method: str, tmp_path: Path) -> None:
    name, definition = NAME.format(0), METHODS[method]
    n = definition.models[1] or 2
    tensors = [numbers(i, 3, 600_000) for i in range(3)]
    paths = [save(tmp_path / str(i), {name: tensor}) for i, tensor in enumerate(tensors)]
    switch = {"model_stock": {"filter_wise": True}, "nuslerp": {"nuslerp_flatten": False}}
    values: dict[str, Any] = switch.get(method, {})
    if "density" in {p.name for p in definition.parameters}:
        values["density"] = 0.4
    models = list(range(1, n)) if definition.base == "first" else list(range(1, n + 1))
    more: dict[str, Any] = {"parameters": values}
    base = None
    if definition.base in ("required", "first"):
        base, more["base_model"] = tensors[0], str(paths[0])
    written = merged(tmp_path / "out", method, [paths[i] for i in models], **more)[name]
    held = merge_tensors(
        definition, [tensors[i] for i in models], base, parameters=values, name=name
    )
    assert torch.equal(written, held)


def test_float64_passes_through_as_it_is(tmp_path: Path) -> None:
    name = NAME.format(0)
    exact = torch.linspace(1, 2, 700_001, dtype=torch.float64)
    model = save(tmp_path / "model", {name: exact, NAME.format(1): numbers(0, 4, 4)})
    config = {"merge_method": "passthrough", "models": [{"model": str(model)}]}
    out = load_file(modelglue.merge(config, tmp_path / "out") / "model.safetensors")
    assert torch.equal(out[name], exact)
    assert torch.equal(out[NAME.format(1)], numbers(0, 4, 4))


def test_float64_that_is_not_finite_does_not_pass(tmp_path: Path) -> None:
    values = torch.ones(5, dtype=torch.float64)
    values[3] = torch.inf
    model = save(tmp_path / "model", {NAME.format(0): values})
    config = {"merge_method": "passthrough", "models": [{"model": str(model)}]}
    with pytest.raises(NonFiniteTensor, match="model holds values"):
        modelglue.merge(config, tmp_path / "out")


@pytest.mark.parametrize("seed", [float("inf"), float("nan"), -float("inf")])
def test_a_whole_number_that_is_not_finite_is_refused(seed: float, pair: list[Path]) -> None:
    assert "is not finite" in str(Parameter("seed", "merge", "", kind="integer").problem(seed))
    config = {
        "merge_method": "dare_linear",
        "base_model": str(pair[0]),
        "models": [{"model": str(pair[1])}],
        "parameters": {"seed": seed},
    }
    with pytest.raises(ConfigError, match="seed"):
        modelglue.merge(config, pair[0].parent / "out")


@pytest.mark.parametrize(
    "weight",
    [
        [np.float32(0.5), np.float64(2)],
        (torch.tensor(0.5), 2),
        np.array([0.5, 2.0]),
        torch.tensor([0.5, 2.0]),
    ],
    ids=["numpy scalars", "torch scalar", "array", "tensor"],
)
def test_values_of_any_library_are_numbers(weight: Any) -> None:
    found = resolve(METHODS["linear"], {"weight": weight}, 2)["weight"]
    assert found == (0.5, 2)
    assert all(type(value) in (int, float) for value in found)
