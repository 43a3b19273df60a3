"""Every output tensor's sources, shape, dtype and parameters, without a weight read."""

from pathlib import Path
from typing import Any

import hollow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import UP, names, piece, plan_of, sources, tensor

from modelglue.errors import (
    MergeError,
    NotMergeable,
)
from modelglue.merge.plan.merge_plan import Source

# Models and bases


@pytest.mark.parametrize("listed", [["a", "b"], ["d", "a", "b"], ["a", "d", "b"]])
def test_a_base_that_a_method_keeps_apart_is_none_of_the_sources(
    zoo: list[Path], listed: list[str]
) -> None:
    models = [str(zoo["abcd".index(name)]) for name in listed]
    plan = plan_of("ties", models=models, base_model=str(zoo[3]))
    for planned in plan.tensors:
        assert planned.sources == (Source(0, planned.name), Source(1, planned.name))
        assert planned.base == Source(None, planned.name)
    assert [model.name for model in plan.models] == ["a", "b"]
    assert plan.base is not None
    assert plan.base.name == "d"


@pytest.mark.parametrize("listed", ["b", "ab", "ba"])
def test_slerp_begins_at_the_base_wherever_it_is_listed(zoo: list[Path], listed: str) -> None:
    models = [str(zoo["abcd".index(name)]) for name in listed]
    plan = plan_of("slerp", models=models, base_model=str(zoo[0]))
    assert sources(plan, "model.norm.weight") == [
        ("a", "model.norm.weight"),
        ("b", "model.norm.weight"),
    ]
    assert all(planned.base is None for planned in plan.tensors)


def test_a_base_of_a_method_without_one_only_lends_and_that_is_told(zoo: list[Path]) -> None:
    plan = plan_of("linear", models=names(zoo[:2]), base_model=str(zoo[3]))
    assert [model.name for model in plan.models] == ["a", "b"]
    assert plan.template.name == "d"
    assert not plan.reads_base
    assert any("is not merged" in note for note in plan.notes)


def test_a_filter_that_is_in_no_name_is_told(zoo: list[Path]) -> None:
    weight = [{"filter": "self_atn", "value": 1}, {"filter": "mlp", "value": 2}, {"value": 1}]
    plan = plan_of("linear", models=names(zoo[:2]), parameters={"weight": weight})
    assert [note for note in plan.notes if "self_atn" in note] == list(plan.notes)


# Parameters


def test_gradients_run_over_the_layers_and_begin_outside_of_them(zoo: list[Path]) -> None:
    plan = plan_of("slerp", models=names(zoo[:2]), parameters={"t": [0, 0.3, 1]})
    found = [tensor(plan, UP.format(layer)).parameters["t"] for layer in range(4)]
    assert found == pytest.approx([0, 0.2, 0.3 + 0.7 / 3, 1])
    assert tensor(plan, "model.norm.weight").parameters["t"] == 0


def test_equal_parameters_are_one_object(zoo: list[Path]) -> None:
    plan = plan_of("ties", models=names(zoo[:3]), base_model=str(zoo[3]))
    assert len({id(planned.parameters) for planned in plan.tensors}) == 1


def test_weights_that_sum_to_nothing_in_some_layer_are_refused_with_its_tensor(
    zoo: list[Path],
) -> None:
    models = [
        {"model": str(zoo[0]), "parameters": {"weight": [1, -1]}},
        {"model": str(zoo[1]), "parameters": {"weight": 1}},
    ]
    with pytest.raises(MergeError, match=r"layers\.3.*sum to 0"):
        plan_of("linear", models=models)


# Slices


def naive_stack(pieces: list[tuple[str, int, int]]) -> dict[str, tuple[str, str]]:
    """Output tensor → (model, tensor), one layer after the other."""
    found = {"model.embed_tokens.weight": (pieces[0][0], "model.embed_tokens.weight")}
    layer = 0
    for model, first, last in pieces:
        for number in range(first, last):
            for part in hollow.LLAMA:
                found[f"model.layers.{layer}.{part}"] = (model, f"model.layers.{number}.{part}")
            layer += 1
    for name in ("model.norm.weight", "lm_head.weight"):
        found[name] = (pieces[-1][0], name)
    return found


PIECES = st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.integers(1, 4)).filter(
    lambda piece: piece[1] < piece[2]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=6))
def test_slices_are_stacked_layer_by_layer(
    zoo: list[Path], pieces: list[tuple[str, int, int]]
) -> None:
    slices = [{"sources": [piece(zoo["abcd".index(m)], a, b)]} for m, a, b in pieces]
    plan = plan_of("passthrough", slices=slices)
    expected = naive_stack(pieces)
    assert {t.name: sources(plan, t.name)[0] for t in plan.tensors} == expected
    assert plan.output_config["num_hidden_layers"] == sum(b - a for _, a, b in pieces)


def test_gradients_run_over_each_slice(zoo: list[Path]) -> None:
    a, b = zoo[:2]
    slices = [
        {"sources": [piece(a, 0, 3), piece(b, 1, 4)], "parameters": {"t": [0, 1]}},
        {"sources": [piece(a, 3, 4), piece(b, 3, 4)], "parameters": {"t": [0.2, 0.7]}},
    ]
    plan = plan_of("slerp", slices=slices, base_model=str(a))
    found = [tensor(plan, UP.format(layer)).parameters["t"] for layer in range(4)]
    assert found == [0, 0.5, 1, 0.7]
    assert tensor(plan, "model.embed_tokens.weight").parameters["t"] == 0
    assert tensor(plan, "lm_head.weight").parameters["t"] == 0.2
    assert sources(plan, UP.format(1)) == [("a", UP.format(1)), ("b", UP.format(2))]


def test_a_slice_may_have_a_base_of_its_own(zoo: list[Path]) -> None:
    a, b, c = zoo[:3]
    slices = [
        {"sources": [piece(a, 0, 2), piece(b, 0, 2)]},
        {"sources": [piece(b, 2, 4), piece(c, 1, 3)], "base_model": str(c)},
    ]
    plan = plan_of("ties", slices=slices, base_model=str(a))
    first, second = tensor(plan, UP.format(0)), tensor(plan, UP.format(2))
    assert first.base == Source(None, UP.format(0))
    assert second.base is not None
    assert (plan.checkpoint(second.base).name, second.base.name) == ("c", UP.format(1))


def test_layers_that_a_model_does_not_have_are_refused(zoo: list[Path]) -> None:
    slices = [{"sources": [piece(zoo[0], 2, 5)]}, {"sources": [piece(zoo[1], 0, 9)]}]
    with pytest.raises(NotMergeable) as caught:
        plan_of("passthrough", slices=slices)
    for part in ("2 problems", "a has 4 layers; layer_range asks for [2, 5]", "asks for [0, 9]"):
        assert part in str(caught.value)


def test_lists_of_an_entry_a_layer_follow_the_layers(tmp_path: Path) -> None:
    kinds = ["full", "sliding", "sliding", "full"]
    a = hollow.save(tmp_path / "a", 4, layer_types=kinds, mlp_only_layers=[3])
    text = {"num_hidden_layers": 4, "layer_types": kinds, "vocab_size": 8}
    nested = {"num_hidden_layers": None, "text_config": text}
    b = hollow.save(tmp_path / "b", hollow.llama(4), **nested)
    for model in (a, b):
        slices = [{"sources": [piece(model, 0, 2)]}, {"sources": [piece(model, 1, 4)]}]
        config = plan_of("passthrough", slices=slices).output_config
        section = config.get("text_config", config)
        assert section["num_hidden_layers"] == 5
        assert section["layer_types"] == ["full", "sliding", "sliding", "sliding", "full"]
        assert config.get("mlp_only_layers", [4]) == [4]


def test_of_several_stacks_a_slice_means_the_one_that_the_configuration_counts(
    tmp_path: Path,
) -> None:
    tensors = {**hollow.llama(3), "vision_tower.layers.0.mlp.weight": (2, 2)}
    a = hollow.save(tmp_path / "a", tensors, num_hidden_layers=3)
    plan = plan_of("passthrough", slices=[{"sources": [piece(a, 1, 3)]}])
    assert sources(plan, UP.format(0)) == [("a", UP.format(1))]
    assert sources(plan, "vision_tower.layers.0.mlp.weight")
    unclear = hollow.save(tmp_path / "b", tensors, num_hidden_layers=7)
    with pytest.raises(NotMergeable, match=r"not clear which layers.*vision_tower\.layers\.0…"):
        plan_of("passthrough", slices=[{"sources": [piece(unclear, 1, 3)]}])


def test_modules_are_parts_of_the_tensors_names_and_one_has_the_rest(tmp_path: Path) -> None:
    tensors = {**hollow.llama(2), "model.vision_tower.proj.weight": (2, 2)}
    a, b = (hollow.save(tmp_path / name, tensors, num_hidden_layers=2) for name in "ab")
    modules = {
        "text_decoder": {"slices": [{"sources": [piece(a, 0, 2)]}, {"sources": [piece(b, 0, 1)]}]},
        "vision_tower": {"models": [str(b)]},
    }
    plan = plan_of("passthrough", modules=modules)
    assert sources(plan, UP.format(2)) == [("b", UP.format(0))]
    assert sources(plan, "model.vision_tower.proj.weight")[0][0] == "b"
    with pytest.raises(NotMergeable, match="is in none of them"):
        plan_of("passthrough", modules={"vision_tower": {"models": [str(b)]}})


def test_experts_follow_their_layer(tmp_path: Path) -> None:
    tensors = hollow.llama(2)
    for layer in range(2):
        for expert in range(3):
            tensors[f"model.layers.{layer}.mlp.experts.{expert}.w1.weight"] = (2, 2)
    a = hollow.save(tmp_path / "a", tensors, num_hidden_layers=2)
    plan = plan_of("passthrough", slices=[{"sources": [piece(a, 1, 2)]}] * 2)
    for layer in range(2):
        for expert in range(3):
            name = f"model.layers.{layer}.mlp.experts.{expert}.w1.weight"
            assert sources(plan, name) == [("a", f"model.layers.1.mlp.experts.{expert}.w1.weight")]


# Heads


def test_a_tied_models_head_is_its_embedding(tmp_path: Path) -> None:
    tied = hollow.save(tmp_path / "tied", 1, tie_word_embeddings=True)
    untied = hollow.save(tmp_path / "untied", 1)
    for models in ([tied, untied], [untied, tied]):
        plan = plan_of("linear", models=names(models))
        expected = [("tied", "model.embed_tokens.weight"), ("untied", "lm_head.weight")]
        assert sorted(sources(plan, "lm_head.weight")) == expected
        assert plan.output_config["tie_word_embeddings"] is False


def test_tied_models_make_a_tied_model_though_one_stores_a_copy(tmp_path: Path) -> None:
    tied = hollow.save(tmp_path / "tied", 1, tie_word_embeddings=True)
    copy = hollow.save(tmp_path / "copy", hollow.llama(1), tie_word_embeddings=True)
    for models in ([tied, copy], [copy, tied]):
        plan = plan_of("linear", models=names(models))
        assert "lm_head.weight" not in plan.layout
        assert plan.output_config["tie_word_embeddings"] is True


def test_a_stored_head_that_differs_from_the_embedding_counts_though_the_config_ties(
    tmp_path: Path,
) -> None:
    odd = hollow.save(tmp_path / "odd", hollow.llama(1), tie_word_embeddings=True)
    weights = odd / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x3f")
    plan = plan_of("linear", models=[str(odd)])
    assert sources(plan, "lm_head.weight") == [("odd", "lm_head.weight")]
    assert plan.output_config["tie_word_embeddings"] is False


def test_a_missing_head_of_an_untied_model_is_refused(tmp_path: Path) -> None:
    whole = hollow.save(tmp_path / "whole", 1)
    headless = hollow.save(tmp_path / "headless", hollow.llama(1, head=False))
    with pytest.raises(NotMergeable, match=r"lm_head\.weight: whole has it, headless lacks it"):
        plan_of("linear", models=names([whole, headless]))


# Dtypes


@pytest.mark.parametrize(
    ("stored", "asked", "written"),
    [
        (("BF16", "BF16"), {}, "BF16"),
        (("BF16", "F16"), {}, "F32"),
        (("BF16", "F32"), {}, "F32"),
        (("F64", "F32"), {}, "F64"),
        (("F32", "F32"), {"dtype": "bfloat16"}, "BF16"),
        (("BF16", "BF16"), {"dtype": "float32", "out_dtype": "float16"}, "F16"),
    ],
)
def test_the_output_has_the_dtype_that_is_asked_or_that_holds_all_inputs(
    tmp_path: Path, stored: tuple[str, str], asked: dict[str, str], written: str
) -> None:
    models = [hollow.save(tmp_path / str(i), 1, dtype=dtype) for i, dtype in enumerate(stored)]
    plan = plan_of("linear", models=names(models), **asked)
    assert {planned.dtype for planned in plan.tensors} == {written}
    written_name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    assert plan.output_config["dtype"] == written_name[written]
    assert "torch_dtype" not in plan.output_config


# Vocabularies


def test_padded_embeddings_have_the_length_of_the_template(tmp_path: Path) -> None:
    padded = {**hollow.llama(1), "model.embed_tokens.weight": (12, 4), "lm_head.weight": (12, 4)}
    short = hollow.save(tmp_path / "short", 1)
    long = hollow.save(tmp_path / "long", padded, vocab_size=12)
    for models, rows in (([short, long], 8), ([long, short], 12)):
        plan = plan_of("linear", models=names(models))
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            planned = tensor(plan, name)
            assert planned.shape == (rows, 4)
            assert planned.union is not None
            assert planned.union.rows == rows
        assert plan.output_config["vocab_size"] == rows
        assert tensor(plan, UP.format(0)).union is None


@pytest.mark.parametrize("shared", [{}, {"weight": [{"filter": "norm", "value": 1}]}])
def test_a_weight_that_no_filter_gives_to_some_tensor_is_refused(
    zoo: list[Path], shared: dict[str, Any]
) -> None:
    models = [
        {"model": str(zoo[0]), "parameters": {"weight": [{"filter": "mlp", "value": 0.1}]}},
        {"model": str(zoo[1]), "parameters": {"weight": 1}},
    ]
    with pytest.raises(NotMergeable, match=r"^\S+: no filter of weight of a is in its name"):
        plan_of("linear", models=models, parameters=shared)
    models[0]["parameters"]["weight"].append({"value": 0.5})
    plan_of("linear", models=models, parameters=shared)


def test_a_density_that_no_filter_gives_to_some_tensor_is_the_usual_one_and_noted(
    zoo: list[Path],
) -> None:
    density = [{"filter": "mlp", "value": 0.5}]
    config = {"base_model": str(zoo[0]), "parameters": {"weight": 1, "density": density}}
    plan = plan_of("ties", models=names(zoo[1:3]), **config)
    assert tensor(plan, UP.format(0)).parameters["density"] == (0.5, 0.5)
    assert tensor(plan, "model.norm.weight").parameters["density"] == (1.0, 1.0)
    assert [note for note in plan.notes if "no filter of density of b is in its name" in note]
