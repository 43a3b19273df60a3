"""What a merge of models with other tokens shall be, and what configurations ask for it.

The oracle walks over the tokens of the tokenizer that was written, as transformers has it, and
follows the rules in words: a model's own row, else the loan.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "the cat<|im_start|>sat  on<tool> the<|im_end|>mat gallia"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Side:
    """One model as the oracle sees it."""

    def __init__(self, path: Path) -> None:
        self.vocab = AutoTokenizer.from_pretrained(path).get_vocab()
        self.tensors = load_file(path / "model.safetensors")

    def row(self, name: str, token: str) -> np.ndarray | None:
        number = self.vocab.get(token)
        tensor = self.tensors.get(name, self.tensors[EMBEDDING])
        return None if number is None or number >= len(tensor) else tensor[number]


def check(
    out: Path,
    models: Mapping[str, Side],
    base: str | None,
    combine: Callable[[list[np.ndarray], np.ndarray | None], np.ndarray],
    lent: Mapping[str, Callable[[str], np.ndarray]] | None = None,
    forced: tuple[str, ...] = (),
) -> Side:
    """Every token's row in embedding and head against the rules; everything else is Python's."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    written = load_file(out / "model.safetensors")
    for name in {EMBEDDING, HEAD} & written.keys():
        for token, number in tokenizer.get_vocab().items():
            rows = {key: side.row(name, token) for key, side in models.items()}
            have = [row for row in rows.values() if row is not None]
            if lent and token in lent:
                loan = lent[token](name)
            elif base is not None and rows[base] is not None:
                loan = rows[base]
            elif have:
                loan = np.mean(have, axis=0)
            else:
                loan = np.zeros(written[name].shape[1])
            for key, row in rows.items():
                if row is None or token in forced:
                    rows[key] = loan
            expected = combine(
                [row for key, row in rows.items() if key != base], rows[base] if base else None
            )
            np.testing.assert_allclose(written[name][number], expected, atol=1e-6, err_msg=token)
    return Side(out)


def task_arithmetic(weight: float) -> Callable[[list[np.ndarray], np.ndarray | None], np.ndarray]:
    return lambda rows, base: base + sum(weight * (row - base) for row in rows)


def average(rows: list[np.ndarray], _base: np.ndarray | None) -> np.ndarray:
    return np.mean(rows, axis=0)


def arithmetic(zoo: Mapping[str, Path], *names: str, base: str = "base", **more: Any) -> Any:
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(zoo[base]),
        "models": [{"model": str(zoo[n]), "parameters": {"weight": 0.5}} for n in names],
        "dtype": "float32",
        **more,
    }


def linear(zoo: Mapping[str, Path], *names: str, **more: Any) -> Any:
    models = [{"model": str(zoo[name]), "parameters": {"weight": 1.0}} for name in names]
    return {"merge_method": "linear", "models": models, "dtype": "float32", **more}


def sides(zoo: Mapping[str, Path], *names: str) -> dict[str, Side]:
    return {name: Side(zoo[name]) for name in names}


def runs(out: Path) -> list[str]:
    """The model that was written takes every token that its tokenizer writes."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings
    assert len(tokenizer) <= model.config.vocab_size
    logits = model(tokenizer(TEXT, return_tensors="pt").input_ids).logits
    assert bool(logits.isfinite().all())
    return tokenizer.tokenize(TEXT)
