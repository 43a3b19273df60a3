"""Who lends what, against a loop over rows that follows the documentation's words."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_models
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from token_oracle import linear

from modelglue.errors import CheckpointNotFound, ConfigError, NotMergeable
from modelglue.merge.config.schema import parse_config
from modelglue.merge.plan.merge_plan import make_plan
from modelglue.merge.vocabulary.lending import BASE, NOBODY, Asked, Stored, row_union

WIDTH = 2


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    n, rows = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    models = [*range(n), *([BASE] if draw(st.booleans()) else [])]
    stored = {model: int(random.integers(1, 7)) for model in models}
    maps = {model: random.integers(-1, stored[model], size=rows) for model in models}
    base = None if BASE in models else draw(st.none() | st.integers(0, n - 1))
    asked = []
    for row in range(rows):
        if random.random() < 0.3:
            lender = [None, NOBODY, *models][random.integers(len(models) + 2)]
            number = 0 if lender in (None, NOBODY) else int(random.integers(stored[lender]))
            asked.append(Asked(f"<{row}>", row, lender, number, bool(random.random() < 0.5)))
    return {
        "sources": [Stored(model, maps[model], stored[model]) for model in models],
        "base": base,
        "asked": asked,
        "filled": draw(st.integers(1, rows)),
        "matrices": {model: random.normal(size=(stored[model], WIDTH)) for model in models},
    }


def expected(case: dict[str, Any], model: int) -> np.ndarray:
    sources = {source.model: source for source in case["sources"]}
    preferred = BASE if BASE in sources else case["base"]
    result = []
    for row in range(case["filled"]):
        asked = next((one for one in case["asked"] if one.row == row), None)
        own = {m: s.own[row] for m, s in sources.items() if s.own[row] >= 0}
        have = {m: case["matrices"][m][number] for m, number in own.items()}
        if model in have and not (asked and asked.force):
            result.append(have[model])
        elif asked and asked.lender == NOBODY:
            result.append(np.zeros(WIDTH))
        elif asked and asked.lender is not None:
            result.append(case["matrices"][asked.lender][asked.number])
        elif preferred in have:
            result.append(have[preferred])
        else:
            result.append(np.mean(list(have.values()), axis=0) if have else np.zeros(WIDTH))
    padding = len(case["sources"][0].own) - case["filled"]
    return np.array(result + [np.mean(result, axis=0)] * padding)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_every_source_gets_its_own_row_or_the_loan(case: dict[str, Any]) -> None:
    matrices = case.pop("matrices")
    union = row_union(**case)
    case["matrices"] = matrices
    models = [source.model for source in case["sources"] if source.model != BASE]

    def read(source: int | None, rows: np.ndarray) -> np.ndarray:
        model = BASE if source is None else models[source]
        return matrices[model][rows].astype(np.float32)

    if union is None:
        rows = np.arange(len(case["sources"][0].own))
        gathered = np.stack([read(i, rows) for i in range(len(models))])
        base = read(None, rows) if BASE in matrices else None
    else:
        found, base = union.gather(read, slice(None))
        gathered = found.reshape(len(models), -1, WIDTH)
    for index, model in enumerate(models):
        np.testing.assert_allclose(gathered[index], expected(case, model), atol=1e-6)
    assert (base is None) == (BASE not in matrices)
    if base is not None:
        np.testing.assert_allclose(base.reshape(-1, WIDTH), expected(case, BASE), atol=1e-6)


def test_rows_alike_are_no_union() -> None:
    plain = Stored(0, np.arange(4), 4)
    assert row_union([plain, plain], base=None, asked=[], filled=4) is None
    longer = Stored(1, np.arange(4), 5)
    assert row_union([plain, longer], base=None, asked=[], filled=4) is not None


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("zoo")
    return {
        "p": token_models.save(folder / "p", seed=0),
        "q": token_models.save(folder / "q", seed=1, added=["<x>", "<y>"]),
        "r": token_models.save(folder / "r", seed=2, added=["<y>"]),
    }


def stack(zoo: dict[str, Path], *names: str, **more: Any) -> dict[str, Any]:
    sources = [{"sources": [{"model": str(zoo[name]), "layer_range": [0, 1]}]} for name in names]
    return {"merge_method": "passthrough", "slices": sources, **more}


def test_a_token_whose_row_no_merged_model_has_is_refused(zoo: dict[str, Path]) -> None:
    told = "tokenizer: q alone could lend a row for '<x>', '<y>', without a part"
    with pytest.raises(NotMergeable, match=told):
        make_plan(parse_config(stack(zoo, "p", "q")))
    with pytest.raises(NotMergeable, match="q alone could lend a row for '<x>', without a part"):
        make_plan(parse_config(linear(zoo, "p", "r", base_model=str(zoo["q"]))))


def test_the_same_tokens_with_fewer_rows_are_refused_where_nobody_could_lend(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    short = shutil.copytree(zoo["p"], tmp_path / "short")
    shutil.copy(zoo["r"] / "tokenizer.json", short)
    other = shutil.copytree(short, tmp_path / "other")
    paths = {**zoo, "short": short, "other": other}
    with pytest.raises(NotMergeable, match="r alone could lend a row for '<y>', without a part"):
        make_plan(parse_config(linear(paths, "short", "other", base_model=str(zoo["r"]))))


def test_zeros_that_are_asked_for_are_no_loss(zoo: dict[str, Path]) -> None:
    zeros = {"source": {"kind": "zero"}}
    section = {"source": "union", "tokens": {"<x>": zeros, "<y>": zeros}}
    plan = make_plan(parse_config(stack(zoo, "p", "q", tokenizer=section)))
    assert plan.tokenizer is not None
    assert plan.tokenizer.report["lent"]["as zeros"] == 2
    new = {"source": "union", "tokens": {"<new>": {}}}
    plan = make_plan(parse_config(linear(zoo, "p", "q", tokenizer=new)))
    assert plan.tokenizer is not None
    assert plan.tokenizer.report["lent"] == {
        "by the base": 0,
        "by one model": 2,
        "as a mean": 0,
        "as zeros": 1,
    }


def test_what_is_told_of_loans_is_what_was_planned(zoo: dict[str, Path]) -> None:
    plan = make_plan(parse_config(linear(zoo, "p", "r", "q", base_model=str(zoo["r"]))))
    assert plan.tokenizer is not None
    assert plan.tokenizer.report["lent"] == {
        "by the base": 1,
        "by one model": 1,
        "as a mean": 0,
        "as zeros": 0,
    }
    # A base that is not merged lends nothing, whatever it has.
    apart = shutil.copytree(zoo["r"], zoo["r"].with_name("apart"))
    plan = make_plan(parse_config(linear(zoo, "p", "r", base_model=str(apart))))
    assert plan.tokenizer is not None
    assert plan.tokenizer.report["lent"]["by the base"] == 0
    assert plan.tokenizer.report["lent"]["by one model"] == 1


def test_every_bad_lender_is_told_at_once(zoo: dict[str, Path]) -> None:
    def token(**which: Any) -> dict[str, Any]:
        return {"source": {"kind": "model_token", "model": str(zoo["q"]), **which}}

    tokens = {
        "<a>": token(token="<nowhere>"),
        "<b>": token(token="<none>"),
        "<c>": token(token_id=3),
    }
    section = {"source": "union", "tokens": tokens}
    with pytest.raises(NotMergeable) as caught:
        make_plan(parse_config(linear(zoo, "p", "q", tokenizer=section)))
    assert "<nowhere>" in str(caught.value)
    assert "<none>" in str(caught.value)
    section["tokens"] = {"<a>": token(token_id=900), "<b>": token(token_id=901)}
    with pytest.raises(NotMergeable, match=r"(?s)2 problems.*row 900 .*row 901 "):
        make_plan(parse_config(linear(zoo, "p", "q", tokenizer=section)))


@pytest.mark.parametrize(
    ("source", "meant"), [("unoin", "union"), ("bsae", "base"), ("{p}x", "{p}")]
)
def test_a_misspelt_source_is_told_with_what_may_be_meant(
    zoo: dict[str, Path], source: str, meant: str
) -> None:
    source, meant = source.format(**zoo), meant.format(**zoo)
    config = linear(zoo, "p", "q", tokenizer_source=source)
    told = f'tokenizer source: {source!r} is neither .* did you mean "{meant}"'
    with pytest.raises(CheckpointNotFound, match=told):
        make_plan(parse_config(config))


@pytest.mark.parametrize("key", ["yes", "null", "1.5", "~", "7"])
def test_a_token_that_yaml_takes_for_something_else_is_to_be_quoted(
    zoo: dict[str, Path], key: str
) -> None:
    text = f"source: union\ntokens: {{{key}: {{source: {{kind: zero}}}}}}"
    config = linear(zoo, "p", "q", tokenizer=yaml.safe_load(text))
    with pytest.raises(ConfigError, match=r"tokenizer\.tokens.*no text; quote it"):
        parse_config(config)
    config["tokenizer"] = yaml.safe_load(text.replace(key, f"'{key}'"))
    tokenizer = parse_config(config).tokenizer
    assert tokenizer is not None
    assert list(tokenizer.tokens) == [key]
    lent = f"{{kind: model_token, model: {zoo['p']}, token: {key}}}"
    config["tokenizer"] = yaml.safe_load(f"tokens: {{a: {{source: {lent}}}}}")
    with pytest.raises(
        ConfigError, match=r"tokens\.a\.source(\.token: .* quote it|: one of token)"
    ):
        parse_config(config)


def test_a_lender_without_a_part_is_refused() -> None:
    source = Stored(0, np.array([0, -1]), 1)
    with pytest.raises(NotMergeable, match=r"tokens\.<x>: the model that shall lend"):
        row_union([source], base=None, asked=[Asked("<x>", 1, BASE, 0)], filled=2)
