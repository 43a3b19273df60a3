"""Groups of tensors, told from names, and the parts of names that select them."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from modelglue.checkpoint.naming import place
from modelglue.merge.config.values import resolve
from modelglue.recipe.groups import labels, members, setting

ARCHITECTURES = {
    "llama": {},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 4},
    "gpt_neox": {},
    "qwen3": {"head_dim": 8},
    "olmo2": {},
    "gemma2": {"head_dim": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 2},
}


def llama(layers: int) -> list[str]:
    inside = ("input_layernorm", "self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
    return [
        "model.embed_tokens.weight",
        *(f"model.layers.{i}.{name}.weight" for i in range(layers) for name in inside),
        "model.norm.weight",
        "lm_head.weight",
    ]


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def names(request: pytest.FixtureRequest) -> list[str]:
    """The tensors of a model of twelve layers, so that 1 is a part of 10 and 11."""
    sizes = tiny.SIZES | ARCHITECTURES[request.param]
    depth = {"n_layer" if "n_layer" in sizes else "num_hidden_layers": 12}
    config = AutoConfig.for_model(request.param, **(sizes | depth))
    return list(AutoModelForCausalLM.from_config(config).state_dict())


def test_layers_that_a_size_does_not_divide_are_a_group_of_fewer() -> None:
    assert labels(llama(10), size=4) == ("layers 0-3", "layers 4-7", "layers 8-9", "rest")
    assert labels(llama(3), size=2) == ("layers 0-1", "layer 2", "rest")
    assert labels(llama(2), size=9) == ("layers 0-1", "rest")


def test_without_a_size_all_layers_are_one_group_and_nothing_asked_is_none() -> None:
    assert labels(llama(4), size=None) == ()
    apart = ("layers 0-3 attention", "layers 0-3 mlp", "rest")
    assert labels(llama(4), size=None, roles=True) == apart


def test_what_is_in_no_layer_is_the_rest_and_apart_from_roles_the_norms_too() -> None:
    names = llama(2)
    whole = labels(names, size=1)
    outside = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert set(members("rest", names, whole)) == outside
    apart = labels(names, size=1, roles=True)
    norms = {f"model.layers.{i}.input_layernorm.weight" for i in range(2)}
    assert set(members("rest", names, apart)) == outside | norms
    assert members("layer 1 attention", names) == (
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
    )


@pytest.mark.parametrize("roles", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("size", [1, 5, None])
def test_filters_select_exactly_the_tensors_of_each_group(
    names: list[str], size: int | None, roles: bool
) -> None:
    groups = labels(names, size=size, roles=roles)
    if not groups:
        return
    number = {group: float(i) for i, group in enumerate(groups)}
    chosen = setting(number, names, default=-1.0)
    for name in names:
        assert resolve(chosen, name, 0.0) == number[own_group(name, groups)], name
    # Every group has tensors, and each tensor one group.
    owned = [name for group in groups for name in members(group, names, groups)]
    assert sorted(owned) == sorted(names)


def own_group(name: str, groups: tuple[str, ...]) -> str:
    """Without the code under test: by the numbers and words of the label."""
    at = place(name)
    for group in groups:
        _, _, span = group.partition(" ")
        numbers, _, role = span.partition(" ")
        first, _, last = numbers.partition("-")
        if group != "rest" and at.layer is not None:
            inside = int(first) <= at.layer <= int(last or first)
            if inside and role in ("", at.role):
                return group
    return "rest"


def test_a_name_that_is_a_part_of_another_has_its_own_number() -> None:
    names = ["h.1", "h.11", "h.1.scale", "wte.weight"]
    groups = labels(names, size=1)
    number = {group: float(i) for i, group in enumerate(groups)}
    chosen = setting(number, names, default=-1.0)
    assert [resolve(chosen, name, 0.0) for name in names] == [0.0, 1.0, 0.0, 2.0]


def test_a_number_that_is_the_same_everywhere_needs_no_filter() -> None:
    assert setting({"layers 0-1": 0.5, "rest": 0.5}, llama(2), default=0.0) == 0.5
    assert setting({"": 0.25}, llama(2), default=0.0) == 0.25


def test_what_is_in_no_group_that_is_given_has_the_number_for_all() -> None:
    chosen = setting({"": 0.25, "layer 0": 0.75}, llama(2), default=0.0)
    assert resolve(chosen, "model.layers.0.mlp.up_proj.weight", 0.0) == 0.75
    assert resolve(chosen, "model.layers.1.mlp.up_proj.weight", 0.0) == 0.25
    assert resolve(chosen, "lm_head.weight", 0.0) == 0.25


def test_what_is_no_group_is_refused() -> None:
    with pytest.raises(ValueError, match="no group of tensors"):
        members("layers one", llama(2))
