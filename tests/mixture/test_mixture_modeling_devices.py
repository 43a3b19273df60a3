"""A mixture whose parts stand on several devices; pretended ones, as one machine has but one."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_outputs import CausalLMOutputWithPast

import tiny
from modelglue.mixture.modeling_modelglue import (
    Choice,
    MixedFeedForward,
    ModelglueMixtureConfig,
    ModelglueMixtureForCausalLM,
    Routing,
)
from modelglue.mixture.notation import MixtureKind


@pytest.mark.parametrize("kind", [MixtureKind("block"), MixtureKind("model", shared_layers=1)])
def test_an_automatic_device_map_keeps_a_layers_experts_together(kind):
    told = {"kind": kind.to_mapping(), "experts": ["a", "b"]}
    with torch.device("meta"):
        text = {"model_type": "llama", **tiny.SIZES}
        model = ModelglueMixtureForCausalLM(ModelglueMixtureConfig(text, told))
    assert {"MixedLayer", "LlamaDecoderLayer"} <= set(model._no_split_modules)


def test_a_router_may_stand_on_another_device_than_its_experts():
    """A pretended one, on which nothing is computed, but which does not mix with a real one."""
    experts = [torch.nn.Identity(), torch.nn.Identity()]
    given = {"index": 0, "top_k": 2, "by_token": True, "norm": None}
    layer, norm = MixedFeedForward(experts, torch.nn.Linear(4, 2), **given), torch.nn.Identity()
    states = torch.zeros(3, 1, 4, device="meta")
    choice = Choice(torch.tensor([[0, 1], [1, 0], [1, 0]]), torch.full((3, 2), 0.5))
    assert layer._mixed(states, choice).is_meta
    layer = MixedFeedForward(experts, torch.nn.Linear(4, 2), **{**given, "top_k": 1, "norm": norm})
    layer._later = choice.weights[:, :1, None]
    assert norm(states).is_meta


def test_the_balancing_loss_is_that_of_routers_on_all_devices():
    model = SimpleNamespace(training=False, config=SimpleNamespace(num_experts_per_tok=1))
    with FakeTensorMode():
        said = [torch.zeros(3, 2, device=device) for device in ("cuda:0", "cuda:1")]
        routing = Routing(decided=[(logits, None) for logits in said])
        outputs = CausalLMOutputWithPast(logits=said[1])
        told = ModelglueMixtureForCausalLM._told(model, outputs, routing, True)
    assert (told.aux_loss.shape, str(told.aux_loss.device)) == ((), "cuda:0")
