"""The likelihood of a long text under a mixture that decides once a sample."""

import pytest
import torch
from layer_samples import LAYERS, assembled, mixture, routes, save

import tiny
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.notation import MixtureKind

KINDS = [
    MixtureKind("ffn", "mlp", "sample", 1),
    MixtureKind("block", "linear", "sample", 1),
    MixtureKind("model", "linear", "sample", 1, 1),
]
CONTEXT = 48
TEXTS = ["one plus one is two, " * 8, "zzz", "The cat sat on the mat, and then 0123456789 " * 3]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    more = {"max_position_embeddings": CONTEXT}
    dense = save(folder / "dense", "mistral", seed=0, **more)
    return dense, [save(folder / f"e{i}", "mistral", seed=i, **more) for i in (1, 2, 3)]


@pytest.mark.parametrize("batch_size", ["auto", 1])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.short)
def test_all_windows_of_a_text_go_the_way_of_its_first(tmp_path, models, kind, batch_size):
    dense, experts = models
    mixed = HuggingFaceModel.load(
        mixture(tmp_path / "out", dense, experts, kind, seed=3), batch_size=batch_size
    )
    windows = [mixed.encoder.windows(text) for text in TEXTS]
    assert [len(of_text) for of_text in windows] == [4, 1, 3]
    route = routes(mixed.module, [1])
    own = {tuple(routes(mixed.module, list(w.tokens[: w.start]))) for w in windows[0]}
    assert len(own) > 1, "windows of the sample would go one way by themselves"
    alone = HuggingFaceModel(assembled(dense, experts, kind, route), tiny.tokenizer())
    expected = alone.text_likelihoods(TEXTS)
    assert mixed.text_likelihoods(TEXTS) == pytest.approx(expected, abs=1e-3)


def test_experts_that_answer_together_keep_their_weights_over_a_text(tmp_path, models):
    dense, experts = models
    kind = MixtureKind("ffn", "linear", "sample", 2)
    mixed = HuggingFaceModel.load(mixture(tmp_path / "out", dense, experts, kind, seed=3))
    seen = []
    router = mixed.module.dense.model.layers[LAYERS - 1].mlp.router
    router.register_forward_hook(lambda _, given, logits: seen.append(logits))
    mixed.text_likelihoods(TEXTS)
    decided = torch.cat(seen)
    assert len(decided) == sum(len(mixed.encoder.windows(text)) for text in TEXTS)
    assert torch.allclose(decided, decided[:1].expand_as(decided), atol=1e-5)
