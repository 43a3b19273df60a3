"""Merging from Python: configurations of every sort, tensors in a REPL, state dicts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import modelglue
import tiny
from modelglue import methods
from modelglue.errors import (
    ConfigError,
    NonFiniteTensor,
    NotMergeable,
    ShapeMismatch,
    UnknownName,
)
from modelglue.merge.config.schema import parse_config
from modelglue.merge.method import METHODS
from modelglue.merge.plan.merge_plan import make_plan

State = dict[str, torch.Tensor]
IN_MEMORY = [name for name in METHODS if METHODS[name].statistics == "none"]
PARAMETERS: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.4, "lambda": 0.9},
    "dare_ties": {"density": [0.3, 0.5, 0.7], "seed": 11},
    "dare_linear": {"density": 0.5, "seed": 2},
    "della": {"density": 0.6, "seed": 5},
    "della_linear": {"density": 0.6, "seed": 5},
    "breadcrumbs": {"density": 0.7, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.7},
    "sce": {"select_topk": 0.3},
    "slerp": {"t": 0.3},
}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three fine-tunes."""
    root = tmp_path_factory.mktemp("family")
    base = tiny.save_model(root / "base", num_hidden_layers=2, dtype=request.param)
    return [
        base,
        *(tiny.save_variant(base, root / f"ft{i}", seed=i, scale=0.01) for i in range(1, 4)),
    ]


def state_of(path: Path) -> State:
    return load_file(path / "model.safetensors")


def config_of(method: str, family: list[Path], **more: Any) -> dict[str, Any]:
    """A merge of as many models as the method takes; a list of values is one a model."""
    base, *models = family
    definition = METHODS[method]
    models = models[: count(method)]
    settings = {**PARAMETERS.get(method, {}), **more}
    each = {name: value for name, value in settings.items() if isinstance(value, list)}
    entries = [
        {"model": str(path), "parameters": {name: values[i] for name, values in each.items()}}
        for i, path in enumerate(models)
    ]
    shared = {name: value for name, value in settings.items() if name not in each}
    named = {"base_model": str(base)} if definition.base in ("required", "first") else {}
    return {"merge_method": method, "models": entries, "parameters": shared, **named}


def count(method: str) -> int:
    return (METHODS[method].models[1] or 3) - (METHODS[method].base == "first")


def keywords(method: str, **more: Any) -> dict[str, Any]:
    found = {**PARAMETERS.get(method, {}), **more}
    return {"lambda_" if name == "lambda" else name: value for name, value in found.items()}


# Configurations


def test_a_plan_a_configuration_a_mapping_and_a_file_give_the_same(
    llamas: list[Path], tmp_path: Path
) -> None:
    mapping = config_of("ties", llamas)
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(mapping))
    config = parse_config(mapping)
    asked = {
        "mapping": mapping,
        "config": config,
        "plan": make_plan(config),
        "path": tmp_path / "merge.yaml",
        "text": str(tmp_path / "merge.yaml"),
    }
    written = set()
    for name, given in asked.items():
        out = modelglue.merge(given, tmp_path / name)
        assert out == tmp_path / name
        written.add((out / "model.safetensors").read_bytes())
    assert len(written) == 1


def test_a_files_paths_are_relative_to_it(llamas: list[Path], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").symlink_to(llamas[0])
    (tmp_path / "there" / "b").symlink_to(llamas[1])
    file = tmp_path / "there" / "merge.yaml"
    file.write_text("merge_method: linear\nmodels: [a, b]\n")
    out = modelglue.merge(file, str(tmp_path / "out"))
    a, b, merged = (state_of(path) for path in (llamas[0], llamas[1], out))
    assert all(torch.allclose(merged[n], (a[n] + b[n]) / 2, atol=1e-7) for n in merged)


def test_the_progress_ends_with_everything(llamas: list[Path], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    config = {"merge_method": "linear", "models": [str(path) for path in llamas]}
    modelglue.merge(config, tmp_path / "out", progress=lambda *now: told.append(now))
    total = sum(tensor.numel() for tensor in state_of(llamas[0]).values())
    assert told[-1] == (total, total)
    assert told == sorted(told)


def test_a_wrong_configuration_is_told_before_anything_is_made(
    llamas: list[Path], tmp_path: Path
) -> None:
    config = {"merge_method": "tise", "models": [str(path) for path in llamas], "dtpye": "x"}
    with pytest.raises(ConfigError) as caught:
        modelglue.merge(config, tmp_path / "new" / "out")
    assert 'did you mean "ties"' in str(caught.value)
    assert 'did you mean "dtype"' in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Tensors

NUMBERS = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
BASE = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
ASKED: dict[str, Any] = {"weight": [0.5, 0.3, 0.4], "density": 0.4}


def naive_ties(models: np.ndarray, base: np.ndarray) -> np.ndarray:
    deltas = (models - base).reshape(3, -1).astype(float)
    kept = np.zeros_like(deltas)
    for delta, target in zip(deltas, kept):
        largest = np.argsort(-abs(delta), kind="stable")[: int(0.4 * len(delta))]
        target[largest] = delta[largest]
    found = base.astype(float).ravel()
    for j, column in enumerate(kept.T):
        terms = np.array(ASKED["weight"]) * column
        agree = terms * (1 if terms.sum() >= 0 else -1) > 0
        if agree.any():
            found[j] += terms[agree].sum() / np.array(ASKED["weight"])[agree].sum()
    return found.reshape(base.shape)


def test_ties_of_arrays_tensors_and_lists_is_the_same() -> None:
    expected = naive_ties(NUMBERS, BASE)
    of_numpy = methods.ties(NUMBERS, BASE, **ASKED)
    assert isinstance(of_numpy, np.ndarray)
    assert of_numpy.dtype == np.float32
    np.testing.assert_allclose(of_numpy, expected, atol=1e-6)
    of_torch = methods.ties(torch.from_numpy(NUMBERS), torch.from_numpy(BASE), **ASKED)
    assert isinstance(of_torch, torch.Tensor)
    np.testing.assert_array_equal(of_torch.numpy(), of_numpy)
    of_several = methods.ties(list(NUMBERS), BASE, **ASKED)
    np.testing.assert_array_equal(of_several, of_numpy)
    of_lists = methods.ties(NUMBERS.tolist(), BASE.tolist(), **ASKED)
    assert isinstance(of_lists, np.ndarray)
    np.testing.assert_array_equal(of_lists, of_numpy)
    mixed = methods.ties([NUMBERS[0], torch.from_numpy(NUMBERS[1]), NUMBERS[2]], BASE, **ASKED)
    np.testing.assert_array_equal(mixed, of_numpy)


def test_whole_numbers_in_lists_are_numbers() -> None:
    assert methods.linear([[1, 2], [2, 2]]).tolist() == [1.5, 2.0]


def test_one_value_serves_every_model_and_arrays_are_values() -> None:
    same = methods.linear(NUMBERS, weight=0.2)
    np.testing.assert_array_equal(same, methods.linear(NUMBERS))
    listed = methods.linear(NUMBERS, weight=[0.5, 0.3, 0.4])
    np.testing.assert_array_equal(methods.linear(NUMBERS, weight=(0.5, 0.3, 0.4)), listed)
    np.testing.assert_array_equal(methods.linear(NUMBERS, weight=np.array([0.5, 0.3, 0.4])), listed)


def test_every_method_is_there_by_name() -> None:
    assert set(METHODS) <= set(dir(methods))
    assert all(getattr(methods, name) is METHODS[name] for name in METHODS)
    with pytest.raises(AttributeError, match=r"no merge method 'tise'.*ties"):
        methods.tise  # noqa: B018


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: methods.ties(NUMBERS, BASE, desnity=0.4), TypeError, 'mean "density"'),
        (lambda: methods.ties(NUMBERS), TypeError, "ties needs a base"),
        (lambda: methods.ties([], BASE), ValueError, "no tensor to merge"),
        (lambda: methods.ties(NUMBERS, BASE, density=1.4), ValueError, "density: 1.4 is above 1"),
        (lambda: methods.ties(NUMBERS, BASE, density="much"), ValueError, "not a number"),
        (lambda: methods.ties(NUMBERS, BASE, weight=[1, 2]), ValueError, "2 values for 3 tensors"),
        (lambda: methods.ties(NUMBERS, BASE, weight=[1, -1, 0]), ValueError, "sum to 0"),
        (lambda: methods.ties(NUMBERS, BASE, weight=float("nan")), ValueError, "not finite"),
        (lambda: methods.ties(NUMBERS, BASE[:2]), ShapeMismatch, r"\[4, 6\] and \[2, 6\]"),
        (lambda: methods.ties(NUMBERS, BASE, trim="globl"), ValueError, "none of tensor, global"),
        (lambda: methods.slerp(NUMBERS), ValueError, "slerp takes 2 to 2 tensors"),
        (lambda: methods.regmean(NUMBERS), TypeError, "regmean needs statistics"),
        (lambda: methods.linear(NUMBERS, statistics=NUMBERS), TypeError, "takes no statistics"),
        (lambda: methods.linear(np.ones((2, 3), int)), TypeError, "floating-point.* int64"),
        (lambda: methods.linear(torch.ones(2, 3, dtype=torch.int8)), TypeError, "int8"),
        (lambda: methods.linear({"a": NUMBERS}), TypeError, "floating-point.* str"),
        (lambda: methods.linear([1.0, 2.0]), TypeError, "floating-point.* float"),
    ],
)
def test_wrong_arguments_are_told_in_words(call: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()


# State dicts


@pytest.mark.parametrize("method", IN_MEMORY)
def test_state_dicts_merge_as_the_checkpoints_do(
    method: str, family: list[Path], tmp_path: Path
) -> None:
    written = state_of(modelglue.merge(config_of(method, family), tmp_path / "out"))
    base, *models = map(state_of, family)
    merged = modelglue.merge_state_dicts(
        models[: count(method)],
        base if METHODS[method].base in ("required", "first") else None,
        method=method,
        **keywords(method),
    )
    assert merged.keys() == written.keys()
    for name, tensor in written.items():
        assert merged[name].dtype == tensor.dtype
        # One unit in the last place where a sum lies at the edge of rounding.
        step = 2e-7 if tensor.dtype == torch.float32 else 2**-8
        assert torch.allclose(merged[name].float(), tensor.float(), rtol=step, atol=1e-7), name


def naive_global_ties(models: list[State], base: State, density: float) -> State:
    """Trim over the concatenation of all tensors, by sorting."""
    names = list(base)
    vectors = [
        torch.cat([(model[name].double() - base[name].double()).flatten() for name in names])
        for model in models
    ]
    kept = []
    for vector in vectors:
        order = torch.sort(vector.abs(), descending=True, stable=True).indices
        chosen = torch.zeros_like(vector)
        chosen[order[: int(density * len(vector))]] = 1
        kept.append(vector * chosen)
    stack = torch.stack(kept)
    sign = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    agree = stack * sign > 0
    mean = (stack * agree).sum(0) / agree.sum(0).clamp(min=1)
    found, at = {}, 0
    for name in names:
        size = base[name].numel()
        found[name] = base[name].double() + mean[at : at + size].reshape(base[name].shape)
        at += size
    return found


@pytest.mark.parametrize("chunk", [700, 1 << 19])
def test_global_trim_takes_the_largest_of_the_whole_model(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelglue.merge.chunk.CHUNK", chunk)
    base = tiny.save_model(tmp_path / "base", num_hidden_layers=2)
    paths = [base, *(tiny.save_variant(base, tmp_path / n, seed=i) for i, n in enumerate("abc"))]
    for path in paths[1:]:  # task vectors of some tensors are larger than those of others
        tensors = state_of(path)
        for i, name in enumerate(tensors):
            tensors[name] = state_of(base)[name] + (tensors[name] - state_of(base)[name]) * (1 + i)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    start, *models = map(state_of, paths)
    expected = naive_global_ties(models, start, 0.3)
    settings = {"density": 0.3, "lambda": 1.0}
    out = modelglue.merge(config_of("ties", paths, trim="global", **settings), tmp_path / "out")
    written = state_of(out)
    held = modelglue.merge_state_dicts(models, start, method="ties", density=0.3, trim="global")
    apart = modelglue.merge_state_dicts(models, start, method="ties", density=0.3)
    for name, tensor in expected.items():
        assert torch.allclose(written[name].double(), tensor, atol=1e-6), name
        assert torch.allclose(held[name].double(), tensor, atol=1e-6), name
    norm = "model.norm.weight"
    assert not torch.allclose(apart[norm], held[norm], atol=1e-6)


def test_a_live_models_state_goes_in_and_out_again() -> None:
    models = [torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)) for _ in "ab"]
    models[0][1].num_batches_tracked += 7
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    merged = modelglue.merge_state_dicts([m.state_dict() for m in models], weight=[0.25, 0.75])
    assert int(merged["1.num_batches_tracked"]) == 7
    a, b = before
    assert torch.allclose(merged["0.weight"], 0.25 * a["0.weight"] + 0.75 * b["0.weight"])
    models[1].load_state_dict(merged)
    merged["0.weight"] += 1
    assert all(torch.equal(v, before[0][k]) for k, v in models[0].state_dict().items())


STATE = {"a": torch.ones(2, 3), "b": torch.zeros(4)}


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda m: m([STATE, {"a": STATE["a"]}]), NotMergeable, "b: not every model has it"),
        (lambda m: m([STATE], {"a": STATE["a"]}), NotMergeable, "b: not every model has it"),
        (
            lambda m: m([STATE, {**STATE, "b": torch.zeros(5)}]),
            ShapeMismatch,
            r"b: tensors of shapes \[4\] and \[5\]",
        ),
        (lambda m: m([STATE, STATE], method="liner"), UnknownName, 'did you mean "linear"'),
        (lambda m: m([STATE, STATE], wieght=1), TypeError, 'did you mean "weight"'),
        (lambda m: m([STATE, STATE], method="ties"), TypeError, "ties needs a base"),
        (lambda m: m([]), ValueError, "no state dict"),
        (lambda m: m([STATE] * 3, method="slerp"), ValueError, "slerp takes 2 to 2"),
        (
            lambda m: m([STATE, {**STATE, "b": torch.full((4,), float("nan"))}]),
            NonFiniteTensor,
            r"b: the result is not finite; model 1 \(from 0\)",
        ),
    ],
)
def test_state_dicts_that_do_not_fit_are_told_in_words(
    call: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        call(modelglue.merge_state_dicts)


def test_what_methods_say_of_themselves_is_plain_data() -> None:
    for name in METHODS:
        assert json.loads(json.dumps(METHODS[name].describe()))["name"] == name
