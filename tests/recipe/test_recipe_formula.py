"""What a candidate means: its merge, its one spelling, its words, and what may be turned."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import NotMergeable, UnusableValues
from modelglue.merge.config.schema import MergeConfig, load_config
from modelglue.merge.engine.stream import execute
from modelglue.merge.method import METHODS
from modelglue.merge.plan.merge_plan import MergePlan, make_plan
from modelglue.recipe.formula import Formula
from modelglue.recipe.numbers import mean_weights
from modelglue.search.problem import Dial
from modelglue.search.space import Space

NAMES = ("a", "b", "c")
GROUPS = ("layers 0-1", "layers 2-3", "rest")


@pytest.fixture(scope="module")
def references(llamas: list[Path]) -> dict[str, str]:
    return {name: str(path) for name, path in zip(NAMES, llamas[1:], strict=True)}


def config_of(
    formula: Formula, candidate: dict[str, float], references: dict[str, str], base: Path
) -> MergeConfig:
    with Checkpoint.open(base) as template:
        return formula.config(
            candidate, references, template=str(base), tensors=list(template.tensors)
        )


def grouped(weights: dict[str, list[float]], **others: float) -> dict[str, float]:
    found = {
        f"{name} [{group}]": number
        for name, numbers in weights.items()
        for group, number in zip(GROUPS, numbers, strict=True)
    }
    return found | {name.replace("_", " "): number for name, number in others.items()}


WEIGHTS = {"a": [0.2, 0.5, 1.0], "b": [0.8, 0.5, 0.0]}
DENSITIES = {"density of a": 0.3, "density of b": 0.8}
CANDIDATES: list[tuple[str, dict[str, Any], dict[str, float]]] = [
    ("linear", {}, {"a": 0.3, "c": 0.7}),
    ("linear", {}, grouped(WEIGHTS)),
    ("task_arithmetic", {}, grouped(WEIGHTS) | {"c": -0.4}),
    ("ties", {}, grouped(WEIGHTS) | DENSITIES | {"lambda of *": 1.4}),
    ("ties", {"density": {"a": 0.2, "b": 0.4, "c": 0.6}}, {"a": 0.5, "b": 0.5}),
    ("ties", {"trim": "global", "density": 0.4}, grouped(WEIGHTS)),
    ("dare_linear", {"seed": 3}, {"a": 0.6, "b": 0.6, "c": 0.1} | DENSITIES),
    ("dare_ties", {}, grouped(WEIGHTS) | {f"density of {n} [{GROUPS[0]}]": 0.5 for n in "ab"}),
    ("slerp", {}, {"a": 0.3, "b": 0.7}),
    ("slerp", {}, {"a": 0.5, "b": 0.5, "t of *": 0.25}),
    ("slerp", {}, {"a": 0.5, "b": 0.5} | {f"t of * [{g}]": i / 4 for i, g in enumerate(GROUPS)}),
    ("model_stock", {}, {"a": 0.5, "b": 0.5}),
    ("arcee_fusion", {}, {"a": 0.25, "b": 0.75}),
    ("linear", {}, {"place 0 of a [layer 0]": 1.0, "place 1 of b [layer 1]": 1.0}),
    ("ties", {}, {"place 2 of a [layer 3]": 0.5, "place 1 of b [layer 1]": 2.0}),
]


@pytest.mark.parametrize(("method", "parameters", "candidate"), CANDIDATES)
def test_a_merge_written_as_yaml_reads_back_as_the_same_plan(
    method: str,
    parameters: dict[str, Any],
    candidate: dict[str, float],
    references: dict[str, str],
    llamas: list[Path],
    tmp_path: Path,
) -> None:
    config = config_of(Formula(method, parameters), candidate, references, llamas[0])
    path = tmp_path / "merge.yaml"
    path.write_text(yaml.safe_dump(config.to_mapping(), sort_keys=False))
    again = load_config(path)
    assert again.to_mapping() == config.to_mapping()
    made, read = make_plan(config), make_plan(again)
    assert read.tensors == made.tensors
    assert read.output_config == made.output_config


def test_the_card_of_a_candidate_makes_the_candidate_again(
    references: dict[str, str], llamas: list[Path], tmp_path: Path
) -> None:
    candidate = grouped(WEIGHTS) | DENSITIES
    plan = make_plan(config_of(Formula("dare_ties"), candidate, references, llamas[0]))
    out = execute(plan, tmp_path / "out").path
    _, _, after = (out / "README.md").read_text().partition("```yaml\n")
    written, _, _ = after.partition("```")
    (tmp_path / "card.yaml").write_text(written)
    again = execute(make_plan(load_config(tmp_path / "card.yaml")), tmp_path / "again").path
    first, second = (load_file(path / "model.safetensors") for path in (out, again))
    assert first.keys() == second.keys()
    assert all(tensor.equal(second[name]) for name, tensor in first.items())


def values_of(plan: MergePlan, parameter: str) -> dict[str, Any]:
    found = {}
    for name, group in (
        ("model.layers.1.mlp.up_proj.weight", GROUPS[0]),
        ("model.layers.2.input_layernorm.weight", GROUPS[1]),
        ("model.norm.weight", GROUPS[2]),
    ):
        tensor = next(tensor for tensor in plan.tensors if tensor.name == name)
        found[group] = tensor.parameters[parameter]
    return found


def test_groups_have_their_own_weights_and_all_tensors_the_density_of_a_model(
    references: dict[str, str], llamas: list[Path]
) -> None:
    candidate = grouped(WEIGHTS) | DENSITIES | {"lambda of *": 1.5}
    plan = make_plan(config_of(Formula("ties"), candidate, references, llamas[0]))
    assert values_of(plan, "weight") == {
        group: (WEIGHTS["a"][i], WEIGHTS["b"][i]) for i, group in enumerate(GROUPS)
    }
    assert set(values_of(plan, "density").values()) == {(0.3, 0.8)}
    assert set(values_of(plan, "lambda").values()) == {1.5}


def test_a_model_that_lacks_a_group_weighs_nothing_there(
    references: dict[str, str], llamas: list[Path]
) -> None:
    candidate = {"a": 1.0, "b [layers 0-1]": 0.5, "c [layers 2-3]": 0.25}
    plan = make_plan(config_of(Formula("linear"), candidate, references, llamas[0]))
    assert values_of(plan, "weight") == {
        "layers 0-1": (1.0, 0.5, 0.0),
        "layers 2-3": (1.0, 0.0, 0.25),
        "rest": (1.0, 0.0, 0.0),
    }


def test_slerp_goes_from_the_first_to_the_second_by_its_share_or_by_t(
    references: dict[str, str], llamas: list[Path]
) -> None:
    def t(candidate: dict[str, float]) -> list[float]:
        plan = make_plan(config_of(Formula("slerp"), candidate, references, llamas[0]))
        return list(values_of(plan, "t").values())

    assert t({"b": 0.3, "a": 0.7}) == [0.3] * 3
    assert t({"a": 0.5, "b": 0.5, "t of *": 0.2}) == [0.2] * 3
    assert t({"a": 0.5, "b": 0.5, "t of * [layers 2-3]": 0.2}) == [0.5, 0.2, 0.5]


def test_what_the_method_has_no_parameter_for_is_refused(
    references: dict[str, str], llamas: list[Path]
) -> None:
    for name in ("density of a", "lambda of *", "normalize of a"):
        with pytest.raises(ValueError, match="linear has no"):
            config_of(Formula("linear"), {"a": 1.0, name: 0.5}, references, llamas[0])


def test_numbers_that_nothing_can_be_merged_with_are_their_own_error(
    references: dict[str, str], llamas: list[Path]
) -> None:
    for candidate in ({"a": 0.5, "b": -0.5}, {"a": 0.5, "density of a": 1.5}):
        with pytest.raises(UnusableValues):
            make_plan(config_of(Formula("ties"), candidate, references, llamas[0]))


@pytest.mark.parametrize("method", [m for m in METHODS if Formula(m).weighted])
def test_only_ratios_matter_of_what_is_called_normalised(method: str) -> None:
    """By the method itself: twice the weights give the same merge, or another."""
    import numpy as np

    definition = METHODS[method]
    rng = np.random.default_rng(0)
    models = rng.normal(size=(definition.models[1] or 3, 6, 4)).astype(np.float32)
    base = rng.normal(size=(6, 4)).astype(np.float32)
    given: dict[str, Any] = {}
    if definition.statistics != "none":
        given["statistics"] = [np.eye(4, dtype=np.float32)] * len(models)
        if definition.statistics == "same":
            given["statistics"] = [np.ones((6, 4), np.float32)] * len(models)
    weight = [0.5, 0.3, 0.4][: len(models)]
    base_of = base if definition.needs_base else None
    once = definition(models, base_of, weight=weight, **given)
    twice = definition(models, base_of, weight=[2 * w for w in weight], **given)
    assert np.allclose(once, twice, atol=1e-5) == Formula(method).normalised


def test_whether_weights_are_normalised_is_what_the_recipe_sets() -> None:
    assert not Formula("linear", {"normalize": False}).normalised
    assert Formula("task_arithmetic", {"normalize": "true"}).normalised
    assert not Formula("ties", {"normalize": [{"filter": "mlp", "value": True}]}).normalised


def test_candidates_of_one_merge_have_one_spelling() -> None:
    linear, free = Formula("linear"), Formula("task_arithmetic")
    assert linear.canonical({"b": 3.0, "a": 1.0, "c": 0.0}) == {"a": 0.25, "b": 0.75}
    assert free.canonical({"b": 3.0, "a": 1.0}) == {"a": 1.0, "b": 3.0}
    assert linear.canonical({"a": 0.4}) == {"a": 1.0}
    assert free.canonical({"a": 0.4}) == {"a": 0.4}
    by_group = linear.canonical({"a [rest]": 1.0, "b [rest]": 3.0, "a [layer 0]": 0.5})
    assert by_group == {"a [layer 0]": 1.0, "a [rest]": 0.25, "b [rest]": 0.75}
    # What is said of a model that is not in the merge says nothing.
    ties = Formula("ties")
    assert ties.canonical({"a": 2.0, "b": 0.0, "density of a": 0.5, "density of b": 0.1}) == {
        "a": 1.0,
        "density of a": 0.5,
    }
    slerp = Formula("slerp")
    with_t = {"a": 0.5, "b": 0.5, "t of *": 0.2}
    assert slerp.canonical({"a": 0.9, "b": 0.1, "t of *": 0.2}) == with_t
    assert slerp.canonical({"a": 3.0, "b": 1.0}) == {"a": 0.75, "b": 0.25}
    placed = {"place 1 of a [layer 2]": 1.0, "place 0 of b [layer 0]": 1.0}
    assert linear.canonical(placed) == dict(sorted(placed.items()))


@pytest.mark.parametrize(("method", "parameters", "candidate"), CANDIDATES)
def test_the_spelling_of_a_spelling_is_the_same(
    method: str, parameters: dict[str, Any], candidate: dict[str, float]
) -> None:
    formula = Formula(method, parameters)
    once = formula.canonical({name: number / 3 for name, number in candidate.items()})
    assert formula.canonical(once) == once


def test_a_single_model_is_one_with_nothing_else_said() -> None:
    assert Formula("linear").single({"a": 0.3, "b": 0.0}) == "a"
    assert Formula("ties").single({"a": 0.3}) == "a"
    assert Formula("ties").single({"a": 1.0, "density of a": 0.5}) is None
    assert Formula("task_arithmetic").single({"a": 1.0}) == "a"
    assert Formula("task_arithmetic").single({"a": 0.5}) is None
    assert Formula("slerp").single({"a": 1.0, "t of *": 0.5}) == "a"
    assert Formula("linear").single({"place 0 of a [layer 0]": 1.0}) is None
    assert Formula("linear").single({}) is None


def test_reports_say_the_mean_weight_and_how_far_it_goes() -> None:
    ties = Formula("ties")
    candidate = grouped(WEIGHTS) | DENSITIES
    assert mean_weights(candidate)["b"] == pytest.approx(1.3 / 3)
    assert ties.share(candidate, "b", NAMES) == (
        "weight 0.433 (0.000 to 0.800 in 3 groups), density 0.800"
    )
    assert ties.share({"a": 0.25, "b": 0.75}, "a", NAMES) == "weight 0.250"
    slerp = {"a": 0.5, "b": 0.5, "t of *": 0.2}
    assert Formula("slerp").share(slerp, "a", NAMES) == "share 0.800"
    assert Formula("slerp").share(slerp, "b", NAMES) == "share 0.200"
    fusion = Formula("arcee_fusion")
    assert fusion.share({"a": 0.25, "b": 0.75}, "b", NAMES) == "takes the other in"
    placed = {f"place {i} of a [layer {n}]": 1.0 for i, n in enumerate([0, 1, 3])}
    assert Formula().share(placed, "a", NAMES) == "layers 0, 1 and 3"


def density(low: float = 0.05, high: float = 1.0) -> Dial:
    return Dial("density", low, high, 0.5, per_model=True)


LAMBDA = Dial("lambda", 0.0, 2.0, 1.0, per_model=False)
T = Dial("t", 0.0, 1.0, 0.5, per_model=False)


@pytest.mark.parametrize(
    ("method", "parameters", "normalised", "others"),
    [
        ("linear", {}, True, ()),
        ("task_arithmetic", {}, False, ()),
        ("task_arithmetic", {"normalize": True}, True, (LAMBDA,)),
        ("ties", {}, True, (density(), LAMBDA)),
        ("ties", {"density": 0.3, "lambda": 1.0}, True, ()),
        ("dare_linear", {}, False, (density(),)),
        ("dare_ties", {"normalize": True}, True, (density(), LAMBDA)),
        ("della", {"epsilon": 0.1}, True, (density(0.11, 0.89), LAMBDA)),
        ("slerp", {}, True, (T,)),
        ("model_stock", {}, True, ()),
    ],
)
def test_the_dials_of_a_method_are_what_the_recipe_leaves_open(
    method: str,
    parameters: dict[str, Any],
    normalised: bool,
    others: tuple[Dial, ...],
    llamas: list[Path],
) -> None:
    with Checkpoint.open(llamas[0]) as template:
        dials = Formula(method, parameters).dials(template, group_size=3)
    assert dials.weighted == (method not in ("slerp", "model_stock"))
    assert dials.normalised == normalised
    assert dials.others == others
    assert dials.groups == ("layers 0-2", "layer 3", "rest")
    assert dials.layers == 4


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties", "slerp"])
@pytest.mark.parametrize("size", [None, 2])
def test_whatever_a_search_comes_to_can_be_planned(
    method: str, size: int | None, references: dict[str, str], llamas: list[Path]
) -> None:
    """Random points of the space that evolution moves through."""
    import numpy as np

    formula = Formula(method)
    names = NAMES[: formula.most or 3]
    with Checkpoint.open(llamas[0]) as template:
        space = Space(names, formula.dials(template, group_size=size))
    rng = np.random.default_rng(1)
    for _ in range(3):
        point = np.clip(space.start + 0.1 * rng.normal(size=space.dimension), 0, 1)
        candidate = formula.canonical(space.candidate(point))
        plan = make_plan(config_of(formula, candidate, references, llamas[0]))
        assert len(plan.models) == len(names)


def test_layers_are_scaled_where_they_write_into_the_stream(
    references: dict[str, str], llamas: list[Path]
) -> None:
    candidate = {
        "place 0 of a [layer 1]": 2.0,
        "place 1 of a [layer 2]": 1.0,
        "place 2 of b [layer 0]": 0.25,
    }
    plan = make_plan(config_of(Formula(), candidate, references, llamas[0]))
    scales = {t.name: t.parameters["scale"][0] for t in plan.tensors}
    for layer, factor in enumerate([0.5, 0.5, 2.0]):
        for rest in ("self_attn.o_proj", "mlp.down_proj"):
            assert scales.pop(f"model.layers.{layer}.{rest}.weight") == factor
    assert set(scales.values()) == {1.0}
    assert plan.output_config["num_hidden_layers"] == 3


def test_layers_that_cannot_be_scaled_are_refused(make_model: Any, tmp_path: Path) -> None:
    gemma = make_model(tmp_path / "gemma", model_type="gemma2", head_dim=8)
    candidate = {"place 0 of a [layer 1]": 0.5}
    with pytest.raises(NotMergeable, match=r"post_feedforward_layernorm.*Search with scales: off"):
        config_of(Formula(), candidate, {"a": str(gemma)}, gemma)
    config_of(Formula(), {"place 0 of a [layer 1]": 1.0}, {"a": str(gemma)}, gemma)


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"place 0 of a [layer 1]": 0.0}, "must be above 0"),
        ({"place 0 of a [layer 1]": 1.0, "place 0 of b [layer 1]": 1.0}, "two layers are in place"),
        ({"place 0 of a [layer 1]": 1.0, "b": 1.0}, "'b' is no layer in its place"),
        ({"place 0 of a": 1.0}, "no layer in its place"),
    ],
)
def test_layers_that_are_placed_wrongly_are_refused(
    candidate: dict[str, float], message: str, references: dict[str, str], llamas: list[Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(Formula(), candidate, references, llamas[0])
