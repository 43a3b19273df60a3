"""A merge's configuration is checked completely, all problems at once."""

from pathlib import Path

import pytest

from modelglue.errors import ConfigError
from modelglue.merge.config.schema import (
    ModelEntry,
    TokenSource,
    load_config,
    parse_config,
    same_model,
)

GOOD = {
    "merge_method": "linear",
    "models": [{"model": "a", "parameters": {"weight": 0.3}}, {"model": "b"}],
    "parameters": {"weight": 0.7},
    "dtype": "bfloat16",
}


TIES = {
    "merge_method": "ties",
    "models": [{"model": "a"}, {"model": "b"}],
    "base_model": "base",
    "parameters": {"weight": 1},
}
SLICE = {
    "sources": [
        {"model": "base", "layer_range": [0, 2]},
        {"model": "a", "layer_range": [1, 3], "parameters": {"weight": [0, "1e-1"]}},
    ],
    "parameters": {"density": [{"filter": "mlp", "value": 0.5}, {"value": 1}]},
}
PIECE = {"model": "a", "layer_range": [0, 1]}
SLICED = {"merge_method": "ties", "slices": [SLICE, SLICE], "base_model": "base"}


def problems_of(**changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config({**GOOD, **changes})
    return str(caught.value)


def test_a_models_own_value_goes_before_the_shared_one_and_that_before_the_default() -> None:
    assert parse_config(GOOD).values() == {"weight": (0.3, 0.7), "normalize": True}


def test_it_can_be_written_out_and_read_again() -> None:
    config = parse_config(GOOD)
    assert parse_config(config.to_mapping()) == config


def test_all_problems_are_told_at_once_with_the_nearest_spelling() -> None:
    told = problems_of(
        merge_methd="linear",
        models=[{"model": "a", "parameters": {"wieght": 1}}, {"modle": "b"}],
        dtype="bf16",
    )
    for part in ("5 problems", 'mean "merge_method"', 'mean "weight"', "models[1].model", "dtype"):
        assert part in told


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "much", True, None, []])
def test_a_weight_that_is_no_finite_number_is_refused(weight: object) -> None:
    assert "weight" in problems_of(models=[{"model": "a", "parameters": {"weight": weight}}])


def test_weights_that_sum_to_nothing_are_refused_only_under_normalize() -> None:
    models = [
        {"model": name, "parameters": {"weight": weight}} for name, weight in [("a", 1), ("b", -1)]
    ]
    assert "sum to 0" in problems_of(models=models, parameters={})
    parse_config({**GOOD, "models": models, "parameters": {"normalize": False}})


def test_an_unknown_method_is_refused_with_those_that_are_known() -> None:
    assert 'mean "linear"' in problems_of(merge_method="liner")


@pytest.mark.parametrize("text", ["[1, 2", "just text", "", "a: b: c"])
def test_a_file_that_holds_no_configuration_is_refused_with_its_name(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "merge.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"merge\.yml"):
        load_config(path)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yml: cannot be read"):
        load_config(tmp_path / "gone.yml")


def told(config: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(config)
    return str(caught.value)


TOKENIZER = {
    "source": "union",
    "pad_to_multiple_of": 64,
    "tokens": {
        "<a>": {"source": "a", "force": True},
        "<b>": {"source": {"kind": "model_token", "model": "./b/", "token": "<s>"}},
        "<c>": {"source": {"kind": "model_token", "model": "b", "token_id": 7}},
        "<d>": {"source": {"kind": "zero"}},
    },
}


@pytest.mark.parametrize(
    "config",
    [
        GOOD,
        TIES,
        SLICED,
        {**GOOD, "dtype": "float32", "out_dtype": "bfloat16", "chat_template": "auto"},
        {**GOOD, "tokenizer": TOKENIZER, "chat_template": "chatml"},
        {**GOOD, "tokenizer_source": "base", "base_model": "a"},
        {"merge_method": "linear", "modules": {"x": {"models": ["a"]}, "y": {"slices": [SLICE]}}},
    ],
)
def test_what_was_read_can_be_written_and_read_again(config: dict[str, object]) -> None:
    if "modules" in config:
        config = {**config, "merge_method": "ties", "base_model": "base"}
    parsed = parse_config(config)
    assert parse_config(parsed.to_mapping()) == parsed


def test_every_problem_of_every_section_is_told_with_its_place() -> None:
    found = told(
        {
            "merge_method": "ties",
            "slices": [
                {
                    "sources": [
                        {"model": "a", "layer_rnge": [0, 2]},
                        {"model": "b", "layer_range": [2, 2]},
                        {"model": 3, "layer_range": [0, 1]},
                    ],
                    "residual_weight": 0.5,
                    "parameters": {"densty": 1},
                },
                {"source": []},
            ],
            "tokenizer": {"sorce": "union", "pad_to_multiple_of": 0, "tokens": {"x": {"forc": 1}}},
            "tokenizer_source": "base",
            "out_dtype": "int8",
        }
    )
    for part in (
        'slices[0].sources[0].layer_rnge: unknown key; did you mean "layer_range"?',
        "slices[0].sources[0].layer_range: None is not",
        "slices[0].sources[1].layer_range: [2, 2] is not",
        "slices[0].sources[2].model: a path",
        "slices[0].residual_weight: has no effect",
        'slices[0].parameters.densty: ties has no such parameter; did you mean "density"?',
        'slices[1].source: unknown key; did you mean "sources"?',
        "slices[1].sources: a list",
        'tokenizer.sorce: unknown key; did you mean "source"?',
        "tokenizer.pad_to_multiple_of: 0",
        'tokenizer.tokens.x.forc: unknown key; did you mean "force"?',
        "tokenizer_source: tokenizer says the same",
        "out_dtype: 'int8' is none of",
    ):
        assert part in found


@pytest.mark.parametrize("extra", [{"slices": [SLICE]}, {"modules": {"x": {"models": ["a"]}}}])
def test_only_one_of_models_slices_and_modules_may_be_given(extra: dict[str, object]) -> None:
    assert "one of models, slices and modules" in told({**TIES, **extra})


def test_nothing_to_merge_is_refused() -> None:
    assert "one of models, slices and modules is needed" in told({"merge_method": "linear"})


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("chatmll", "'chatmll' is no Jinja template and none of auto, alpaca, chatml"),
        ("{{ one\n}}\n{% for x %}", "line 3 of the template"),
        ("{% if true %}", "line 1 of the template"),
    ],
)
def test_a_bad_chat_template_is_told_with_the_other_problems(template: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**GOOD, "chat_template": template, "dtipe": "float32"})
    assert any(p.startswith("chat_template: ") and told in p for p in caught.value.problems)
    assert any(p.startswith("dtipe: ") for p in caught.value.problems)


@pytest.mark.parametrize("template", ["{% generation %}{{ x }}{% endgeneration %}", "{% break %}"])
def test_templates_may_use_what_transformers_adds_to_jinja(template: str) -> None:
    template = "{% for x in messages %}" + template + "{% endfor %}"
    config = parse_config({**GOOD, "chat_template": template})
    assert config.tokenizer is not None
    assert config.tokenizer.chat_template == template


def test_sources_of_a_slice_have_equally_many_layers() -> None:
    sources = [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [0, 3]}]
    found = told({"merge_method": "linear", "slices": [{"sources": sources}]})
    assert "slices[0].sources: the sources have 2 and 3 layers" in found


def test_a_parameter_of_the_whole_merge_is_no_models_own() -> None:
    found = problems_of(models=[{"model": "a", "parameters": {"normalize": False}}])
    assert "models[0].parameters.normalize: holds for all models alike" in found


def test_a_model_may_not_be_listed_twice() -> None:
    assert "models: ./a/ is listed twice" in problems_of(models=["a", "b", "./a/"])


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({**TIES, "base_model": None}, "models: ties needs a base_model"),
        ({**TIES, "models": ["base"]}, "ties takes 1 to any number models beside the base, 0 are"),
        ({"merge_method": "slerp", "models": ["a", "b", "c"]}, "slerp takes 2 models, 3 are given"),
        ({"merge_method": "slerp", "models": ["a", "b"], "base_model": "c"}, "3 are given"),
        ({"merge_method": "passthrough", "models": ["a", "b"]}, "passthrough takes 1 models, 2"),
        (
            {"merge_method": "slerp", "slices": [{"sources": [PIECE]}], "base_model": "b"},
            "slices[0]: the base b is not among the sources",
        ),
        ({**SLICED, "base_model": "other"}, "slices[0]: the base other is not among the sources"),
    ],
)
def test_models_that_a_method_cannot_take_are_refused(config: dict[str, object], part: str) -> None:
    assert part in told(config)


@pytest.mark.parametrize("models", [["base", "a"], ["a", "base"], ["a"]])
def test_a_base_may_be_listed_among_the_models_or_not(models: list[str]) -> None:
    parse_config({**TIES, "models": models})
    parse_config({"merge_method": "slerp", "models": models, "base_model": "./base"})


def test_where_mergekit_merges_an_unlisted_base_it_becomes_one_of_the_models() -> None:
    config = {"merge_method": "linear", "models": ["a", "b"], "base_model": "c"}
    assert len(parse_config(config).models) == 2
    merged = parse_config({**config, "parameters": {"weight": 0.5}})
    assert merged.models == (ModelEntry("a"), ModelEntry("b"), ModelEntry("c"))


def test_models_may_be_written_as_the_mappings_that_mergekit_writes() -> None:
    model = {"model": {"path": "org/a b", "revision": "main"}, "lora": {"path": "l"}}
    config = parse_config({**GOOD, "models": [{"model": model}, "x+adapter"]})
    assert [entry.model for entry in config.models] == ["org/a b@main+l", "x+adapter"]


def test_dtypes_may_be_written_as_torch_does() -> None:
    config = parse_config({**GOOD, "dtype": "torch.float32", "out_dtype": "torch.bfloat16"})
    assert (config.dtype, config.out_dtype) == ("F32", "BF16")


def test_a_tokenizer_section_is_read() -> None:
    config = parse_config({**GOOD, "tokenizer": TOKENIZER, "chat_template": "chatml"})
    assert config.tokenizer is not None
    assert config.tokenizer.tokens == {
        "<a>": TokenSource("a", force=True),
        "<b>": TokenSource("b", token="<s>"),
        "<c>": TokenSource("b", token_id=7),
        "<d>": TokenSource(zero=True),
    }
    assert config.tokenizer.source == "union"
    assert config.tokenizer.pad_to_multiple_of == 64
    assert config.tokenizer.chat_template == "chatml"


@pytest.mark.parametrize(
    ("token", "part"),
    [
        (
            {"source": "bb"},
            "source: 'bb' is none of the models that are merged; did you mean \"b\"?",
        ),
        ({"source": {"kind": "model_token", "model": "a"}}, "one of token and token_id"),
        ({"source": {"kind": "none"}}, "neither zero nor model_token"),
        ({"force": "yes"}, "force: 'yes' is not true or false"),
    ],
)
def test_a_token_whose_row_comes_from_nowhere_is_refused(
    token: dict[str, object], part: str
) -> None:
    assert part in told({**GOOD, "tokenizer": {"tokens": {"<x>": token}}})


def test_a_tokenizer_source_alone_is_a_tokenizer_section() -> None:
    config = parse_config({**GOOD, "tokenizer_source": "union"})
    assert config.tokenizer is not None
    assert (config.tokenizer.source, config.tokenizer.tokens) == ("union", {})


def test_spellings_of_one_model_are_alike() -> None:
    assert same_model("./models/a/+b") == same_model("models/a+./b")
    assert same_model("org/name@main") != same_model("org/name")


def test_a_typo_hides_no_other_problem() -> None:
    text = told({**TIES, "base_model": None, "dtpye": "bfloat16"})
    assert "dtpye: unknown key" in text
    assert "models: ties needs a base_model" in text
    text = told(
        {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 0}, "x": 1}
    )
    assert "x: unknown key" in text
    assert "sum" in text


@pytest.mark.parametrize(
    "config",
    [
        {"merge_method": "slerp", "models": ["a", {"modle": "b"}], "parameters": {"t": 0.5}},
        {"merge_method": "slerp", "models": ["a", "b"], "parameters": {"tt": 0.5}},
        {"merge_method": "ties", "models": ["a"], "base_model": 3, "parameters": {"weight": 1}},
        {"merge_method": "linear", "slices": "a"},
    ],
)
def test_what_follows_from_a_problem_is_not_told_beside_it(config: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(config)
    assert not [p for p in caught.value.problems if "are given" in p or "must be" in p]
    assert not [p for p in caught.value.problems if "needs a base_model" in p]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("merge_method: linear\nmodels: [a, b]\nmodels: [c, d]\n", "models"),
        ("merge_method: linear\nmodels:\n- {model: a, model: b}\n- b\n", "model"),
    ],
)
def test_a_key_that_is_given_twice_is_refused_with_its_line(
    tmp_path: Path, text: str, key: str
) -> None:
    file = tmp_path / "merge.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"the key '{key}' is given twice[\s\S]*line 3"):
        load_config(file)


def test_keys_that_an_anchor_gives_may_be_given_anew(tmp_path: Path) -> None:
    file = tmp_path / "merge.yml"
    file.write_text(
        "merge_method: linear\nmodels:\n- &a {model: a, parameters: {weight: 1}}\n"
        "- {<<: *a, model: b}\n"
    )
    assert [entry.model for entry in load_config(file).models] == ["a", "b"]
