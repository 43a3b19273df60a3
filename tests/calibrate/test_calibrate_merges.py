"""From text to a merged model: statistics named in a configuration, as a user would."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelglue.calibrate.compute import compute_statistics
from modelglue.checkpoint.reader import Checkpoint
from modelglue.merge.run import merge

TEXTS = (
    ["two and two make four", "three and three make six", "seven less one is six"],
    ["print('hello')", "for i in range(3): pass", "def glue(): return None"],
)
CONFIG = """\
merge_method: {method}
models:
  - model: {models[1]}
    parameters: {{weight: 1, statistics: maths.{kind}}}
  - model: {models[2]}
    parameters: {{weight: 3, statistics: code.{kind}}}
dtype: float32
"""


def _merged(tmp_path: Path, models: list[Path], method: str, kind: str) -> Path:
    for name, model, texts in zip(("maths", "code"), models[1:], TEXTS):
        compute_statistics(model, texts, tmp_path / f"{name}.{kind}", kind=kind)
    (tmp_path / "merge.yaml").write_text(CONFIG.format(method=method, kind=kind, models=models))
    return merge(tmp_path / "merge.yaml", tmp_path / "merged")


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    found = Checkpoint.open(folder)
    return {name: found.read(name).double().numpy() for name in found.tensors}


@pytest.fixture
def inputs(llamas: list[Path]) -> list[dict[str, np.ndarray]]:
    return [_arrays(model) for model in llamas[1:3]]


def _generates(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer("two and", return_tensors="pt")
    with torch.inference_mode():
        answer = model.generate(**asked, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert answer.shape[1] == asked["input_ids"].shape[1] + 5


def test_a_fisher_merge_of_two_models_by_a_configuration(
    tmp_path: Path, llamas: list[Path], inputs: list[dict[str, np.ndarray]]
) -> None:
    out = _merged(tmp_path, llamas, "fisher", "fisher")
    shares = [_arrays(tmp_path / "maths.fisher"), _arrays(tmp_path / "code.fisher")]
    for name, found in _arrays(out).items():
        (a, b), (f, g) = (x[name] for x in inputs), (np.maximum(x[name], 1e-20) for x in shares)
        np.testing.assert_allclose(found, (f * a + 3 * g * b) / (f + 3 * g), rtol=1e-5, atol=1e-8)
    _generates(out)


def test_a_regmean_merge_of_two_models_by_a_configuration(
    tmp_path: Path, llamas: list[Path], inputs: list[dict[str, np.ndarray]]
) -> None:
    out = _merged(tmp_path, llamas, "regmean", "gram")
    grams = [_arrays(tmp_path / "maths.gram"), _arrays(tmp_path / "code.gram")]
    found = _arrays(out)
    layers = {name for name in found if "_proj" in name or name == "lm_head.weight"}
    assert layers == set(grams[0])
    for name in found:
        a, b = (x[name] for x in inputs)
        if name not in layers:
            np.testing.assert_allclose(found[name], (a + 3 * b) / 4, rtol=1e-5, atol=1e-7)
            continue
        g, h = (
            weight * np.where(np.eye(len(x[name])) > 0, x[name], 0.9 * x[name])
            for weight, x in zip((1, 3), grams)
        )
        expected = np.linalg.solve(g + h, g @ a.T + h @ b.T).T
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-4)
        assert np.abs(found[name] - (a + 3 * b) / 4).max() > 2e-4  # not the mean in disguise
    _generates(out)
