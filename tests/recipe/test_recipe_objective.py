"""Candidates of a family, merged in memory and scored: what would be written, or why not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import EvaluationError, NotMergeable
from modelglue.evaluate.file_task import FileTask
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.merge.engine.stream import execute
from modelglue.recipe import objective
from modelglue.recipe.formula import Formula
from modelglue.recipe.objective import Family, Template
from modelglue.search.problem import Dials

IDS = torch.arange(4, 40)[None]


def make_family(
    base: Path, models: dict[str, Path], method: str = "linear", **settings: Any
) -> Family:
    memory, is_base = settings.pop("memory", None), settings.pop("is_base", True)
    return Family(
        {name: Checkpoint.open(path) for name, path in models.items()},
        references={name: str(path) for name, path in models.items()},
        template=Template(Checkpoint.open(base), str(base), base, is_base=is_base),
        formula=Formula(method, settings),
        folder_of=lambda name: models[name],
        load=HuggingFaceModel.load,
        memory=memory,
    )


@pytest.fixture
def models(llamas: list[Path]) -> dict[str, Path]:
    return dict(zip("abc", llamas[1:], strict=True))


@pytest.fixture
def task(write_jsonl: Callable[[str, list[dict[str, Any]]], Path]) -> FileTask:
    items = [{"text": f"number {i} is", "reference": f" {i * 7}"} for i in range(6)]
    path = write_jsonl("items.jsonl", [{"id": str(i), **item} for i, item in enumerate(items)])
    mapping = {"name": "story", "kind": "text", "search": str(path), "report": str(path)}
    return FileTask.from_mapping(mapping, root=Path())


def logits(model: HuggingFaceModel) -> torch.Tensor:
    with torch.no_grad():
        return model.module(IDS).logits[0]


GROUPED = {"a [layers 0-1]": 0.2, "a [layers 2-3]": 0.9, "a [rest]": 0.5}
GROUPED |= {"b [layers 0-1]": 0.8, "b [layers 2-3]": 0.1, "b [rest]": 0.5}
DENSITIES = {"density of a": 0.3, "density of b": 0.8}
FLOW = {
    f"place {i} of {name} [layer {layer}]": 1.0
    for i, (name, layer) in enumerate([("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 3)])
}
CANDIDATES: dict[str, list[dict[str, float]]] = {
    "linear": [GROUPED, {"a": 0.3, "c": 0.7}, FLOW, GROUPED],
    "ties": [GROUPED | DENSITIES | {"lambda of *": 1.3}, {"a": 0.3, "c": 0.7}],
    "dare_ties": [GROUPED | DENSITIES, {"a": 0.3, "c": 0.7, "density of c": 0.2}],
    "slerp": [{"b": 0.5, "a": 0.5, "t of *": 0.3}, {"b": 0.4, "c": 0.6}],
}


@pytest.mark.parametrize("memory", [None, 0], ids=["held", "streamed"])
@pytest.mark.parametrize("method", list(CANDIDATES))
def test_what_is_scored_is_what_is_written(
    method: str,
    memory: int | None,
    llamas: list[Path],
    models: dict[str, Path],
    task: FileTask,
    tmp_path: Path,
) -> None:
    family = make_family(llamas[0], models, method, memory=memory)
    for number, candidate in enumerate(CANDIDATES[method]):
        trial = family.evaluate(candidate, [task], None, None)
        out = execute(family.plan(candidate), tmp_path / f"out{number}").path
        written = HuggingFaceModel.load(out)
        assert torch.equal(logits(family.model(candidate)), logits(written))
        assert trial.scores is not None
        assert trial.scores.tasks[0] == task.evaluate(written, "search")


def test_a_part_of_the_items_is_scored_as_it_is_among_all(
    llamas: list[Path], models: dict[str, Path], task: FileTask
) -> None:
    family = make_family(llamas[0], models)
    whole = family.evaluate(GROUPED, [task], None, None).scores
    part = family.evaluate(GROUPED, [task], {"story": (1, 4)}, None).scores
    assert whole is not None
    assert part is not None
    assert part["story"].items == ("1", "4")
    assert part["story"].values == pytest.approx([whole["story"].values[i] for i in (1, 4)])


def test_a_single_model_is_scored_as_it_lies(llamas: list[Path], models: dict[str, Path]) -> None:
    family = make_family(llamas[0], models, "task_arithmetic")
    for name in ("b", "a"):
        assert torch.equal(
            logits(family.model({name: 1.0})), logits(HuggingFaceModel.load(models[name]))
        )
    # A part of what it has learned is a merge with the base.
    assert not torch.allclose(
        logits(family.model({"a": 0.5})), logits(HuggingFaceModel.load(models["a"])), atol=1e-3
    )


def test_a_method_without_its_base_has_single_models_alone(
    llamas: list[Path], models: dict[str, Path]
) -> None:
    family = make_family(llamas[0], models, "ties", is_base=False)
    assert family.most == 1
    assert torch.equal(
        logits(family.model({"a": 0.4, "density of a": 0.5})),
        logits(HuggingFaceModel.load(models["a"])),
    )


def broken(source: Path, path: Path, name: str, value: float) -> Path:
    tiny.save_variant(source, path, seed=1)
    tensors = load_file(path / "model.safetensors")
    tensors[name][0] = value
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_what_a_candidate_is_to_blame_for_is_a_failed_trial(
    llamas: list[Path], models: dict[str, Path], task: FileTask, tmp_path: Path
) -> None:
    norm = "model.norm.weight"
    bad = broken(llamas[0], tmp_path / "bad", norm, float("nan"))
    # Each is finite; what follows from their mean is not.
    large = broken(llamas[0], tmp_path / "large", norm, 3e38)
    family = make_family(llamas[0], {**models, "bad": bad, "large": large})
    for candidate, reason in (
        ({"a": 0.5, "bad": 0.5}, r"model.norm.weight: 1 entries of the merge are NaN"),
        ({"bad": 1.0}, "not finite"),
        ({"large": 0.9, "a": 0.1}, "not finite"),
        ({"a": 0.5, "b": -0.5}, "sum to 0"),
        ({"a [rest]": 0.5, "b [rest]": -0.5, "a [layers 0-3]": 1.0}, "sum to 0"),
        ({"a": 0.0}, "every weight is 0"),
    ):
        trial = family.evaluate(candidate, [task], None, None)
        assert trial.scores is None
        assert reason in (trial.failure or "")
        assert family.evaluate(candidate, [task], None, None) == trial
    assert family.evaluate({"a": 0.5, "b": 0.5}, [task], None, None).scores is not None


def test_what_it_is_not_to_blame_for_is_raised(
    llamas: list[Path],
    models: dict[str, Path],
    task: FileTask,
    write_jsonl: Callable[[str, list[dict[str, Any]]], Path],
) -> None:
    family = make_family(llamas[0], models)
    path = write_jsonl("long.jsonl", [{"id": "0", "text": "x", "reference": "y" * 900}])
    mapping = {"name": "long", "kind": "text", "search": str(path), "report": str(path)}
    with pytest.raises(EvaluationError, match="tokens"):
        family.evaluate(GROUPED, [FileTask.from_mapping(mapping, root=Path())], None, None)
    with pytest.raises(ValueError, match="linear has no density"):
        family.evaluate({"a": 0.5, "b": 0.5, "density of a": 0.5}, [task], None, None)
    with pytest.raises(NotMergeable, match="asks for"):
        family.evaluate({"place 0 of a [layer 9]": 1.0}, [task], None, None)


def test_a_plan_is_matched_once_for_all_candidates_of_the_same_models(
    llamas: list[Path], models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = make_family(llamas[0], models, "ties")
    made = []
    whole = objective.plan_of
    monkeypatch.setattr(objective, "plan_of", lambda *a: made.append(a) or whole(*a))
    plans = [
        family.plan(candidate)
        for candidate in (GROUPED, {"a": 0.2, "b": 0.8}, GROUPED | DENSITIES, {"b": 0.5, "c": 0.5})
    ]
    assert len(made) == 2
    for plan in plans:
        opened = {str(path): checkpoint for path, checkpoint in zip(models, plan.models)}
        anew = whole(plan.config, {m.ref: m for m in (*plan.models, plan.base) if m} | opened)
        assert anew.tensors == plan.tensors
        assert (anew.output_config, anew.notes) == (plan.output_config, plan.notes)


def by_hand(base: Path, models: dict[str, Path], flow: dict[str, float]) -> torch.Tensor:
    """The layers put into one module by hand, what enters each scaled by a hook."""
    loaded = {name: HuggingFaceModel.load(path).module for name, path in models.items()}
    placed = [
        (name.split()[3], int(name.split()[-1].rstrip("]")), scale) for name, scale in flow.items()
    ]
    module = HuggingFaceModel.load(models[placed[0][0]]).module
    last = loaded[placed[-1][0]]
    layers = []
    for index, (name, layer, scale) in enumerate(placed):
        own = HuggingFaceModel.load(models[name]).module.model.layers[layer]
        own.self_attn.layer_idx = index
        own.register_forward_pre_hook(
            lambda _, args, kwargs, scale=scale: ((args[0] * scale, *args[1:]), kwargs),
            with_kwargs=True,
        )
        layers.append(own)
    module.model.layers = torch.nn.ModuleList(layers)
    module.model.norm, module.lm_head = last.model.norm, last.lm_head
    module.config.num_hidden_layers = len(layers)
    with torch.no_grad():
        return module(IDS, use_cache=False).logits[0]


def test_layers_in_a_new_order_are_those_layers(
    llamas: list[Path], models: dict[str, Path]
) -> None:
    family = make_family(llamas[0], models)
    for flow in (FLOW, dict(list(FLOW.items())[:2]), FLOW):
        model = family.model(flow)
        assert model.module.config.num_hidden_layers == len(flow)
        assert torch.allclose(logits(model), by_hand(llamas[0], models, flow), atol=1e-6)
        texts = model.generate(["hello"], max_new_tokens=3)  # with a cache of that depth
        assert texts == family.model(flow).generate(["hello"], max_new_tokens=3)


def test_the_scale_of_what_enters_a_layer_is_written_into_stock_weights(tmp_path: Path) -> None:
    """Up to the ε of the norms, beside which these embeddings are large."""
    base = tiny.save_model(tmp_path / "base", initializer_range=0.5, rms_norm_eps=1e-9)
    models = {n: tiny.save_variant(base, tmp_path / n, seed=i) for i, n in enumerate("ab")}
    flow = dict(zip(FLOW, [1.0, 0.6, 1.7, 0.9, 1.2], strict=True))
    family = make_family(base, models)
    found = logits(family.model(flow))
    assert torch.allclose(found, by_hand(base, models, flow), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(found, logits(family.model(FLOW)), atol=0.1)


def test_a_module_of_another_depth_is_built_once(
    llamas: list[Path], models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = make_family(llamas[0], models)
    built = []
    whole = objective.built_like
    monkeypatch.setattr(objective, "built_like", lambda *a: built.append(a) or whole(*a))
    items = list(FLOW.items())
    state = torch.random.get_rng_state()
    for depth in (5, 2, 4, 5, 2):
        assert family.model(dict(items[:depth])).encoder is family.model(FLOW).encoder
    assert len(built) == 2  # four layers are the template's
    assert torch.equal(torch.random.get_rng_state(), state)


def test_similarity_of_a_candidate_is_that_of_its_checkpoint(
    llamas: list[Path], models: dict[str, Path], tmp_path: Path
) -> None:
    def matrices(path: Path) -> list[torch.Tensor]:
        tensors = load_file(path / "model.safetensors")
        return [tensors[name] for name in sorted(tensors) if "_proj" in name]

    for memory in (None, 0):
        family = make_family(llamas[0], models, memory=memory)
        out = execute(family.plan(GROUPED), tmp_path / f"out{memory}").path
        for candidate, path in ((GROUPED, out), ({"a": 1.0}, models["a"])):
            expected = [
                torch.cosine_similarity(one, other, dim=0).mean()
                for one, other in zip(matrices(path), matrices(models["c"]), strict=True)
            ]
            found = family.similarity(candidate, "c")
            assert found == pytest.approx(float(torch.stack(expected).mean()), abs=1e-6)
        assert family.similarity({"c": 1.0}, "c") == pytest.approx(1.0)
        assert family.similarity(FLOW, "c") > 0


def test_a_family_says_what_can_be_turned(llamas: list[Path], models: dict[str, Path]) -> None:
    family = make_family(llamas[0], models)
    assert family.dials() == Dials(layers=4)
    assert family.dials(group_size=2).groups == ("layers 0-1", "layers 2-3", "rest")
    assert len(family.dials(group_size=2, roles=True).groups) == 5


def test_a_base_among_the_models_has_no_weight_to_search(
    llamas: list[Path], models: dict[str, Path]
) -> None:
    everyone = {"base": llamas[0], **models}
    assert make_family(llamas[0], everyone, "task_arithmetic").dials().idle == ("base",)
    assert make_family(llamas[0], models, "task_arithmetic").dials().idle == ()
    assert make_family(llamas[0], everyone, "linear").dials().idle == ()
