"""Candidates merged into a live module: the same bits as the executor writes to disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import NonFiniteTensor, NotMergeable, ShapeMismatch
from modelglue.merge.config.schema import parse_config
from modelglue.merge.engine.held import Held
from modelglue.merge.engine.reading import TensorReader, Workspace
from modelglue.merge.engine.resident import Resident
from modelglue.merge.engine.stream import execute
from modelglue.merge.plan.merge_plan import MergePlan, make_plan, plan_of

GROUPED = [{"filter": "layers.0.", "value": 0.8}, {"filter": "layers.1.", "value": 0.2}]
UP = "model.layers.0.mlp.up_proj.weight"


def config(method: str, models: list[Path], base: Path, **parameters: Any) -> dict[str, Any]:
    """Every model with numbers of its own, other ones in the first layers."""
    per_model = {"weight": [0.5, 0.2, 0.4], **parameters.pop("own", {})}
    entries = [
        {
            "model": str(path),
            "parameters": {
                name: [*GROUPED, {"value": values[i]}] for name, values in per_model.items()
            },
        }
        for i, path in enumerate(models)
    ]
    return {
        "merge_method": method,
        "models": entries,
        "base_model": str(base),
        "parameters": parameters,
    }


def slerp(models: list[Path], base: Path) -> dict[str, Any]:
    t = [*GROUPED, {"value": 0.4}]
    return {
        "merge_method": "slerp",
        "models": [str(models[0])],
        "base_model": str(base),
        "parameters": {"t": t},
    }


def candidate(method: str, models: list[Path], base: Path) -> dict[str, Any]:
    if method == "slerp":
        return slerp(models, base)
    density = {"own": {"weight": [0.5, 0.2, 0.4], "density": [0.3, 0.7, 0.55]}}
    if method in ("linear", "task_arithmetic"):
        return config(method, models, base)
    return config(method, models, base, **{"lambda": 0.8}, **density)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"], scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and four fine-tunes, heads tied in bfloat16 and not in float32."""
    root = tmp_path_factory.mktemp("family")
    tied = request.param == torch.bfloat16
    base = tiny.save_model(root / "base", dtype=request.param, tie_word_embeddings=tied)
    tuned = [tiny.save_variant(base, root / f"ft{i}", seed=i, scale=0.01) for i in range(1, 5)]
    return [base, *tuned]


def opened(paths: list[Path]) -> dict[str, Checkpoint]:
    return {str(path): Checkpoint.open(path) for path in paths}


def over(checkpoints: dict[str, Checkpoint], value: dict[str, Any]) -> MergePlan:
    """A plan over checkpoints that are open."""
    return plan_of(parse_config(value), checkpoints)


def everything(paths: list[Path], checkpoints: dict[str, Checkpoint]) -> MergePlan:
    """A plan that names all of them."""
    return over(checkpoints, {"merge_method": "linear", "models": [str(path) for path in paths]})


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto")


def assert_holds(module: torch.nn.Module, written: Path, *, loaded: bool = True) -> None:
    """The module is the checkpoint, as transformers would load it, or as it is stored."""
    if not loaded:
        stored = load_file(written / "model.safetensors")
        state = module.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
        return
    expected = load(written).state_dict()
    state = module.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


METHODS = ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "slerp"]


@pytest.mark.parametrize("memory", [None, 0], ids=["held", "streamed"])
@pytest.mark.parametrize("method", METHODS)
def test_any_plan_over_the_models_gives_the_bits_that_are_written(
    method: str, memory: int | None, family: list[Path], tmp_path: Path
) -> None:
    base, *models = family
    checkpoints = opened(family)
    resident = Resident(everything(family, checkpoints), load(base), memory=memory)
    assert (resident.nbytes == 0) == (memory == 0)
    # Rows that lie next to each other, rows at even distances, and rows that do neither.
    for number, chosen in enumerate([[0, 1, 2], [0, 2], [0, 1, 3]]):
        plan = over(checkpoints, candidate(method, [models[i] for i in chosen], base))
        resident.load(plan)
        out = execute(plan, tmp_path / f"out{number}").path
        assert_holds(resident.module, out, loaded=number == 0 and method == "linear")


def test_chunks_of_a_large_tensor_are_merged_by_threads_alike(
    family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("merge.chunk", "merge.engine.resident", "merge.engine.stream"):
        monkeypatch.setattr(f"modelglue.{place}.CHUNK", 1000)
    monkeypatch.setattr("modelglue.merge.engine.resident._SMALL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    checkpoints = opened(family)
    resident = Resident(everything(family, checkpoints), load(family[0]))
    for number, method in enumerate(["linear", "ties", "dare_ties"]):
        plan = over(checkpoints, candidate(method, family[1:4], family[0]))
        resident.load(plan)
        out = execute(plan, tmp_path / f"out{number}").path
        assert_holds(resident.module, out, loaded=False)


def test_no_more_is_held_than_the_budget_allows(family: list[Path], tmp_path: Path) -> None:
    checkpoints = opened(family)
    plan = everything(family, checkpoints)
    whole = sum(checkpoint.nbytes for checkpoint in checkpoints.values())
    assert Resident(plan, load(family[0])).nbytes == whole
    budget = whole // 2
    resident = Resident(plan, load(family[0]), memory=budget)
    largest = 5 * max(spec.nbytes for spec in checkpoints[str(family[0])].tensors.values())
    assert budget - largest < resident.nbytes <= budget
    plan = over(checkpoints, candidate("ties", family[1:4], family[0]))
    resident.load(plan)
    assert_holds(resident.module, execute(plan, tmp_path / "out").path)


def test_a_stream_holds_little_beside_the_module(tmp_path: Path) -> None:
    import tracemalloc

    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2}
    base = tiny.save_model(tmp_path / "base", **sizes)
    models = [tiny.save_variant(base, tmp_path / f"m{i}", seed=i) for i in range(4)]
    checkpoints = opened(models)
    peaks = {}
    for memory in (0, None):
        module = load(base)
        tracemalloc.start()  # which numpy's buffers are told to
        resident = Resident(everything(models, checkpoints), module, memory=memory)
        resident.load()
        peaks[memory] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    whole = sum(checkpoint.nbytes for checkpoint in checkpoints.values())
    assert peaks[None] > whole
    assert peaks[0] < whole / 2


def test_the_plan_of_the_start_is_merged_where_none_is_given(
    llamas: list[Path], tmp_path: Path
) -> None:
    plan = make_plan(parse_config(candidate("dare_ties", llamas[1:], llamas[0])))
    resident = Resident(plan, load(llamas[0]))
    resident.load()
    assert_holds(resident.module, execute(plan, tmp_path / "out").path)


def test_a_head_is_tied_and_untied_as_the_plan_has_it(tmp_path: Path) -> None:
    tied, free = (
        tiny.save_model(tmp_path / name, seed=i, tie_word_embeddings=name == "tied")
        for i, name in enumerate(["tied", "free"])
    )
    other = tiny.save_variant(tied, tmp_path / "other", seed=5)
    checkpoints = opened([tied, free, other])
    for start in (tied, free):
        resident = Resident(everything([start], checkpoints), load(start))
        # The head is that of the last merge, whatever came before.
        for number, models in enumerate([[tied, free], [tied, other], [free, tied]]):
            plan = everything(models, checkpoints)
            resident.load(plan)
            expected = load(execute(plan, tmp_path / f"{start.name}{number}").path)
            state = resident.module.state_dict()
            for name, tensor in expected.state_dict().items():
                assert torch.equal(state[name], tensor), (start.name, number, name)


def test_layers_in_another_order_go_into_a_module_of_another_depth(
    llamas: list[Path], tmp_path: Path
) -> None:
    checkpoints = opened(llamas)
    first, second = llamas[1:3]
    pieces = [(first, 0, 3), (second, 1, 4), (first, 3, 4)]
    slices = [{"sources": [{"model": str(m), "layer_range": [a, b]}]} for m, a, b in pieces]
    plan = over(checkpoints, {"merge_method": "passthrough", "slices": slices})
    out = execute(plan, tmp_path / "out").path
    deeper = load(out)
    with torch.no_grad():
        for parameter in deeper.parameters():
            parameter.zero_()
    shallow = Resident(everything(llamas, checkpoints), load(llamas[0]))
    with pytest.raises(NotMergeable, match=r"layers\.4"):
        shallow.load(plan)
    resident = Resident(plan, deeper, beside=shallow)
    resident.load()
    assert resident.nbytes == shallow.nbytes
    assert_holds(deeper, out)


def test_a_module_that_the_plan_leaves_in_part_is_refused(llamas: list[Path]) -> None:
    checkpoints = opened(llamas)
    piece = {"model": str(llamas[0]), "layer_range": [0, 2]}
    plan = over(checkpoints, {"merge_method": "passthrough", "slices": [{"sources": [piece]}]})
    resident = Resident(everything(llamas, checkpoints), load(llamas[0]))
    with pytest.raises(NotMergeable, match=r"layers\.2.*the merge does not make it"):
        resident.load(plan)


def test_a_module_of_other_shapes_is_refused(llamas: list[Path], tmp_path: Path) -> None:
    wide = load(tiny.save_model(tmp_path / "wide", intermediate_size=72))
    with pytest.raises(ShapeMismatch, match=r"mlp.*\[32, 64\], the module \[32, 72\]"):
        Resident(make_plan(parse_config(candidate("ties", llamas[1:], llamas[0]))), wide).load()


def test_names_that_a_module_lacks_are_refused(llamas: list[Path], tmp_path: Path) -> None:
    other = load(tiny.save_model(tmp_path / "other", model_type="gpt_neox"))
    with pytest.raises(NotMergeable, match="the checkpoint has it, the loaded GPTNeoX"):
        Resident(make_plan(parse_config(candidate("ties", llamas[1:], llamas[0]))), other)


def test_the_first_tensor_that_is_not_finite_is_named(llamas: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    tiny.save_variant(llamas[0], broken, seed=3)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("inf")
    tensors[UP][:2, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    checkpoints = opened([*llamas, broken])
    resident = Resident(everything([*llamas, broken], checkpoints), load(llamas[0]))
    for _ in range(2):
        with pytest.raises(NonFiniteTensor, match=r"layers\.0.*up_proj.*: 2 entries of the merge"):
            resident.load()
    resident.load(everything(llamas, checkpoints))  # and goes on with others


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models whose experts transformers joins as it loads them."""
    root = tmp_path_factory.mktemp("experts")
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 2}
    base = tiny.save_model(root / "m0", model_type="mixtral", **sizes)
    return [base, *(tiny.save_variant(base, root / f"m{i}", seed=i) for i in (1, 2, 3))]


@pytest.mark.parametrize("memory", [None, 0], ids=["held", "streamed"])
@pytest.mark.parametrize("method", METHODS)
def test_parts_of_joined_tensors_are_merged_as_they_are_written(
    method: str, memory: int | None, experts: list[Path], tmp_path: Path
) -> None:
    checkpoints = opened(experts)
    resident = Resident(everything(experts, checkpoints), load(experts[0]), memory=memory)
    assert (resident.nbytes == 0) == (memory == 0)
    for number, models in enumerate([experts[1:3], experts[2:]]):
        plan = over(checkpoints, candidate(method, models, experts[0]))
        resident.load(plan)
        assert_holds(resident.module, execute(plan, tmp_path / f"out{number}").path)


def test_a_zoo_of_joined_tensors_is_held_as_far_as_the_budget_goes(experts: list[Path]) -> None:
    checkpoints = opened(experts)
    whole = sum(checkpoint.nbytes for checkpoint in checkpoints.values())
    plan = everything(experts, checkpoints)
    assert Resident(plan, load(experts[0])).nbytes == whole
    assert 0 < Resident(plan, load(experts[0]), memory=whole // 2).nbytes <= whole // 2


def test_parts_of_a_joined_tensor_may_have_numbers_of_their_own(
    experts: list[Path], tmp_path: Path
) -> None:
    checkpoints = opened(experts)
    resident = Resident(everything(experts, checkpoints), load(experts[0]))
    entries = [
        {"model": str(path), "parameters": {"weight": [{"filter": "w2", "value": i}, {"value": 1}]}}
        for i, path in enumerate(experts, start=1)
    ]
    plan = over(checkpoints, {"merge_method": "linear", "models": entries})
    resident.load(plan)
    assert_holds(resident.module, execute(plan, tmp_path / "out").path)


def test_layers_with_joined_tensors_go_into_a_module_of_another_depth(
    experts: list[Path], tmp_path: Path
) -> None:
    checkpoints = opened(experts)
    pieces = [(experts[0], 0, 2), (experts[1], 1, 2)]
    slices = [{"sources": [{"model": str(m), "layer_range": [a, b]}]} for m, a, b in pieces]
    plan = over(checkpoints, {"merge_method": "passthrough", "slices": slices})
    out = execute(plan, tmp_path / "out").path
    deeper = AutoModelForCausalLM.from_config(load(out).config)
    shallow = Resident(everything(experts, checkpoints), load(experts[0]))
    Resident(plan, deeper, beside=shallow).load()
    assert_holds(deeper, out)


def test_rows_that_do_not_lie_together_are_refused_with_their_name(
    experts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layout in which gates and ups take turns: no part of it is a view."""
    from transformers import core_model_loading

    def interleaved(module: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        parts = revert(module, state)
        name, tensor = next(iter(state.items()))
        if name.endswith("gate_up_proj"):
            for part in parts:
                parts[part] = tensor[0, "w3" in part :: 2]
        return parts

    revert = core_model_loading.revert_weight_conversion
    monkeypatch.setattr(core_model_loading, "revert_weight_conversion", interleaved)
    plan = everything(experts, opened(experts))
    with pytest.raises(
        NotMergeable, match=r"experts\.0\.w1\.weight: .* MixtralForCausalLM does not"
    ):
        Resident(plan, load(experts[0]))


@pytest.mark.parametrize("memory", [None, 0], ids=["held", "streamed"])
def test_a_device_sees_the_numbers_that_the_processor_does(
    memory: int | None, family: list[Path]
) -> None:
    checkpoints = opened(family)
    base, *models = family
    held = Held(checkpoints.values(), memory=memory, device="cpu")
    for chosen in ([0, 1, 2], [0, 1, 3]):
        plan = over(checkpoints, candidate("ties", [models[i] for i in chosen], base))
        tensor = next(tensor for tensor in plan.tensors if tensor.name == UP)
        on_device = TensorReader(plan, tensor, Workspace("cpu"), held=held)
        here = TensorReader(plan, tensor, Workspace())
        for read in (lambda reader: reader.read(64, 192), lambda reader: reader.sample(100)):
            theirs, ours = read(on_device), read(here)
            assert theirs.models.dtype == torch.float32
            assert np.array_equal(theirs.models.numpy(), ours.fp32)
            assert np.array_equal(theirs.base.numpy(), ours.fp32_base)


@pytest.mark.parametrize("memory", [None, 0], ids=["held", "streamed"])
def test_a_module_on_a_device_is_merged_there(
    memory: int | None, family: list[Path], tmp_path: Path
) -> None:
    """Of torch's own sort, as no other is in every machine."""
    checkpoints = opened(family)
    base, *models = family
    module = load(base)
    resident = Resident(everything(family, checkpoints), module, memory=0)
    resident._device, resident._workspaces = "cpu", [Workspace("cpu")]
    resident._held = Held(checkpoints.values(), memory=memory, device="cpu")
    for number, chosen in enumerate([[0, 1, 2], [0, 1, 3]]):
        for method in ("linear", "dare_ties"):
            plan = over(checkpoints, candidate(method, [models[i] for i in chosen], base))
            resident.load(plan)
            out = execute(plan, tmp_path / f"{method}{number}", device="cpu").path
            assert_holds(module, out, loaded=False)
    if memory is None:
        first = checkpoints[str(models[0])]
        resident._held.array(first, UP)[3:5] = float("inf")
        with pytest.raises(NonFiniteTensor, match="2 entries"):
            resident.load(over(checkpoints, {"merge_method": "linear", "models": [first.ref]}))
