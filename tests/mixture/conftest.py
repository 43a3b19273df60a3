"""Three experts that share nothing: architecture, tokenizer, chat template."""

import json
from pathlib import Path

import pytest
from mixture_samples import PROMPTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modelglue.mixture.mix import mix


def other_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Bytes in another order than tests/tiny.py has them, and pairs of digits and of letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *alphabet]
    merges = [("t", "h"), ("1", "2"), ("s", "e")]
    vocabulary = {token: i for i, token in enumerate(tokens + ["".join(m) for m in merges])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
    )


TEMPLATE = (
    "{% for message in messages %}[WHO]{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[WHO]assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def experts(tmp_path_factory, make_model) -> dict[str, Path]:
    """Folders of a llama, a gpt_neox and a qwen2."""
    root = tmp_path_factory.mktemp("experts")
    folders = {
        "numbers": make_model(root / "llama", seed=1),
        "words": make_model(root / "neox", seed=2, model_type="gpt_neox", hidden_size=48),
        "signs": make_model(root / "qwen", seed=3, model_type="qwen2", vocab_size=300),
    }
    for name, mark in (("words", "#"), ("signs", "<|")):
        other_tokenizer(TEMPLATE.replace("[WHO]", mark)).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory, experts) -> Path:
    """A mixture of the three, made of `PROMPTS`."""
    out = tmp_path_factory.mktemp("bundle") / "mixture"
    mix(experts, PROMPTS, out, reasons={"words": "best at words"})
    return out


@pytest.fixture
def damaged(bundle_path, tmp_path):
    """A copy of the bundle whose manifest a test edits: `damaged(edit) -> folder`."""
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(bundle_path, folder)

    def edit_manifest(edit):
        path = folder / "mixture.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return folder

    return edit_manifest
