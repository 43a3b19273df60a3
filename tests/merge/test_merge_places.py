"""A module on several devices: which tensor is merged and held where, and with what bits.

There are no GPUs here: devices are names of the CPU, or pretended.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.evaluate.devices import dispatched
from modelglue.merge.config.schema import parse_config
from modelglue.merge.engine.places import Places, places_of
from modelglue.merge.engine.resident import Resident
from modelglue.merge.engine.stream import execute
from modelglue.merge.plan.merge_plan import MergePlan, plan_of
from pretended import Pretended, place, stand

SECOND = "cpu:0"
UPPER = ("model.layers.2", "model.layers.3", "model.norm", "lm_head")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("family")
    base = tiny.save_model(root / "base", dtype=torch.bfloat16)
    return [base, *(tiny.save_variant(base, root / f"ft{i}", seed=i, scale=0.01) for i in (1, 2))]


@pytest.fixture
def checkpoints(family: list[Path]) -> dict[str, Checkpoint]:
    return {str(path): Checkpoint.open(path) for path in family}


def merged(
    checkpoints: dict[str, Checkpoint], method: str, *, weight: float = 0.5, **parameters: Any
) -> MergePlan:
    base, *models = checkpoints
    value = {
        "merge_method": method,
        "models": [{"model": model, "parameters": {"weight": weight}} for model in models],
        "parameters": parameters,
    }
    if method != "linear":
        value |= {"base_model": base}
    return plan_of(parse_config(value), checkpoints)


def everything(checkpoints: dict[str, Checkpoint]) -> MergePlan:
    return plan_of(
        parse_config({"merge_method": "linear", "models": list(checkpoints)}), checkpoints
    )


def places(module: torch.nn.Module, *, room: tuple[int, int] = (1 << 30, 1 << 30)) -> Places:
    stand = {name: SECOND if name.startswith(UPPER) else "cpu" for name in module.state_dict()}
    return Places("cpu", stand, dict(zip(("cpu", SECOND), room, strict=True)))


@pytest.fixture
def resident(
    family: list[Path], checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> Any:
    def make(**options: Any) -> Resident:
        module = AutoModelForCausalLM.from_pretrained(family[0], dtype="auto")
        found = places(module, **options)
        monkeypatch.setattr(
            "modelglue.merge.engine.resident.places_of", lambda targets, memory: found
        )
        return Resident(everything(checkpoints), module)

    return make


def test_a_tensor_is_merged_at_its_parameter_unless_the_whole_model_is_measured(
    checkpoints: dict[str, Checkpoint],
) -> None:
    stand = Places("cuda:0", {"model.norm.weight": "cuda:1", "lm_head.weight": "cuda:1"})

    def at(plan: MergePlan) -> dict[str, str | None]:
        return {tensor.name: stand.merges(tensor) for tensor in plan.tensors}

    local = at(merged(checkpoints, "ties", density=0.5))
    assert local["model.norm.weight"] == local["lm_head.weight"] == "cuda:1"
    assert local["model.embed_tokens.weight"] == "cuda:0"  # whatever is not told is on the first
    assert set(at(merged(checkpoints, "ties", density=0.5, trim="global")).values()) == {"cuda:0"}
    assert stand.of("lm_head.weight") == "cuda:1"  # where it is held all the same


def test_a_module_on_one_device_has_no_others() -> None:
    assert places_of({"a": torch.empty(2), "b": torch.empty(3)}) == Places(None)
    assert places_of({"a": torch.empty(2, device="meta")}) == Places("meta")


def test_each_device_holds_half_of_what_two_modules_leave_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = {"cpu": 1000, "meta": 100}
    monkeypatch.setattr("modelglue.merge.engine.places.memory_of", memory.__getitem__)
    targets = {"a": torch.empty(50), "b": torch.empty(10, device="meta"), "c": torch.empty(25)}
    found = places_of(targets)
    assert (found.first, found.others) == ("cpu", {"a": "cpu", "b": "meta", "c": "cpu"})
    assert found.room == {"cpu": (1000 - 2 * 300) // 2, "meta": (100 - 2 * 40) // 2}
    assert places_of({**targets, "d": torch.empty(500)}).room["cpu"] == 0
    assert places_of(targets, memory=7).room == {"cpu": 7, "meta": 7}


METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "dare_ties": {"density": 0.5},
    "ties": {"density": 0.5, "trim": "global"},
}


@pytest.mark.parametrize("room", [(1 << 30, 1 << 30), (0, 0)], ids=["held", "streamed"])
def test_any_devices_give_the_bits_that_one_gives(
    resident: Any, room: tuple[int, int], checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    made = resident(room=room)
    assert (made.nbytes == 0) == (room[0] == 0)
    for method, parameters in METHODS.items():
        plan = merged(checkpoints, method, **parameters)
        made.load(plan)
        out = execute(plan, tmp_path / method, device="cpu").path
        stored, state = load_file(out / "model.safetensors"), made.module.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    assert set(made._elsewhere) == {SECOND}


def test_each_device_holds_what_its_own_memory_allows(
    resident: Any, checkpoints: dict[str, Checkpoint]
) -> None:
    made = resident(room=(0, 1 << 30))
    upper = sum(
        spec.nbytes
        for checkpoint in checkpoints.values()
        for name, spec in checkpoint.tensors.items()
        if name.startswith(UPPER)
    )
    assert made.nbytes == upper
    first = next(iter(checkpoints.values()))
    assert made._held.array(first, "lm_head.weight") is not None
    assert made._held.array(first, "model.embed_tokens.weight") is None


@pytest.mark.parametrize("memory", [None, 0], ids=["held", "streamed"])
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_a_module_on_two_devices_is_merged_to_the_bits_that_are_written(
    tied: bool, memory: int | None, tmp_path: Path
) -> None:
    """On devices that are pretended, where tensors of two never meet."""
    base = tiny.save_model(tmp_path / "base", dtype=torch.bfloat16, tie_word_embeddings=tied)
    models = [tiny.save_variant(base, tmp_path / f"ft{i}", seed=i, scale=0.01) for i in (1, 2)]
    checkpoints = {str(path): Checkpoint.open(path) for path in (base, *models)}
    module = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    stand(module, "cpu:0")
    for name in UPPER[:3]:
        stand(module.get_submodule(name), "cpu:1")
    for number, (method, parameters) in enumerate(METHODS.items()):
        plan = merged(checkpoints, method, **parameters)
        with Pretended():
            if not number:
                made = Resident(everything(checkpoints), module, memory=memory)
            made.load(plan)
            assert made._places.others["model.norm.weight"] == "cpu:1"
        out = execute(plan, tmp_path / method, device="cpu").path
        stored, state = load_file(out / "model.safetensors"), module.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    assert (made.nbytes == 0) == (memory == 0)
    with Pretended():
        for name, parameter in module.named_parameters():
            held = made._held.array(checkpoints[str(base)], name)
            assert (held is None) == (memory == 0)
            assert held is None or place(held) == place(parameter)


def test_a_dispatched_module_is_merged_into_as_one_in_one_piece(
    family: list[Path], checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """What its hooks hold are the parameters themselves, no copies of them."""
    module = AutoModelForCausalLM.from_pretrained(family[0], dtype="auto").eval()
    names = ["model.embed_tokens", "model.rotary_emb", "model.layers", "model.norm", "lm_head"]
    made = Resident(everything(checkpoints), dispatched(module, dict.fromkeys(names, "cpu")))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = module(ids).logits
        plan = merged(checkpoints, "ties", density=0.5)
        made.load(plan)
        alone = AutoModelForCausalLM.from_pretrained(
            execute(plan, tmp_path / "out").path, dtype="auto"
        )
        assert torch.equal(module(ids).logits, alone(ids).logits)
        assert not torch.equal(module(ids).logits, before)
