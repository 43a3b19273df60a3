"""Who can stand beside whom in a mixture: whoever could be mixed in either form."""

from collections.abc import Callable
from pathlib import Path

import pytest

from modelglue.mixture.compose import compose
from modelglue.mixture.notation import MixtureKind
from modelglue.recipe.fitting import fitting, misfit

TOKEN = MixtureKind("ffn", input="token", top_k=2)
PROMPTS = {"llama": ["1 + 2"], "mistral": ["the cat sat"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]):
    root = tmp_path_factory.mktemp("models")
    return {
        "llama": make_model(root / "llama"),
        "mistral": make_model(root / "mistral", model_type="mistral", seed=1),
        "qwen2": make_model(root / "qwen2", model_type="qwen2", seed=2),
    }


def test_whom_a_stock_class_takes_may_stand_in_a_mixture(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    found = fitting(folders, TOKEN)
    assert found["llama"] is found["mistral"] is None
    assert "it is a qwen2 model, and the dense one a llama model" in str(found["qwen2"])
    pair = {name: folders[name] for name in PROMPTS}
    assert misfit(pair, folders["llama"], TOKEN) is None
    assert compose(pair, PROMPTS, tmp_path / "out", kind=TOKEN).form == "mixtral"


def test_where_no_stock_class_does_layers_decide(folders: dict[str, Path]) -> None:
    found = fitting(folders, MixtureKind("ffn", input="sample"))
    assert found["llama"] is None
    assert "use B-L-S, whole layers" in str(found["mistral"])
    assert set(fitting(folders, MixtureKind("block")).values()) == {None}


def test_all_stand_in_one_form(
    folders: dict[str, Path], tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    """A Llama whose activation no stock class has is alone with its like, in the other form."""
    odd = {f"odd {n}": make_model(tmp_path / str(n), hidden_act="gelu", seed=n) for n in (3, 4)}
    found = fitting({**odd, "mistral": folders["mistral"]}, TOKEN)
    assert found["odd 3"] is found["odd 4"] is None
    assert "mistral" in str(found["mistral"])
