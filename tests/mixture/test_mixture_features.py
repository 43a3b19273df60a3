"""A prompt's feature: against a naive mean, and the same in every batch."""

import pytest
import torch
from mixture_samples import QUESTIONS
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelglue.errors import MixtureError
from modelglue.mixture.features import Feature, open_encoder


def naive_feature(path, prompt, layer):
    """One prompt at a time, all layers, states as transformers returns them."""
    model = AutoModelForCausalLM.from_pretrained(path)
    ids = AutoTokenizer.from_pretrained(path)(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    return states[layer][0].mean(dim=0)


@pytest.mark.parametrize("name", ["numbers", "words", "signs"])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_feature_is_the_mean_state_of_the_layer(experts, name, layer):
    encoder = open_encoder(experts[name], Feature(layer=layer))
    found = encoder.features(QUESTIONS)
    for row, prompt in zip(found, QUESTIONS, strict=True):
        torch.testing.assert_close(
            row, naive_feature(experts[name], prompt, layer), rtol=1e-4, atol=1e-6
        )
    assert found.shape == (len(QUESTIONS), encoder.hidden_size)


def test_the_last_layers_feature_is_taken_before_the_final_norm(experts):
    feature = open_encoder(experts["numbers"], Feature(layer=4)).features(QUESTIONS[:1])[0]
    model = AutoModelForCausalLM.from_pretrained(experts["numbers"])
    ids = AutoTokenizer.from_pretrained(experts["numbers"])(QUESTIONS[0], return_tensors="pt")
    kept = []
    model.model.norm.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        model(**ids)
    torch.testing.assert_close(feature, kept[0][0].mean(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", ["numbers", "words", "signs"])
def test_batch_and_padding_do_not_change_a_feature(experts, name, layer):
    encoder = open_encoder(experts[name], Feature(layer=layer))
    prompts = [*QUESTIONS, "x", "a much longer prompt, so that all the others are padded " * 4]
    together = encoder.features(prompts)
    alone = torch.cat([encoder.features([prompt]) for prompt in prompts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    if layer == 0:
        assert torch.equal(together, alone)


@pytest.mark.parametrize("layer", [0, 2])
def test_what_lies_beyond_the_limit_is_not_seen(experts, layer):
    encoder = open_encoder(experts["numbers"], Feature(layer=layer, max_tokens=5))
    short, long = encoder.features(["Q: 12", "Q: 12 and so much more"])
    torch.testing.assert_close(short, long)
    assert not torch.allclose(short, encoder.features(["Q: 1"])[0])


@pytest.mark.parametrize("layer", [0, 2])
def test_an_empty_prompt_has_the_feature_zero(experts, layer):
    encoder = open_encoder(experts["numbers"], Feature(layer=layer))
    found = encoder.features(["", "Q"])
    assert not found[0].any()
    assert found[1].any()
    assert encoder.features([]).shape == (0, 32)


@pytest.mark.parametrize("layer", [0, 2])
def test_special_tokens_are_not_counted(tmp_path, make_model, layer):
    from tokenizers.processors import TemplateProcessing

    path = make_model(tmp_path / "model", seed=1)
    before = open_encoder(path, Feature(layer=layer)).features(QUESTIONS)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(path)
    assert torch.equal(open_encoder(path, Feature(layer=layer)).features(QUESTIONS), before)


def test_an_encoder_counts_only_what_it_runs(experts):
    embedding = 264 * 32
    whole = AutoModelForCausalLM.from_pretrained(experts["numbers"]).model
    layer = sum(parameter.numel() for parameter in whole.layers[0].parameters())
    assert open_encoder(experts["numbers"], Feature()).parameters == embedding
    two = open_encoder(experts["numbers"], Feature(layer=2)).parameters
    assert two == embedding + 2 * layer + 32


def test_position_tables_are_not_taken_for_the_token_table(tmp_path, make_model):
    path = make_model(tmp_path / "gpt2", model_type="gpt2", n_embd=32, n_positions=200, n_layer=2)
    encoder = open_encoder(path, Feature())
    model = AutoModelForCausalLM.from_pretrained(path)
    ids = AutoTokenizer.from_pretrained(path)("Q: 12", return_tensors="pt").input_ids[0]
    torch.testing.assert_close(
        encoder.features(["Q: 12"])[0], model.transformer.wte.weight[ids].mean(dim=0)
    )


@pytest.mark.parametrize("layer", [0, 2])
def test_a_token_without_a_row_in_the_embedding_is_named(tmp_path, make_model, layer):
    path = make_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens([f"<extra{n}>" for n in range(9)])
    tokenizer.save_pretrained(path)
    encoder = open_encoder(path, Feature(layer=layer))
    assert encoder.features(["a"])[0].any()
    with pytest.raises(MixtureError, match=r"model: .* '<extra8>' with id \d+, .* has 264 rows"):
        encoder.features(["a", "a<extra8>"])


def test_a_layer_that_is_not_there_is_refused(experts):
    with pytest.raises(MixtureError, match=r"layer 5: .* has layers 1 to 4"):
        open_encoder(experts["numbers"], Feature(layer=5))
