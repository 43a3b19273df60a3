"""NaN and infinity in an input or a result, through the executor that writes to disk."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import ConfigError, MergeError, NonFiniteTensor
from modelglue.merge.config.schema import parse_config
from modelglue.merge.engine.stream import Merged, execute
from modelglue.merge.method import METHODS, Method
from modelglue.merge.plan.merge_plan import MergePlan, make_plan

METHOD_NAMES = list(METHODS)
WITH_STATISTICS = [name for name in METHOD_NAMES if METHODS[name].statistics != "none"]
WITH_A_BASE = [name for name in METHOD_NAMES if METHODS[name].base in ("required", "first")]
NAME = "model.layers.1.mlp.up_proj.weight"
PLACE = (37, 5)
WEIGHTS = "model.safetensors"
CHUNK = 1000
"""Entries; the place lies in the tensor's second chunk."""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, three fine-tunes, a copy of each with one bad entry, statistics, and bad ones."""
    root = tmp_path_factory.mktemp("zoo")
    base = tiny.save_model(root / "base", seed=0, num_hidden_layers=2)
    names = ["a", "b", "c"]
    for seed, name in enumerate(names, 1):
        tiny.save_variant(base, root / name, seed=seed, scale=0.01)
    for name in ["base", *names]:
        shutil.copytree(root / name, root / f"{name}-bad")
        poison(root / f"{name}-bad", float("nan"))
    for kind in ("same", "gram"):
        for name in names:
            save_statistics(base, root / f"{name}.{kind}", kind)
        shutil.copytree(root / f"b.{kind}", root / f"b-bad.{kind}")
        poison(root / f"b-bad.{kind}", float("nan"), (5, 7))
    return {path.name: path for path in root.iterdir()}


def poison(model: Path, value: float, place: tuple[int, int] = PLACE, name: str = NAME) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors[name][place] = value
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})


def save_statistics(model: Path, folder: Path, kind: str) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, tensor in load_file(model / WEIGHTS).items():
        if kind == "same":
            tensors[name] = torch.rand(tensor.shape, generator=generator)
        elif "proj" in name:
            inputs = torch.randn((99, tensor.shape[1]), generator=generator)
            tensors[name] = inputs.T @ inputs
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")


def plan_of(method: str, zoo: dict[str, Path], bad: str = "", **more: Any) -> MergePlan:
    """A merge by any method in which `bad` (a model, the base, or statistics) has a bad entry."""
    definition = METHODS[method]

    def path(name: str) -> str:
        return str(zoo[name.replace(bad, f"{bad}-bad", 1) if bad and name == bad else name])

    entries = []
    for name in ["a", "b", "c"][: most(definition)]:
        settings: dict[str, Any] = {}
        if definition.statistics != "none":
            statistics = f"{name}.{definition.statistics}"
            settings["statistics"] = (
                str(zoo[statistics.replace(".", "-bad.")])
                if (bad == statistics)
                else str(zoo[statistics])
            )
        entries.append({"model": path(name), "parameters": settings})
    config: dict[str, Any] = {"merge_method": method, "models": entries}
    if method in WITH_A_BASE:
        config["base_model"] = path("base")
    return make_plan(parse_config({**config, **more}))


def most(method: Method) -> int:
    return (method.models[1] or 3) - (method.base == "first")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelglue.merge.chunk.CHUNK", CHUNK)


def refused(plan: MergePlan, out: Path, **options: Any) -> str:
    """The message; nothing may be left of the output."""
    with pytest.raises(NonFiniteTensor) as caught:
        execute(plan, out, **options)
    assert os.listdir(out.parent) == []
    return str(caught.value)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_model_that_is_not_finite_is_named(
    method: str, zoo: dict[str, Path], tmp_path: Path
) -> None:
    who = "b" if most(METHODS[method]) > 1 else "a"
    said = refused(plan_of(method, zoo, who), tmp_path / "out")
    assert said.startswith(f"{NAME}: {who}-bad holds values that are NaN or infinite (1 of")
    assert "from number 992 to 1,984)" in said
    assert "--allow-nonfinite" in said


@pytest.mark.parametrize("method", WITH_A_BASE)
def test_a_base_that_is_not_finite_is_named(
    method: str, zoo: dict[str, Path], tmp_path: Path
) -> None:
    said = refused(plan_of(method, zoo, "base"), tmp_path / "out")
    assert said.startswith(f"{NAME}: base-bad holds")


@pytest.mark.parametrize("method", WITH_STATISTICS)
def test_statistics_that_are_not_finite_are_named(
    method: str, zoo: dict[str, Path], tmp_path: Path
) -> None:
    kind = METHODS[method].statistics
    said = refused(plan_of(method, zoo, f"b.{kind}"), tmp_path / "out")
    assert said.startswith(f"{NAME}: b-bad.{kind} holds")


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("rescale", [False, True])
def test_of_a_model_measured_as_a_whole_the_tensor_with_the_bad_entry_is_named(
    zoo: dict[str, Path], tmp_path: Path, rescale: bool, device: str | None
) -> None:
    parameters = {"density": 0.5, "trim": "global", "rescale": rescale}
    plan = plan_of("ties", zoo, "c", parameters=parameters)
    said = refused(plan, tmp_path / "out", device=device)
    assert said.startswith(f"{NAME}: c-bad holds")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_every_stored_dtype_is_looked_at(
    value: float, dtype: torch.dtype, device: str | None, tmp_path: Path
) -> None:
    models = [tiny.save_model(tmp_path / n, num_hidden_layers=2, dtype=dtype) for n in "ab"]
    poison(models[1], value)
    config = {"merge_method": "linear", "models": [str(path) for path in models]}
    with pytest.raises(NonFiniteTensor, match=rf"{NAME}: b holds .*\(1 of"):
        execute(make_plan(parse_config(config)), tmp_path / "out", device=device)


# Going on


def allowed(plan: MergePlan, out: Path, **options: Any) -> Merged:
    return execute(plan, out, allow_nonfinite=True, **options)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_whoever_allows_it_gets_the_merge_and_the_count(
    method: str, zoo: dict[str, Path], tmp_path: Path
) -> None:
    who = "b" if most(METHODS[method]) > 1 else "a"
    merged = allowed(plan_of(method, zoo, who), tmp_path / "out")
    with Checkpoint.open(merged.path) as written:
        found = {
            name: int((~written.read(name).isfinite()).sum()) for name in sorted(written.tensors)
        }
    found = {name: count for name, count in found.items() if count}
    assert merged.nonfinite == found
    assert list(found) == [NAME]
    if METHODS[method].measure is None:
        assert found[NAME] == 1
    card = (merged.path / "README.md").read_text()
    assert f"{NAME}: {found[NAME]:,} entries are NaN or infinite" in card


def test_counts_of_many_threads_are_all_there(tmp_path: Path) -> None:
    models = [tiny.save_model(tmp_path / n, num_hidden_layers=2) for n in "ab"]
    tensors = load_file(models[0] / WEIGHTS)
    names = ["model.embed_tokens.weight", NAME, "model.norm.weight"]
    for name in names:
        tensors[name][...] = float("inf")
    save_file(tensors, models[0] / WEIGHTS, metadata={"format": "pt"})
    config = {"merge_method": "linear", "models": [str(path) for path in models]}
    merged = allowed(make_plan(parse_config(config)), tmp_path / "out", threads=8)
    assert merged.nonfinite == {name: tensors[name].numel() for name in names}
    assert list(merged.nonfinite) == [name for name in tensors if name in names]


def test_a_merge_that_goes_on_still_knows_its_counts(
    zoo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modelglue.merge.engine.stream.CheckpointWriter.commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            allowed(plan_of("linear", zoo, "b"), tmp_path / "out")
    merged = allowed(plan_of("linear", zoo, "b"), tmp_path / "out")
    assert merged.resumed > 0
    assert merged.nonfinite == {NAME: 1}


def test_what_was_allowed_is_not_gone_on_with_where_it_is_not(
    zoo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modelglue.merge.engine.stream.CheckpointWriter.commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            allowed(plan_of("linear", zoo, "b"), tmp_path / "out")
    assert "b-bad holds" in refused(plan_of("linear", zoo, "b"), tmp_path / "out")


# Results that are too large, and divisions by nothing


@pytest.mark.parametrize(("dtype", "size"), [("float16", 4e4), ("bfloat16", 3e38)])
def test_a_result_beyond_its_dtype_is_refused_and_blames_nobody(
    tmp_path: Path, dtype: str, size: float
) -> None:
    models = [tiny.save_model(tmp_path / n, num_hidden_layers=2) for n in "ab"]
    for path in models:
        poison(path, size)
    config = {
        "merge_method": "linear",
        "models": [str(path) for path in models],
        "parameters": {"normalize": False},
        "dtype": dtype,
    }
    plan = make_plan(parse_config(config))
    short = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    with pytest.raises(NonFiniteTensor, match=rf"^{NAME}: the result does not fit {short}\."):
        execute(plan, tmp_path / "out")
    merged = allowed(plan, tmp_path / "out")
    assert merged.nonfinite == {NAME: 1}
    written = load_file(merged.path / WEIGHTS)[NAME]
    assert written[PLACE] == float("inf")


def weighted(method: str, zoo: dict[str, Path], weights: tuple[float, ...], **more: Any) -> Any:
    definition = METHODS[method]
    entries = []
    for name, weight in zip("abc"[: most(definition)], weights):
        settings: dict[str, Any] = {"weight": weight}
        if definition.statistics != "none":
            settings["statistics"] = str(zoo[f"{name}.{definition.statistics}"])
        entries.append({"model": str(zoo[name]), "parameters": settings})
    base = {"base_model": str(zoo["base"])} if method in WITH_A_BASE else {}
    return parse_config({"merge_method": method, "models": entries, "parameters": more, **base})


SWITCHES = [
    (name, switch)
    for name in METHOD_NAMES
    for switch in ("normalize", "normalize_weights")
    if METHODS[name].parameter(switch)
]


@pytest.mark.parametrize(("method", "switch"), SWITCHES)
def test_weights_that_sum_to_0_are_refused_under_normalisation(
    method: str, switch: str, zoo: dict[str, Path], tmp_path: Path
) -> None:
    weights = (1, -1, 0)
    with pytest.raises((ConfigError, MergeError), match="sum to 0"):
        make_plan(weighted(method, zoo, weights, **{switch: True}))
    plan = make_plan(weighted(method, zoo, weights, **{switch: False}))
    assert execute(plan, tmp_path / "out").nonfinite == {}


@pytest.mark.parametrize("method", WITH_STATISTICS)
def test_statistics_without_any_weight_are_refused(method: str, zoo: dict[str, Path]) -> None:
    with pytest.raises((ConfigError, MergeError), match="every weight is 0"):
        make_plan(weighted(method, zoo, (0, 0, 0)))


def test_nuslerp_of_weights_that_sum_to_0_goes_halfway(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    found = [
        load_file(execute(make_plan(weighted("nuslerp", zoo, weights)), out).path / WEIGHTS)
        for weights, out in (((1, -1), tmp_path / "none"), ((1, 1), tmp_path / "half"))
    ]
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_the_command_refuses_and_allows(zoo: dict[str, Path], tmp_path: Path) -> None:
    config = tmp_path / "merge.yaml"
    models = [str(zoo[name]) for name in ("a", "b-bad")]
    config.write_text(json.dumps({"merge_method": "linear", "models": models}))
    words = [sys.executable, "-m", "modelglue.cli", "merge", str(config), str(tmp_path / "out")]
    refuses = subprocess.run(words, capture_output=True, text=True, check=False)
    assert refuses.returncode == 2
    assert f"{NAME}: b-bad holds" in " ".join(refuses.stderr.split())
    assert os.listdir(tmp_path) == ["merge.yaml"]
    words += ["--allow-nonfinite", "--json"]
    allows = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(allows.stdout)["nonfinite"] == {NAME: 1}
