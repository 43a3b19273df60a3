"""Fisher and Gram statistics of real tiny models, against naive loops."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from modelglue.calibrate import targets
from modelglue.calibrate.compute import compute_statistics
from modelglue.calibrate.fisher import diagonal_fisher, draw
from modelglue.calibrate.gram import batches, input_grams
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import ConfigError, EvaluationError, InputError, OutputExists

Make = Callable[..., Path]
TEXTS = ["the sky is blue today", "two and two make four", "glue", "a rather longer document " * 4]
SMALL = {"num_hidden_layers": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}
MOE = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}


def _read(path: Path) -> dict[str, torch.Tensor]:
    with Checkpoint.open(path) as found:
        return {name: found.read(name) for name in found.tensors}


def _rows(model: Path, length: int = 512) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole = [tokenizer(text).input_ids for text in TEXTS]
    return [row[i : i + length] for row in whole for i in range(0, len(row), length)]


def _naive_fisher(model: Path) -> dict[str, torch.Tensor]:
    """Squares of whole-model gradients, text after text, by the model's own loss."""
    live = AutoModelForCausalLM.from_pretrained(model).eval()
    squares = {name: torch.zeros_like(p) for name, p in live.named_parameters()}
    predicted = 0
    for row in _rows(model):
        ids = torch.tensor([row])
        live.zero_grad()
        # The loss is a mean over the predicted tokens.
        (live(ids, labels=ids).loss * (len(row) - 1)).backward()
        predicted += len(row) - 1
        for name, parameter in live.named_parameters():
            if parameter.grad is not None:
                squares[name] += parameter.grad**2
    return {name: square / predicted for name, square in squares.items()}


def _naive_grams(model: Path, length: int = 512) -> dict[str, torch.Tensor]:
    """All inputs of all linear layers kept, row after row, then one product in double precision."""
    live = AutoModelForCausalLM.from_pretrained(model).eval()
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in live.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            module.register_forward_hook(
                lambda _module, given, _output, name=name: seen.setdefault(name, []).append(
                    given[0].detach().flatten(0, -2).double()
                )
            )
    for row in _rows(model, length):
        live(torch.tensor([row]))
    inputs = {name: torch.cat(rows) for name, rows in seen.items()}
    return {f"{name}.weight": x.T @ x / len(x) for name, x in inputs.items()}


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_empirical_fisher_is_the_mean_square_of_whole_model_gradients(
    model_type: str, tmp_path: Path, make_model: Make
) -> None:
    sizes = GPT2 if model_type == "gpt2" else SMALL
    model = make_model(tmp_path / "model", model_type=model_type, **sizes)
    # So little memory that every tensor is computed in a pass of its own.
    out = compute_statistics(model, TEXTS, tmp_path / "out", kind="fisher", labels="text", memory=1)
    found, expected = _read(out), _naive_fisher(model)
    assert set(found) == set(Checkpoint.open(model).tensors)  # a tied head counts once
    for name, values in found.items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-9)


def test_fisher_with_drawn_labels_nears_the_exact_expectation() -> None:
    """On a model small enough to sum over all labels: logits = a row of one matrix a token."""
    torch.manual_seed(0)

    class Table(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(3, 3))

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
            return type("Output", (), {"logits": self.table[input_ids]})

    model = Table()
    draws = 4000
    [found] = diagonal_fisher(model, [model.table], [(0, 1, 0, 2)] * draws, seed=3)
    expected = torch.zeros(3, 3)
    for token in (0, 1, 0):
        p = model.table[token].detach().softmax(-1)
        # E over labels of (onehot − p)² is p(1 − p), coordinate by coordinate.
        expected[token] += p * (1 - p) / 3
    torch.testing.assert_close(found, expected, rtol=0.06, atol=0.01)
    assert found[2].eq(0).all()  # the last token predicts nothing


def test_labels_are_drawn_by_their_probability_and_their_key() -> None:
    logits = torch.tensor([0.5, 0.2, 0.0, 0.3]).log().expand(20_000, 4)
    drawn = draw(logits, (0, 0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.2, 0.0, 0.3]), atol=0.015, rtol=0)
    assert torch.equal(drawn, draw(logits, (0, 0)))
    assert not torch.equal(drawn, draw(logits, (0, 1)))
    assert not torch.equal(drawn, draw(logits, (1, 0)))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_gram_matrices_are_those_of_all_inputs_at_once(
    model_type: str, tmp_path: Path, make_model: Make
) -> None:
    sizes = GPT2 if model_type == "gpt2" else SMALL
    model = make_model(tmp_path / "model", model_type=model_type, **sizes)
    out = compute_statistics(
        model, TEXTS, tmp_path / "out", kind="gram", max_length=16, batch_size=2, memory=40_000
    )
    found, expected = _read(out), _naive_grams(model, 16)
    assert found
    for name, gram in found.items():
        weight = Checkpoint.open(model).spec(name).shape
        inputs = weight[0] if model_type == "gpt2" and "lm_head" not in name else weight[1]
        assert gram.shape == (inputs, inputs)
        torch.testing.assert_close(gram, expected[name].float(), rtol=1e-4, atol=1e-6)
    config = Checkpoint.open(out).config
    assert config["transposed"] == (sorted(found) if model_type == "gpt2" else [])
    # GPT-2's head is its embedding: what stores no head of its own gets no matrix for it.
    assert "transformer.wte.weight" not in found


def test_regmean_with_these_matrices_solves_least_squares_on_all_data() -> None:
    """One layer, two models, each exact on its own data: the merge fits both best."""
    rng = np.random.default_rng(0)

    class Layer(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(5, 3, bias=False)

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> None:
            self.linear(inputs[input_ids])

    x = [rng.normal(size=(40, 5)), rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))]
    weights = [rng.normal(size=(3, 5)), rng.normal(size=(3, 5))]
    total, weighted = np.zeros((5, 5)), np.zeros((5, 3))
    for rows, weight in zip(x, weights):
        inputs = torch.tensor(rows, dtype=torch.float32)
        layer = Layer()
        batched = batches([tuple(range(len(rows)))], 1)
        [gram] = input_grams(layer, [(layer.linear,)], batched)
        assert gram is not None
        # The matrices are means, the data sets differ in size.
        total += gram.double().numpy() * len(rows)
        weighted += gram.double().numpy() @ weight.T * len(rows)
    merged = np.linalg.solve(total, weighted)
    targets = np.concatenate([rows @ weight.T for rows, weight in zip(x, weights)])
    expected = np.linalg.lstsq(np.concatenate(x), targets, rcond=None)[0]
    np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_how_tensors_are_grouped_changes_no_bit(kind: str, tmp_path: Path, llamas: list) -> None:
    outs = [
        compute_statistics(llamas[0], TEXTS, tmp_path / str(memory), kind=kind, memory=memory)
        for memory in (1, 60_000, 1 << 30)
    ]
    first, *others = [(out / "model.safetensors").read_bytes() for out in outs]
    assert all(other == first for other in others)


def test_the_result_says_what_it_was_computed_from(tmp_path: Path, llamas: list[Path]) -> None:
    out = compute_statistics(llamas[0], TEXTS, tmp_path / "out", kind="fisher", tokens=30)
    config = Checkpoint.open(out).config
    assert config["kind"] == "fisher"
    assert config["model"] == Checkpoint.open(llamas[0]).fingerprint()
    assert (config["labels"], config["seed"]) == ("model", 0)
    assert config["tokens"] == 30
    assert config["skipped"] == {}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_stored_head_of_a_tied_model_gets_the_statistic_of_both(
    tmp_path: Path, make_model: Make
) -> None:
    model = make_model(tmp_path / "model", tie_word_embeddings=True, **SMALL)
    file = model / "model.safetensors"
    tensors = load_file(file)
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        file,
        metadata={"format": "pt"},
    )
    found = _read(compute_statistics(model, TEXTS, tmp_path / "f", kind="fisher", labels="text"))
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    expected = _naive_fisher(model)["model.embed_tokens.weight"]
    torch.testing.assert_close(found["lm_head.weight"], expected, rtol=1e-4, atol=1e-9)
    grams = Checkpoint.open(compute_statistics(model, TEXTS, tmp_path / "g", kind="gram"))
    assert "lm_head.weight" not in grams.tensors
    assert ["lm_head.weight", "model.embed_tokens.weight"] in [
        sorted(names) for names in grams.config["skipped"].values()
    ]


def test_names_without_the_models_prefix_are_found(tmp_path: Path, make_model: Make) -> None:
    """As OpenAI's GPT-2 is stored."""
    model = make_model(tmp_path / "model", model_type="gpt2", **GPT2)
    whole = _read(compute_statistics(model, TEXTS, tmp_path / "whole", kind="fisher"))
    file = model / "model.safetensors"
    stripped = {n.removeprefix("transformer."): t for n, t in load_file(file).items()}
    save_file(stripped, file, metadata={"format": "pt"})
    found = _read(compute_statistics(model, TEXTS, tmp_path / "out", kind="fisher"))
    assert set(found) == set(stripped)
    assert all(torch.equal(found[n.removeprefix("transformer.")], t) for n, t in whole.items())


def test_experts_fused_in_memory_have_their_fisher_under_their_own_names(
    tmp_path: Path, make_model: Make
) -> None:
    model = make_model(tmp_path / "model", model_type="mixtral", **MOE)
    found = _read(compute_statistics(model, TEXTS, tmp_path / "f", kind="fisher", labels="text"))
    specs = Checkpoint.open(model).tensors
    assert {n: tuple(t.shape) for n, t in found.items()} == {n: s.shape for n, s in specs.items()}
    fused = _naive_fisher(model)["model.layers.1.mlp.experts.gate_up_proj"]
    expert = "model.layers.1.block_sparse_moe.experts.2"
    both = torch.cat([found[f"{expert}.w1.weight"], found[f"{expert}.w3.weight"]])
    torch.testing.assert_close(both, fused[2], rtol=1e-4, atol=1e-9)


def test_fused_experts_have_no_gram_matrix_and_are_named(tmp_path: Path, make_model: Make) -> None:
    model = make_model(tmp_path / "model", model_type="mixtral", **MOE)
    grams = Checkpoint.open(compute_statistics(model, TEXTS, tmp_path / "g", kind="gram"))
    skipped = {name for names in grams.config["skipped"].values() for name in names}
    assert "model.layers.0.self_attn.q_proj.weight" in grams.tensors
    experts = {name for name in Checkpoint.open(model).tensors if "block_sparse_moe" in name}
    assert skipped == experts


def test_what_no_token_reached_has_zeros_and_is_named(tmp_path: Path, make_model: Make) -> None:
    model = make_model(tmp_path / "model", model_type="mixtral", **{**MOE, "num_local_experts": 8})
    fisher = Checkpoint.open(compute_statistics(model, ["ab"], tmp_path / "f", kind="fisher"))
    unreached = fisher.config["unreached"]
    assert any("experts" in name for name in unreached)
    for name in fisher.tensors:
        assert (name in unreached) == (not fisher.read(name).any())


def test_a_weight_that_the_live_model_changed_gets_no_statistic(
    tmp_path: Path, make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model", **SMALL)
    changed = "model.layers.1.mlp.up_proj.weight"
    load = AutoModelForCausalLM.from_pretrained

    def meddling(*args: object, **keywords: object) -> object:
        loaded = load(*args, **keywords)
        with torch.no_grad():
            loaded[0].get_parameter(changed)[3, 3] += 1
        return loaded

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", meddling)
    for kind in ("fisher", "gram"):
        out = Checkpoint.open(compute_statistics(model, TEXTS, tmp_path / kind, kind=kind))
        assert changed not in out.tensors
        assert list(out.config["skipped"].values()) == [[changed]]


def test_a_weight_that_is_loaded_with_an_offset_gets_no_statistic(
    tmp_path: Path, make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its way back gives the stored values, but is no way for statistics to go."""
    model = make_model(tmp_path / "model", **SMALL)
    name = "model.layers.0.input_layernorm.weight"  # ones: exact with the offset and without
    load, back = AutoModelForCausalLM.from_pretrained, targets.revert_weight_conversion

    def load_less_one(*args: object, **keywords: object) -> object:
        loaded = load(*args, **keywords)
        with torch.no_grad():
            loaded[0].get_parameter(name).sub_(1)
        return loaded

    def back_plus_one(live: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = back(live, tensors)
        return {n: tensor + 1 if n == name else tensor for n, tensor in found.items()}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load_less_one)
    monkeypatch.setattr(targets, "revert_weight_conversion", back_plus_one)
    out = Checkpoint.open(compute_statistics(model, TEXTS, tmp_path / "out", kind="fisher"))
    assert list(out.config["skipped"].values()) == [[name]]


def test_an_adapter_on_its_base_is_measured_as_one_model(
    tmp_path: Path, llamas: list[Path]
) -> None:
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(llamas[0]), settings)
        wrapped.save_pretrained(tmp_path / "adapter")
        merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(llamas[0]).save_pretrained(tmp_path / "merged")
    ref = f"{llamas[0]}+{tmp_path / 'adapter'}"
    found = _read(compute_statistics(ref, TEXTS, tmp_path / "out", kind="gram"))
    expected = _read(compute_statistics(tmp_path / "merged", TEXTS, tmp_path / "e", kind="gram"))
    for name, gram in found.items():
        torch.testing.assert_close(gram, expected[name], rtol=1e-4, atol=1e-6)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_cannot_be_used_is_refused(tmp_path: Path, llamas: list[Path]) -> None:
    model, out = llamas[0], tmp_path / "out"
    with pytest.raises(ConfigError, match="2 problems") as wrong:
        compute_statistics(model, TEXTS, out, kind="hessian", max_length=1)  # type: ignore[arg-type]
    assert "fisher, gram" in str(wrong.value)
    with pytest.raises(InputError, match="no sequence"):
        compute_statistics(model, ["a"], out, kind="gram")
    out.mkdir()
    with pytest.raises(OutputExists):
        compute_statistics(model, TEXTS, out, kind="gram")


def test_a_statistic_that_is_not_finite_names_its_tensor(tmp_path: Path, make_model: Make) -> None:
    model = make_model(tmp_path / "model", **SMALL)
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(EvaluationError, match=r"self_attn.*not finite"):
        compute_statistics(model, TEXTS, tmp_path / "out", kind="gram", memory=1)
    assert not (tmp_path / "out").exists()
