"""Statistics in a plan: beside their models, of those models, of the right kind."""

import time
from pathlib import Path
from typing import Any

import hollow
import pytest
from hollow import llama
from plans import UP, names, plan_of, tensor

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import (
    InputError,
    NotMergeable,
)
from modelglue.merge.plan.merge_plan import Source

# Statistics


def test_statistics_lie_beside_their_models(tmp_path: Path, zoo: list[Path]) -> None:
    grams = {UP.format(layer): (4, 4) for layer in range(4)}
    stats = [hollow.save(tmp_path / f"s{i}", grams, dtype="F32") for i in range(2)]
    entries = [
        {"model": str(model), "parameters": {"statistics": str(path)}}
        for model, path in zip(zoo, stats, strict=False)
    ]
    plan = plan_of("regmean", models=entries)
    assert tensor(plan, UP.format(2)).statistics == (
        Source(0, UP.format(2)),
        Source(1, UP.format(2)),
    )
    assert tensor(plan, "model.norm.weight").statistics == (None, None)
    assert [checkpoint.name for checkpoint in plan.statistics] == ["s0", "s1"]
    fewer = hollow.save(tmp_path / "fewer", {UP.format(0): (4, 4), UP.format(1): (5, 5)})
    entries[1]["parameters"] = {"statistics": str(fewer)}
    with pytest.raises(InputError) as caught:
        plan_of("regmean", models=entries)
    assert "the statistics of b lack it" in str(caught.value)
    assert "the statistics of b have [5, 5], it needs [4, 4]" in str(caught.value)


# Statistics that fit


def of_kind(path: Path, kind: str, tensors: dict[str, tuple[int, ...]], **config: Any) -> Path:
    return hollow.save(path, tensors, dtype="F32", kind=kind, **config)


def with_statistics(pairs: list[tuple[Path, Path]]) -> list[dict[str, Any]]:
    return [{"model": str(m), "parameters": {"statistics": str(s)}} for m, s in pairs]


def test_statistics_of_another_model_are_refused_where_that_is_known(tmp_path: Path) -> None:
    a, b = (hollow.save(tmp_path / name, rope_theta=theta) for name, theta in zip("ab", (1.0, 2.0)))
    time.sleep(0.1)  # younger files are not remembered
    prints = {model: Checkpoint.open(model).fingerprint() for model in (a, b)}
    kept = {
        model: of_kind(tmp_path / f"of-{model.name}", "fisher", llama(2), model=prints[model])
        for model in (a, b)
    }
    plan_of("fisher", models=with_statistics([(a, kept[a]), (b, kept[b])]))
    with pytest.raises(NotMergeable) as caught:
        plan_of("fisher", models=with_statistics([(a, kept[b]), (b, kept[a])]))
    assert "of-b holds the statistics of another model than a" in str(caught.value)
    assert "of-a holds the statistics of another model than b" in str(caught.value)


def test_statistics_of_a_model_that_nobody_has_read_are_noted(tmp_path: Path) -> None:
    a, b = (hollow.save(tmp_path / name) for name in "ab")
    kept = [of_kind(tmp_path / f"of-{m}", "fisher", llama(2), model="0" * 64) for m in "ab"]
    plan = plan_of("fisher", models=with_statistics([(a, kept[0]), (b, kept[1])]))
    assert [note for note in plan.notes if "of-a holds the statistics of a is not checked" in note]


def test_statistics_of_the_wrong_kind_are_told_once_each(tmp_path: Path, zoo: list[Path]) -> None:
    grams = {name: (s[-1], s[-1]) for name, s in llama(4).items() if len(s) == 2}
    kept = [of_kind(tmp_path / f"of-{n}", "gram", grams) for n in "ab"]
    with pytest.raises(NotMergeable) as caught:
        plan_of("fisher", models=with_statistics(list(zip(zoo[:2], kept, strict=True))))
    assert str(caught.value).count("holds statistics of kind gram") == 2
    assert str(caught.value).startswith("2 problems")


def test_matrices_that_are_stored_transposed_are_told_once_a_model(
    tmp_path: Path, zoo: list[Path]
) -> None:
    grams = {UP.format(layer): (6, 6) for layer in range(4)}
    kept = [of_kind(tmp_path / f"of-{n}", "gram", grams, transposed=[*grams]) for n in "ab"]
    with pytest.raises(NotMergeable) as caught:
        plan_of("regmean", models=with_statistics(list(zip(zoo[:2], kept, strict=True))))
    assert str(caught.value).startswith("2 problems")
    assert f"a stores 4 matrices as [in, out], such as {UP.format(0)}" in str(caught.value)


def test_the_head_of_a_tied_and_an_untied_model_has_no_gram_and_is_averaged(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", 2)
    b = hollow.save(tmp_path / "b", 2, tie_word_embeddings=True)
    grams = {name: (s[-1], s[-1]) for name, s in llama(2).items() if "proj" in name}
    kept = [
        of_kind(tmp_path / "of-a", "gram", grams | {"lm_head.weight": (4, 4)}),
        of_kind(tmp_path / "of-b", "gram", grams),
    ]
    plan = plan_of("regmean", models=with_statistics([(a, kept[0]), (b, kept[1])]))
    assert not any(tensor(plan, "lm_head.weight").statistics)
    assert any(tensor(plan, UP.format(0)).statistics)
    (note,) = plan.notes
    assert note.startswith("lm_head.weight: b has it tied to its embedding")


def test_bytes_of_statistics_are_read_as_well(tmp_path: Path, zoo: list[Path]) -> None:
    kept = [of_kind(tmp_path / f"of-{n}", "fisher", llama(4)) for n in "ab"]
    without = plan_of("linear", models=names(zoo[:2])).bytes_to_read
    pairs = with_statistics(list(zip(zoo[:2], kept, strict=True)))
    assert plan_of("fisher", models=pairs).bytes_to_read == 3 * without  # of 4 bytes against 2
