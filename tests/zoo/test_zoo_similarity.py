"""Similarity: against the naive loop, and the laws that it obeys."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.source import open_checkpoint
from modelglue.errors import InputError, NonFiniteTensor, UnsupportedCheckpoint
from modelglue.zoo import columns
from modelglue.zoo.inspect import describe
from modelglue.zoo.names import unique_names
from modelglue.zoo.similarity import Similarity, similarities

COUNTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def matrices(path: Path) -> dict[str, torch.Tensor]:
    """What counts, of all shards, in fp64."""
    tensors = {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}
    return {k: v.double() for k, v in tensors.items() if any(part in k for part in COUNTED)}


def naive(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], names: str = "") -> float:
    cosines = [torch.cosine_similarity(a[n], b[n], dim=0).mean() for n in a if names in n]
    return float(torch.stack(cosines).mean())


def open_all(paths: list[Path]) -> list[Checkpoint]:
    return [Checkpoint.open(path) for path in paths]


def edit(source: Path, target: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A copy of a model with its tensors changed."""
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    save_file(
        {n: change(n, t).contiguous() for n, t in tensors.items()}, target / "model.safetensors"
    )
    return target


@pytest.fixture(scope="module")
def measured(llamas: list[Path]) -> Similarity:
    return similarities(open_all(llamas))


def test_it_is_the_mean_of_column_wise_cosines(llamas: list[Path], measured: Similarity) -> None:
    loaded = [matrices(path) for path in llamas]
    expected = [[naive(a, b) for b in loaded] for a in loaded]
    np.testing.assert_allclose(measured.matrix, expected, atol=1e-6)
    assert measured.between("base", "ft1") == pytest.approx(naive(loaded[0], loaded[2]), abs=1e-6)


def test_it_is_split_by_role(llamas: list[Path], measured: Similarity) -> None:
    a, b = matrices(llamas[1]), matrices(llamas[2])
    assert list(measured.by_role) == ["attention", "mlp"]
    assert measured.by_role["attention"][1, 2] == pytest.approx(naive(a, b, "attn"), abs=1e-6)
    assert measured.by_role["mlp"][1, 2] == pytest.approx(naive(a, b, "mlp"), abs=1e-6)


def test_it_is_split_by_layer(llamas: list[Path], measured: Similarity) -> None:
    a, b = matrices(llamas[1]), matrices(llamas[2])
    assert list(measured.by_layer) == [0, 1, 2, 3]
    for layer, matrix in measured.by_layer.items():
        assert matrix[1, 2] == pytest.approx(naive(a, b, f"layers.{layer}."), abs=1e-6)


def test_whole_tensors_can_be_compared_instead_of_columns(llamas: list[Path]) -> None:
    a, b = matrices(llamas[0]), matrices(llamas[3])
    flat = [torch.cosine_similarity(a[n].flatten(), b[n].flatten(), dim=0) for n in a]
    found = similarities(open_all(llamas), measure="tensor")
    assert found.between("base", "ft2") == pytest.approx(float(sum(flat) / len(flat)), abs=1e-6)


@pytest.mark.parametrize("base_is_among_the_models", [True, False])
def test_task_vectors_are_what_is_added_to_the_base(
    llamas: list[Path], base_is_among_the_models: bool
) -> None:
    base = Checkpoint.open(llamas[0])
    tuned = open_all(llamas[1:])
    models = [base, *tuned] if base_is_among_the_models else tuned
    found = similarities(models, base=base, of="task_vectors")
    origin = matrices(llamas[0])
    vectors = [{n: t - origin[n] for n, t in matrices(path).items()} for path in llamas[1:]]
    for (a, x), (b, y) in itertools.combinations(
        zip(("ft0", "ft1", "ft2"), vectors, strict=True), 2
    ):
        assert found.between(a, b) == pytest.approx(naive(x, y), abs=1e-5)
        assert abs(found.between(a, b)) < 0.1  # independent noise
    if base_is_among_the_models:
        assert found.between("base", "ft0") == 0


def test_task_vectors_need_a_base(llamas: list[Path]) -> None:
    with pytest.raises(InputError, match="need a base"):
        similarities(open_all(llamas), of="task_vectors")


def test_an_unknown_measure_is_refused(llamas: list[Path]) -> None:
    with pytest.raises(InputError, match="'rows'"):
        similarities(open_all(llamas), measure="rows")  # type: ignore[arg-type]


def test_a_task_vector_needs_the_shapes_of_the_base(llamas: list[Path], tmp_path: Path) -> None:
    wide = tiny.save_model(tmp_path / "wide", intermediate_size=96)
    found = similarities(open_all(llamas[:2]), base=Checkpoint.open(wide), of="task_vectors")
    assert np.isnan(found.between("base", "ft0"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_shards_change_nothing(
    llamas: list[Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    low = tiny.save_model(tmp_path / "low", seed=0, dtype=dtype, max_shard_size="40KB")
    assert len(list(low.glob("*.safetensors"))) > 1
    found = similarities(open_all([llamas[0], low, llamas[1]]))
    assert found.between("base", "low") == pytest.approx(
        naive(matrices(llamas[0]), matrices(low)), abs=1e-6
    )
    assert found.between("ft0", "low") == pytest.approx(
        naive(matrices(llamas[1]), matrices(low)), abs=1e-6
    )


def test_small_windows_give_the_same(
    llamas: list[Path], measured: Similarity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "WINDOW_BYTES", 1)
    monkeypatch.setattr(columns, "LEAST_ROWS", 5)
    np.testing.assert_allclose(similarities(open_all(llamas)).matrix, measured.matrix, atol=1e-6)


def test_it_is_symmetric_with_ones_on_the_diagonal(measured: Similarity) -> None:
    for matrix in (measured.matrix, *measured.by_role.values(), *measured.by_layer.values()):
        assert (matrix == matrix.T).all()
        assert (np.diagonal(matrix) == 1).all()


def test_identical_models_are_at_one(llamas: list[Path], tmp_path: Path) -> None:
    twin = edit(llamas[0], tmp_path / "twin", lambda _, t: t)
    found = similarities(open_all([llamas[0], twin, llamas[1]]))
    assert found.between("base", "twin") == pytest.approx(1, abs=1e-6)
    assert found.between("ft0", "twin") == pytest.approx(found.between("ft0", "base"), abs=1e-6)


def test_scaling_a_model_changes_nothing(llamas: list[Path], tmp_path: Path) -> None:
    scaled = edit(llamas[1], tmp_path / "scaled", lambda _, t: t * 3)
    found = similarities(open_all([llamas[0], llamas[1], scaled]))
    assert found.between("base", "scaled") == pytest.approx(found.between("base", "ft0"), abs=1e-6)
    assert found.between("ft0", "scaled") == pytest.approx(1, abs=1e-6)


def test_the_opposite_model_is_at_minus_one(llamas: list[Path], tmp_path: Path) -> None:
    opposite = edit(llamas[0], tmp_path / "opposite", lambda _, t: -t)
    found = similarities(open_all([llamas[0], opposite]))
    assert found.between("base", "opposite") == pytest.approx(-1, abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(4)))
def test_the_order_of_the_models_changes_no_bit(
    llamas: list[Path], measured: Similarity, order: list[int]
) -> None:
    found = similarities(open_all([llamas[i] for i in order]))
    assert found.names == tuple(measured.names[i] for i in order)
    assert (found.matrix == measured.matrix[np.ix_(order, order)]).all()


def test_two_zero_columns_are_alike_and_one_is_like_no_other(
    llamas: list[Path], tmp_path: Path
) -> None:
    def pad(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * (torch.arange(tensor.shape[-1]) % 2) if "proj" in name else tensor

    padded = [edit(llamas[i], tmp_path / f"padded{i}", pad) for i in range(2)]
    found = similarities(open_all([*padded, llamas[0]]))
    whole = naive(matrices(llamas[0]), matrices(llamas[1]))
    assert found.between("base", "padded0") == pytest.approx(0.5, abs=1e-6)
    odd = [{n: t[:, 1::2] for n, t in matrices(path).items()} for path in padded]
    assert found.between("padded0", "padded1") == pytest.approx((1 + naive(*odd)) / 2, abs=1e-6)
    assert whole < 1


def test_models_of_other_shapes_are_not_compared(llamas: list[Path], tmp_path: Path) -> None:
    wide = tiny.save_model(tmp_path / "wide", intermediate_size=96)
    deep = tiny.save_model(tmp_path / "deep", num_hidden_layers=5)
    found = similarities(open_all([wide, llamas[0], deep, llamas[1]]))
    assert np.isfinite(found.between("base", "ft0"))
    assert np.isfinite(found.matrix).sum() == 6  # the diagonal and one pair
    assert np.isfinite(found.by_role["attention"]).sum() == 6


def test_a_tensor_of_experts_counts_as_many_matrices(llamas: list[Path], tmp_path: Path) -> None:
    def stack(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack([tensor, tensor.flip(0) + 0.01]) if "gate_proj" in name else tensor

    a, b = (edit(llamas[i], tmp_path / f"experts{i}", stack) for i in range(2))
    unstacked = []
    for tensors in (matrices(a), matrices(b)):
        two = {n: t for n, t in tensors.items() if t.ndim == 2}
        two |= {f"{n}.{i}": t[i] for n, t in tensors.items() if t.ndim == 3 for i in range(2)}
        unstacked.append(two)
    found = similarities(open_all([a, b]))
    assert found.between("experts0", "experts1") == pytest.approx(naive(*unstacked), abs=1e-6)


def test_a_tensor_with_nan_is_named(llamas: list[Path], tmp_path: Path) -> None:
    def spoil(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "model.layers.2.mlp.up_proj.weight":
            tensor[3, 4] = torch.nan
        return tensor

    broken = edit(llamas[0], tmp_path / "broken", spoil)
    with pytest.raises(NonFiniteTensor, match=r"layers\.2\.mlp\.up_proj\.weight: broken holds NaN"):
        similarities(open_all([llamas[1], broken, llamas[2]]))
    with pytest.raises(NonFiniteTensor, match="broken holds NaN"):
        similarities(open_all(llamas[1:]), base=Checkpoint.open(broken), of="task_vectors")


def test_quantised_weights_are_refused(llamas: list[Path], tmp_path: Path) -> None:
    def quantise(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor * 100).to(torch.int8) if "proj" in name else tensor

    small = [edit(llamas[i], tmp_path / f"int8-{i}", quantise) for i in range(2)]
    with pytest.raises(UnsupportedCheckpoint, match="int8-0 holds I8"):
        similarities(open_all(small))


def test_json_round_trips(llamas: list[Path], tmp_path: Path) -> None:
    wide = tiny.save_model(tmp_path / "wide", intermediate_size=96)
    found = similarities(open_all([*llamas, wide]))
    again = Similarity.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    assert np.isnan(again.between("base", "wide"))
    np.testing.assert_array_equal(again.matrix, found.matrix)


def test_progress_ends_at_the_total(llamas: list[Path]) -> None:
    seen: list[tuple[int, int]] = []
    similarities(open_all(llamas), progress=lambda done, total: seen.append((done, total)))
    assert (
        seen[-1][0] == seen[-1][1] == 4 * sum(t.numel() * 4 for t in matrices(llamas[0]).values())
    )
    assert seen == sorted(seen)


class Reads:
    """How often each byte of each file is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times: dict[Path, np.ndarray] = {}
        self._real = os.preadv
        monkeypatch.setattr(os, "preadv", self._preadv)

    def _preadv(self, descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = self._real(descriptor, buffers, offset)
        file = Path(f"/proc/self/fd/{descriptor}").resolve()
        times = self.times.setdefault(file, np.zeros(file.stat().st_size, dtype=int))
        times[offset : offset + count] += 1
        return count


def bytes_of(models: list[Checkpoint], counted: tuple[str, ...]) -> dict[Path, np.ndarray]:
    """Once for every byte of the tensors whose names have one of the parts in `counted`."""
    times: dict[Path, np.ndarray] = {}
    for model in models:
        for name, spec in model.tensors.items():
            if any(part in name for part in counted):
                file = spec.file.resolve()
                marks = times.setdefault(file, np.zeros(file.stat().st_size, dtype=int))
                marks[spec.offset : spec.offset + spec.nbytes] = 1
    return times


@pytest.mark.parametrize("of", ["weights", "task_vectors"])
def test_every_byte_that_counts_is_read_once_and_no_other(
    llamas: list[Path], monkeypatch: pytest.MonkeyPatch, of: Literal["weights", "task_vectors"]
) -> None:
    models = open_all(llamas)
    reads = Reads(monkeypatch)
    similarities(models, base=models[0], of=of)
    np.testing.assert_equal(reads.times, bytes_of(models, COUNTED))


def test_fingerprints_cost_no_second_reading(
    llamas: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    alone = tiny.save_model(tmp_path / "alone", intermediate_size=96)
    models = open_all([*llamas, alone])
    monkeypatch.setattr(columns, "WINDOW_BYTES", 1)  # several chunks a tensor
    reads = Reads(monkeypatch)
    found = similarities(models, fingerprint=True)
    np.testing.assert_equal(reads.times, bytes_of(models, ("",)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert found.fingerprints == {model.name: model.fingerprint() for model in models}


def test_a_base_that_was_opened_twice_is_read_once(
    llamas: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    *models, base = open_all([*llamas, llamas[0]])
    reads = Reads(monkeypatch)
    similarities(models, base=base, of="task_vectors")
    np.testing.assert_equal(reads.times, bytes_of(models, COUNTED))


def test_fingerprints_are_only_made_when_asked_for(measured: Similarity) -> None:
    assert measured.fingerprints == {}


def adapter(base: Path, target: Path) -> Path:
    """An adapter on the down projections, with its merged weights worked out beside it."""
    target.mkdir(parents=True)
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(4):
        at = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{at}.lora_A.weight"] = torch.randn(2, 64, generator=generator) * 0.05
        tensors[f"{at}.lora_B.weight"] = torch.randn(32, 2, generator=generator) * 0.05
    save_file(tensors, target / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"]}
    (target / "adapter_config.json").write_text(json.dumps(settings))
    return target


def test_an_adapter_on_its_base_is_like_the_merged_model(
    llamas: list[Path], tmp_path: Path
) -> None:
    chat = adapter(llamas[0], tmp_path / "chat")
    deltas = load_file(chat / "adapter_model.safetensors")

    def merge(name: str, tensor: torch.Tensor) -> torch.Tensor:
        at = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{at}.lora_A.weight" not in deltas:
            return tensor
        return tensor + 2 * deltas[f"{at}.lora_B.weight"] @ deltas[f"{at}.lora_A.weight"]

    merged = edit(llamas[0], tmp_path / "merged", merge)
    models = [open_checkpoint(f"{llamas[0]}+{chat}"), *open_all([llamas[0], merged])]
    found = similarities(models, fingerprint=True)
    assert found.names == ("base+chat", "base", "merged")
    assert found.between("base+chat", "merged") == pytest.approx(1, abs=1e-6)
    assert found.between("base+chat", "base") == pytest.approx(
        naive(matrices(llamas[0]), matrices(merged)), abs=1e-6
    )
    assert found.fingerprints["base+chat"] == models[0].fingerprint()
    assert describe(models[0]).adapters == (str(chat),)


def test_adapters_of_one_name_are_told_apart(llamas: list[Path], tmp_path: Path) -> None:
    two = [adapter(llamas[0], tmp_path / place / "chat") for place in ("x", "y")]
    models = [open_checkpoint(f"{llamas[0]}+{path}") for path in two]
    assert unique_names(models) == ("x/base+chat", "y/base+chat")
