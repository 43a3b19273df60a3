"""Inputs of every form, merged on disk, against plain torch on what other libraries load."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import modelglue
import tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

State = dict[str, torch.Tensor]
WEIGHTS = (0.5, 0.2, 0.4)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelglue.merge.chunk.CHUNK", 1000)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and two fine-tunes."""
    root = tmp_path_factory.mktemp("zoo")
    base = tiny.save_model(root / "base", num_hidden_layers=2)
    return [base, *(tiny.save_variant(base, root / f"m{i}", seed=i, scale=0.01) for i in (1, 2))]


def stored(path: Path) -> State:
    """Every tensor in the folder, by the libraries that wrote it."""
    found: State = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for file in sorted(path.glob("*.bin")):
        found |= torch.load(file, weights_only=True)
    return found


def to_bin(source: Path, target: Path, *, shards: int = 1, old: bool = False) -> Path:
    """The same model in pickled files, as older ones have."""
    shutil.copytree(source, target)
    tensors = stored(source)
    (target / "model.safetensors").unlink()
    names = list(tensors)
    if shards == 1:
        save = {"_use_new_zipfile_serialization": not old}
        torch.save(tensors, target / "pytorch_model.bin", **save)
        return target
    placed = {name: f"pytorch_model-0000{i % shards}.bin" for i, name in enumerate(names)}
    for file in set(placed.values()):
        torch.save({n: tensors[n] for n in names if placed[n] == file}, target / file)
    index = {"metadata": {}, "weight_map": placed}
    (target / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return target


def to_shards(source: Path, target: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    model.save_pretrained(target, max_shard_size="30KB")
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    assert len(list(target.glob("*.safetensors"))) > 2
    return target


def recast(source: Path, target: Path, dtype: torch.dtype) -> Path:
    shutil.copytree(source, target)
    tensors = {name: tensor.to(dtype) for name, tensor in stored(source).items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def arithmetic(base: str, *models: str, **more: Any) -> dict[str, Any]:
    entries = [
        {"model": model, "parameters": {"weight": weight}} for model, weight in zip(models, WEIGHTS)
    ]
    return {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": entries,
        "dtype": "float32",
        **more,
    }


def expected(base: State, *models: State) -> State:
    found = {}
    for name, start in base.items():
        deltas = [w * (m[name].double() - start.double()) for w, m in zip(WEIGHTS, models)]
        found[name] = start.double() + sum(deltas)
    return found


def assert_close(out: Path, oracle: State, *, atol: float = 1e-6) -> None:
    written = stored(out)
    assert written.keys() == oracle.keys()
    for name, tensor in oracle.items():
        assert written[name].dtype == torch.float32
        torch.testing.assert_close(written[name].double(), tensor, rtol=0, atol=atol, msg=name)
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


# Files


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "bin": to_bin,
    "old bin": lambda a, b: to_bin(a, b, old=True),
    "bin shards": lambda a, b: to_bin(a, b, shards=3),
    "shards": to_shards,
}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_any_form_merge_as_one_file_does(
    form: str, zoo: list[Path], tmp_path: Path
) -> None:
    changed = [FORMS[form](path, tmp_path / path.name) for path in zoo]
    oracle = expected(*map(stored, changed))
    out = modelglue.merge(arithmetic(*map(str, changed)), tmp_path / "out")
    assert_close(out, oracle)
    mixed = [zoo[0], changed[1], zoo[2]]
    again = modelglue.merge(arithmetic(*map(str, mixed)), tmp_path / "mixed")
    first, second = stored(out), stored(again)
    assert all(torch.equal(first[name], second[name]) for name in oracle)
    assert_close(again, oracle)


def test_tensors_that_are_views_of_others_are_merged_as_they_are_indexed(
    zoo: list[Path], tmp_path: Path
) -> None:
    odd = to_bin(zoo[1], tmp_path / "odd")
    tensors = stored(odd)
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            tensors[name] = tensor.T.contiguous().T  # columns lie together
    torch.save(tensors, odd / "pytorch_model.bin")
    out = modelglue.merge(arithmetic(*map(str, [zoo[0], odd, zoo[2]])), tmp_path / "out")
    assert_close(out, expected(*map(stored, zoo)))


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_dtypes_may_differ_from_model_to_model(
    method: str, zoo: list[Path], tmp_path: Path
) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    models = [recast(p, tmp_path / p.name, dtype) for p, dtype in zip(zoo, dtypes)]
    config = arithmetic(*map(str, models), merge_method=method)
    del config["dtype"]
    out = modelglue.merge(config, tmp_path / "out")
    oracle = expected(*map(stored, models))
    if method == "ties":  # nothing trimmed: what agrees in sign, averaged
        for name, start in stored(models[0]).items():
            terms = torch.stack(
                [
                    w * (stored(m)[name].double() - start.double())
                    for w, m in zip(WEIGHTS, models[1:])
                ]
            )
            agree = terms * torch.where(terms.sum(0) >= 0, 1.0, -1.0) > 0
            weights = torch.tensor(WEIGHTS[:2]).double().reshape(-1, *[1] * start.dim())
            total = (agree * weights).sum(0)
            mean = (terms * agree).sum(0) / torch.where(total > 0, total, 1.0)
            oracle[name] = start.double() + mean
    assert_close(out, oracle)


def test_dtypes_may_differ_from_tensor_to_tensor(zoo: list[Path], tmp_path: Path) -> None:
    kinds = [torch.bfloat16, torch.float32, torch.float16]
    models = []
    for shift, path in enumerate(zoo):
        shutil.copytree(path, tmp_path / path.name)
        tensors = {
            name: tensor.to(kinds[(i + shift) % 3])
            for i, (name, tensor) in enumerate(stored(path).items())
        }
        models.append(tmp_path / path.name)
        save_file(tensors, models[-1] / "model.safetensors", metadata={"format": "pt"})
    out = modelglue.merge(arithmetic(*map(str, models)), tmp_path / "out")
    assert_close(out, expected(*map(stored, models)))


# Adapters


def save_adapter(base: Path, folder: Path, seed: int, **settings: Any) -> State:
    """A random adapter; returns what peft makes of it and the base."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], **settings}
    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        adapted.save_pretrained(folder)
        merged = adapted.merge_and_unload().state_dict()
    return {name: tensor.clone() for name, tensor in merged.items()}


def test_adapters_are_merged_as_the_models_that_peft_makes_of_them(
    zoo: list[Path], tmp_path: Path
) -> None:
    base, other, _ = zoo
    one = save_adapter(base, tmp_path / "one", 1)
    two = save_adapter(other, tmp_path / "two", 2, target_modules=["down_proj"], use_rslora=True)
    references = [f"{base}+{tmp_path / 'one'}", f"{other}+{tmp_path / 'two'}"]
    out = modelglue.merge(arithmetic(str(base), *references), tmp_path / "out")
    assert_close(out, expected(stored(base), one, two))
    again = modelglue.merge(arithmetic(references[0], references[1]), tmp_path / "again")
    assert_close(again, expected(one, two))


def test_two_adapters_on_one_base_are_two_models(zoo: list[Path], tmp_path: Path) -> None:
    base = zoo[0]
    states = [save_adapter(base, tmp_path / name, i) for i, name in enumerate("ab")]
    config = {
        "merge_method": "slerp",
        "models": [f"{base}+{tmp_path / name}" for name in "ab"],
        "parameters": {"t": 0.3},
        "dtype": "float32",
    }
    out = modelglue.merge(config, tmp_path / "out")
    oracle = {}
    for name in stored(base):
        a, b = (state[name].double() for state in states)
        cosine = float((a * b).sum() / (a.norm() * b.norm()))
        if cosine > 0.9995:
            oracle[name] = 0.7 * a + 0.3 * b
        else:
            angle = torch.tensor(cosine).double().arccos()
            ends = ((0.7 * angle).sin() * a + (0.3 * angle).sin() * b) / angle.sin()
            oracle[name] = ends
    assert_close(out, oracle)


def test_a_merge_with_an_adapter_writes_nothing_but_the_merge(
    zoo: list[Path], tmp_path: Path
) -> None:
    save_adapter(zoo[0], tmp_path / "adapter", 1)
    before = sorted(path for path in tmp_path.rglob("*"))
    reference = f"{zoo[0]}+{tmp_path / 'adapter'}"
    modelglue.merge(arithmetic(str(zoo[0]), reference), tmp_path / "merged" / "out")
    shutil.rmtree(tmp_path / "merged")
    assert sorted(path for path in tmp_path.rglob("*")) == before


# Heads (mixed ones stand in test_merge_stacked and test_merge_executors)


def tied(path: Path, seed: int, *, head: str = "") -> Path:
    """A tied model; `head`: a stored copy of the embedding, or one that differs."""
    tiny.save_model(path, seed=seed, tie_word_embeddings=True, num_hidden_layers=1)
    tensors = load_file(path / "model.safetensors")
    if head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if head == "other":
            tensors["lm_head.weight"] += 0.5
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def linear(*models: Path) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [str(path) for path in models]}


@pytest.mark.parametrize("copies", [("", ""), ("copy", ""), ("", "copy"), ("copy", "copy")])
def test_tied_models_stay_tied_though_some_store_a_copy(
    copies: tuple[str, str], tmp_path: Path
) -> None:
    models = [tied(tmp_path / str(i), i, head=head) for i, head in enumerate(copies)]
    out = modelglue.merge(linear(*models), tmp_path / "out")
    written = stored(out)
    name = "model.embed_tokens.weight"
    a, b = (stored(path)[name] for path in models)
    assert torch.allclose(written[name], (a + b) / 2, atol=1e-7)
    assert torch.equal(written.get("lm_head.weight", written[name]), written[name])
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.config.tie_word_embeddings is True
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_stored_head_that_differs_under_a_config_that_ties_is_merged(
    order: tuple[int, int], tmp_path: Path
) -> None:
    models = [tied(tmp_path / "a", 0, head="other"), tied(tmp_path / "b", 1)]
    out = modelglue.merge(linear(*(models[i] for i in order)), tmp_path / "out")
    a, b = map(stored, models)
    head = (a["lm_head.weight"] + b["model.embed_tokens.weight"]) / 2
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.allclose(loaded.lm_head.weight, head, atol=1e-6)
    embedding = (a["model.embed_tokens.weight"] + b["model.embed_tokens.weight"]) / 2
    assert torch.allclose(loaded.model.embed_tokens.weight, embedding, atol=1e-6)


# Architectures by the names of their tensors alone

FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "decoder_sparse_step": 1,
    },
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4},
    "gpt_neox": {},
    "gemma3_text": {"head_dim": 8},
    "bloom": {"n_layer": 2, "n_head": 4},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_architectures_that_nobody_listed_merge_by_name(family: str, tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, **FAMILIES[family]}
    models = [
        tiny.save_model(tmp_path / name, seed=seed, model_type=family, **sizes)
        for seed, name in enumerate(("base", "one", "two"))
    ]
    out = modelglue.merge(arithmetic(*map(str, models)), tmp_path / "out")
    states = list(map(stored, models))
    if "num_experts_per_tok" in sizes:
        assert sum("expert" in name for name in states[0]) > 6
    assert_close(out, expected(*states), atol=2e-6)
