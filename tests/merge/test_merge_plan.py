"""Every output tensor's sources, shape, dtype and parameters, without a weight read."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hollow
import numpy as np
import pytest
from hollow import llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import (
    CheckpointNotFound,
    InputError,
    MergeError,
    NotMergeable,
    ShapeMismatch,
    UnsupportedCheckpoint,
)
from modelglue.merge.config.schema import parse_config
from modelglue.merge.plan.heads import Heads
from modelglue.merge.plan.merge_plan import MergePlan, Source, TensorPlan, make_plan

UP = "model.layers.{}.mlp.up_proj.weight"


def plan_of(method: str, **config: Any) -> MergePlan:
    return make_plan(parse_config({"merge_method": method, **config}))


def tensor(plan: MergePlan, name: str) -> TensorPlan:
    return next(tensor for tensor in plan.tensors if tensor.name == name)


def sources(plan: MergePlan, name: str) -> list[tuple[str, str]]:
    """(model, tensor) of every source."""
    return [(plan.checkpoint(s).name, s.name) for s in tensor(plan, name).sources]


def piece(model: Path, first: int, last: int, **parameters: Any) -> dict[str, Any]:
    return {"model": str(model), "layer_range": [first, last], "parameters": parameters}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four models of four layers."""
    root = tmp_path_factory.mktemp("zoo")
    return [hollow.save(root / name, 4) for name in "abcd"]


def names(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]


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


# What does not fit


def test_all_models_that_are_not_there_are_told_at_once(zoo: list[Path], tmp_path: Path) -> None:
    gone = [str(tmp_path / name) for name in ("x", "y", "z")]
    with pytest.raises(CheckpointNotFound) as caught:
        plan_of("ties", models=[str(zoo[0]), *gone[:2]], base_model=gone[2])
    assert all(name in str(caught.value) for name in gone)


def test_all_tensors_that_do_not_fit_are_told_at_once(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", 2)
    tensors = hollow.llama(2)
    tensors[UP.format(0)] = (7, 4)
    tensors[UP.format(1)] = (6, 5)
    b = hollow.save(tmp_path / "b", tensors)
    with pytest.raises(ShapeMismatch) as caught:
        plan_of("linear", models=names([a, b]))
    told = str(caught.value)
    assert f"{UP.format(0)}: b has [7, 4], a has [6, 4]" in told
    assert f"{UP.format(1)}: b has [6, 5], a has [6, 4]" in told
    del tensors["model.norm.weight"]
    c = hollow.save(tmp_path / "c", tensors)
    with pytest.raises(MergeError, match=r"norm\.weight: a has it, c lacks it") as mixed:
        plan_of("linear", models=names([a, c]))
    assert "[7, 4]" in str(mixed.value)


def test_a_tensor_that_the_output_would_lose_is_refused(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", 2)
    b = hollow.save(tmp_path / "b", {**hollow.llama(2), "model.layers.1.extra.weight": (2,)})
    with pytest.raises(NotMergeable, match=r"layers\.1\.extra\.weight: b has it, a lacks it"):
        plan_of("linear", models=names([a, b]))
    slices = [{"sources": [piece(a, 1, 2), piece(b, 1, 2)]}]
    with pytest.raises(NotMergeable, match=r"layers\.1\.extra\.weight: b has it"):
        plan_of("linear", slices=slices)
    plan_of("linear", slices=[{"sources": [piece(a, 0, 1), piece(b, 0, 1)]}])


def test_buffers_of_old_files_are_left_out_where_not_all_have_them(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", 1)
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    b = hollow.save(tmp_path / "b", {**hollow.llama(1), buffer: (2,)})
    for models in ([a, b], [b, a]):
        assert buffer not in plan_of("linear", models=names(models)).layout


def test_weights_that_are_no_floats_are_refused_and_masks_copied(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", 1, dtype={UP.format(0): "I8"})
    with pytest.raises(UnsupportedCheckpoint, match="stored as I8"):
        plan_of("linear", models=[str(a)])
    tensors = {**hollow.llama(1), "model.mask": (4,)}
    b = hollow.save(tmp_path / "b", tensors, dtype={"model.mask": "BOOL"})
    assert tensor(plan_of("linear", models=[str(b)], dtype="float32"), "model.mask").copied


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


# The whole


def test_a_plan_describes_every_tensor_as_plain_data(zoo: list[Path]) -> None:
    plan = plan_of("ties", models=names(zoo[:2]), base_model=str(zoo[3]))
    described = json.loads(json.dumps(plan.describe()))
    assert described["bytes_to_read"] == 3 * plan.models[0].nbytes
    assert [model["name"] for model in described["models"]] == ["a", "b", "d"]
    assert described["measured"] == "tensor"
    assert described["bytes_to_write"] == plan.models[0].nbytes
    found = next(t for t in described["tensors"] if t["name"] == UP.format(1))
    assert found["sources"] == [{"model": name, "tensor": UP.format(1)} for name in "ab"]
    assert found["base"] == {"model": "d", "tensor": UP.format(1)}
    assert found["parameters"]["weight"] == [1.0, 1.0]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells private memory")
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_the_memory_that_a_plan_tells_is_about_what_the_merge_takes(
    tmp_path: Path, method: str
) -> None:
    shapes = {f"model.layers.{layer}.up.weight": (3000, 1024) for layer in range(4)}
    numbers = np.random.default_rng(0)
    for name in ("base", "a", "b", "c", "d"):
        file = hollow.save(tmp_path / name, shapes) / "model.safetensors"
        noise = numbers.standard_normal(4 * 3000 * 1024, dtype=np.float32).view(np.uint32) >> 16
        with file.open("r+b") as stream:
            stream.seek(-2 * len(noise), os.SEEK_END)
            stream.write(noise.astype(np.uint16).tobytes())
    config: dict[str, Any] = {"merge_method": method, "models": [*"abcd"]}
    if method != "linear":
        config |= {"base_model": "base", "parameters": {"density": 0.5}}
    program = f"""
import os, threading, time
from pathlib import Path
from modelglue.merge.config.schema import parse_config
from modelglue.merge.engine.stream import execute
from modelglue.merge.plan.merge_plan import make_plan
import modelglue.merge.kernels.loops
def private():
    with open("/proc/self/status") as file:
        return next(int(l.split()[1]) * 1024 for l in file if l.startswith("RssAnon"))
plan = make_plan(parse_config({config!r}, root=Path({str(tmp_path)!r})))
done, peak, start = threading.Event(), [0], private()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], private())
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
execute(plan, Path({str(tmp_path / "out")!r}) / str(os.getpid()), threads=2)
done.set()
watcher.join()
print((peak[0] - start) / plan.describe(threads=2)["memory"])
"""
    (tmp_path / "out").mkdir()
    for _ in range(2):  # the first may compile the loops, which takes more
        run = subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert 0.6 < float(run.stdout) < 1.2


def test_planning_imports_neither_torch_nor_transformers(zoo: list[Path]) -> None:
    program = f"""
import sys
from modelglue.merge.config.schema import parse_config
from modelglue.merge.plan.merge_plan import make_plan
config = {{"merge_method": "slerp", "models": {names(zoo[:2])!r}, "parameters": {{"t": [0, 1]}}}}
make_plan(parse_config(config))
sys.exit(any(name in sys.modules for name in ("torch", "transformers", "numba")))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_tens_of_thousands_of_tensors_are_planned_in_a_moment(tmp_path: Path) -> None:
    tensors = {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight": (1, 1)
        for layer in range(50)
        for expert in range(134)
        for part in ("w1", "w2", "w3")
    }
    models = [hollow.save(tmp_path / name, tensors, num_hidden_layers=50) for name in "abcd"]
    weight = [{"filter": "w1", "value": [0.1, 1]}, {"value": 0.5}]
    config = parse_config(
        {"merge_method": "linear", "models": names(models), "parameters": {"weight": weight}}
    )
    start = time.process_time()
    plan = make_plan(config)
    assert len(plan.tensors) > 20_000
    assert time.process_time() - start < 6


# Settings

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("model_type", ("llama", "mistral")),
        ("architectures", (["LlamaForCausalLM"], ["MistralForCausalLM"])),
        ("num_attention_heads", (4, 8)),
        ("num_key_value_heads", (2, 4)),
        ("head_dim", (8, 4)),
        ("encoder_attention_heads", (4, 2)),
    ],
)
@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_models_whose_entries_mean_different_things_are_refused_unless_that_is_allowed(
    tmp_path: Path, key: str, values: tuple[Any, Any], method: str
) -> None:
    a, b = (hollow.save(tmp_path / n, 4, **HEADS | {key: v}) for n, v in zip("ab", values))
    layers = [{"sources": [piece(a, 0, 2)]}, {"sources": [piece(b, 2, 4)]}]
    what = {"models": names([a, b])} if method == "linear" else {"slices": layers}
    config = parse_config({"merge_method": method, **what})
    with pytest.raises(NotMergeable, match=rf"^{key}: .* in a, .* in b\..*--allow-crimes"):
        make_plan(config)
    (note,) = make_plan(config, allow_crimes=True).notes
    assert key in note


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("rope_theta", (1e4, 5e5)),
        ("hidden_act", ("silu", "gelu")),
        ("sliding_window", (512, 1024)),
        ("rms_norm_eps", (1e-5, 1e-6)),
    ],
)
def test_settings_under_which_weights_are_used_otherwise_are_noted(
    tmp_path: Path, key: str, values: tuple[Any, Any]
) -> None:
    a, b = (hollow.save(tmp_path / n, **{key: v}) for n, v in zip("ab", values))
    (note,) = plan_of("linear", models=names([a, b])).notes
    assert note.startswith("the output's config.json is that of a: ")


def test_what_a_configuration_leaves_out_is_not_compared(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", model_type=None)
    b = hollow.save(tmp_path / "b", rope_theta=1e6, rope_parameters="unknown", **HEADS)
    assert plan_of("linear", models=names([a, b])).notes == ()


def test_a_base_that_only_lends_its_configuration_is_compared_as_well(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", **HEADS)
    b = hollow.save(tmp_path / "b", **HEADS | {"num_attention_heads": 8})
    with pytest.raises(NotMergeable, match="num_attention_heads: 8 in b, 4 in a"):
        plan_of("linear", models=[str(a)], base_model=str(b))


# Problems told once


def test_shapes_that_differ_in_every_layer_are_told_once(tmp_path: Path) -> None:
    wide = {name: (8, 4) if "up_proj" in name else shape for name, shape in llama(4).items()}
    a, b = hollow.save(tmp_path / "a", 4), hollow.save(tmp_path / "b", wide)
    with pytest.raises(ShapeMismatch) as caught:
        plan_of("linear", models=names([a, b]))
    assert str(caught.value).startswith(
        f"{UP.format(0)} (and 3 like it): b has [8, 4], a has [6, 4]."
    )


def test_a_stack_that_is_not_clear_is_told_alone_and_what_to_do_about_it(tmp_path: Path) -> None:
    tensors = {"shared.weight": (8, 4)}
    for stack in ("encoder", "decoder"):
        tensors |= {f"{stack}.block.{i}.layer.0.wi.weight": (4, 4) for i in range(4)}
    model = hollow.save(tmp_path / "t5", tensors, num_layers=4, num_decoder_layers=4)
    with pytest.raises(NotMergeable) as caught:
        plan_of("passthrough", slices=[{"sources": [piece(model, 0, 2)]}])
    assert str(caught.value).startswith("slices: it is not clear which layers of ")
    assert "modules: {encoder: …, decoder: …}" in str(caught.value)


def test_layers_that_a_configuration_cannot_tell_are_told_with_all_else(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", 4, first_k_dense_replace=2)
    wide = {name: (8, 4) if "up_proj" in name else shape for name, shape in llama(4).items()}
    b = hollow.save(tmp_path / "b", wide)
    runs = [[piece(a, 0, 3), piece(b, 0, 3)], [piece(a, 0, 2), piece(b, 0, 2)]]
    with pytest.raises(MergeError) as caught:
        plan_of("linear", slices=[{"sources": run} for run in runs], parameters={"weight": 1})
    assert "up_proj.weight (and 4 like it): b has [8, 4]" in str(caught.value)
    assert "first_k_dense_replace is 2" in str(caught.value)


def test_a_head_without_a_place_is_refused(tmp_path: Path) -> None:
    a = Checkpoint.open(hollow.save(tmp_path / "a"))
    heads = Heads([a], a)
    assert "lm_head.weight: some models have it" in str(heads.lost(["model.norm.weight"]))
    assert heads.lost(a.tensors) is None


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


# Where models are


def test_what_cannot_be_opened_names_its_key_and_all_is_told(
    tmp_path: Path, zoo: list[Path]
) -> None:
    entries = [
        {"model": str(zoo[0]), "parameters": {"statistics": "no-statistics"}},
        {"model": "no-model", "parameters": {"statistics": str(zoo[1])}},
    ]
    config = {"merge_method": "fisher", "models": entries, "tokenizer_source": "no-tokenizer"}
    with pytest.raises(CheckpointNotFound) as caught:
        make_plan(parse_config(config, root=tmp_path))
    told = str(caught.value)
    assert "models[1].model: " in told
    assert "models[0].parameters.statistics: " in told
    assert "no-tokenizer" in told
    slices = [{"sources": [piece(zoo[0], 0, 2)]}, {"sources": [piece(tmp_path / "no", 0, 2)]}]
    with pytest.raises(CheckpointNotFound, match=r"^slices\[1\]\.sources\[0\]\.model: "):
        plan_of("passthrough", slices=slices, base_model=str(zoo[0]))
    with pytest.raises(CheckpointNotFound, match=r"^base_model: "):
        plan_of("linear", models=names(zoo[:2]), base_model=str(tmp_path / "no"))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_a_base_beside_the_configuration_takes_an_adapter_of_the_working_folder(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "here").mkdir()
    base = make_model(tmp_path / "configs" / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "here" / "lora")
    monkeypatch.chdir(tmp_path / "here")
    config = parse_config(
        {"merge_method": "linear", "models": ["base+lora", "base"], "parameters": {"weight": 1}},
        root=tmp_path / "configs",
    )
    assert [model.ref for model in make_plan(config).models] == ["base+lora", "base"]
