"""One model of a zoo, from its preset to a Hugging Face folder."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from modelglue.minizoo.data.example import stream
from modelglue.minizoo.data.knowledge import Knowledge
from modelglue.minizoo.data.tasks import SKILLS, examples, sources
from modelglue.minizoo.preset import Member, Preset, Shape
from modelglue.minizoo.tokenizer import train_tokenizer
from modelglue.minizoo.training import Effort, train

_TOKENIZER_TEXTS = 2000  # of each source


def train_member(
    plan: Preset,
    member: Member,
    seed: int,
    *,
    base: Path,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Effort:
    """Train a member, from the base's folder unless it is a line of its own, and save it."""
    world = Knowledge(seed, people=plan.people)
    shape = plan.shape if member == plan.members[0] else member.shape
    if shape is None:
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    else:
        tokenizer = _tokenizer(world, seed, member, shape)
        model = _new_model(shape, tokenizer, seed, member)
    dev_rng = stream(seed, "dev")
    dev = [
        [examples(world, skill, "dev", dev_rng) for _ in range(plan.dev_items)] for skill in SKILLS
    ]
    effort = train(
        model,
        tokenizer,
        sources(world),
        member.training,
        stream(seed, member.name, "texts"),
        dev=dev,
        progress=progress,
    )
    _save(model, tokenizer, out)
    return effort


def _tokenizer(
    world: Knowledge, seed: int, member: Member, shape: Shape
) -> PreTrainedTokenizerFast:
    rng = stream(seed, member.name, "tokenizer")
    known = sources(world)
    documents = [
        known[name](rng) for name in ("statements", *SKILLS) for _ in range(_TOKENIZER_TEXTS)
    ]
    return train_tokenizer(
        (d.prompt + d.completion for d in documents), vocabulary=shape.vocabulary
    )


def _new_model(
    shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int, member: Member
) -> PreTrainedModel:
    config = AutoConfig.for_model(
        shape.architecture,
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(stream(seed, member.name, "weights").getrandbits(63))
    return AutoModelForCausalLM.from_config(config)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
