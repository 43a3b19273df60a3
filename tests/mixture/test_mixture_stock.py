"""Stock mixtures compute what their parts compute."""

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stock_samples import BATCH, BY_NAME, CASES, MASK, Case, load, logits, naive_mixture, written
from stock_samples import steady as make_steady
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.errors import OutOfSpace
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter
from modelglue.mixture.stock import write_stock

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
MIXTRAL = BY_NAME["llama"]


def routers(kind: MixtureKind, experts: int, *, seed: int = 0) -> list[LinearRouter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        LinearRouter(torch.randn(experts, 32, generator=generator), torch.zeros(experts))
        for _ in range(3 - kind.shared_layers)
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, list[Path]]:
    """For each case a dense model and two others of its shape."""
    root = tmp_path_factory.mktemp("stock")
    return {
        case.name: [case.save(root / f"{case.name}-{i}", seed=i) for i in range(3)]
        for case in CASES
    }


@EVERY
def test_identical_experts_equal_the_dense_model(
    case: Case, models: dict[str, list[Path]], tmp_path: Path
) -> None:
    path, kind = models[case.name][0], case.kind()
    experts = dict.fromkeys("abc", path)
    write_stock(tmp_path / "out", experts, path, routers(kind, 3), kind=kind)
    dense, mixture = load(path), load(tmp_path / "out")
    assert mixture.config.model_type == case.target
    assert float(logits(dense, BATCH).abs().max()) > 0.3
    close = {"rtol": 0, "atol": 1e-5}
    batched = logits(mixture, BATCH, MASK)
    torch.testing.assert_close(batched, logits(dense, BATCH, MASK), **close)
    single = [logits(mixture, row[row != 0][None])[0] for row in BATCH]
    torch.testing.assert_close(torch.cat(single), batched, **close)
    for use_cache in (True, False):
        expected = written(dense, BATCH, MASK, use_cache=use_cache)
        assert written(mixture, BATCH, MASK, use_cache=use_cache) == expected
        for row, tokens in zip(BATCH, expected):
            alone = row[row != 0][None]
            found = written(mixture, alone, torch.ones_like(alone), use_cache=use_cache)
            assert found == [tokens]


@EVERY
def test_tokens_are_answered_by_the_experts_that_the_router_weighs_highest(
    case: Case, models: dict[str, list[Path]], tmp_path: Path
) -> None:
    dense, *others = models[case.name]
    kind = case.kind(top_k=2)
    given = routers(kind, 3)
    experts = dict(zip("abc", [*others, dense]))
    write_stock(tmp_path / "out", experts, dense, given, kind=kind)
    naive = naive_mixture(dense, list(experts.values()), [r.weight for r in given], kind)
    torch.testing.assert_close(
        logits(load(tmp_path / "out"), BATCH, MASK),
        logits(naive, BATCH, MASK),
        rtol=0,
        atol=1e-5,
    )


@EVERY
def test_a_router_forced_to_an_expert_gives_the_dense_model_with_its_feed_forward_parts(
    case: Case, models: dict[str, list[Path]], tmp_path: Path
) -> None:
    _, *others = models[case.name]
    dense = make_steady(case.save(tmp_path / "dense"))
    kind = case.kind(top_k=1)
    for chosen, expert in enumerate(others):
        weight = torch.zeros(2, 32)
        weight[chosen, 0] = 50.0
        forced = [LinearRouter(weight, torch.zeros(2))] * (3 - kind.shared_layers)
        out = tmp_path / f"out{chosen}"
        write_stock(out, dict(zip("ab", others)), dense, forced, kind=kind)
        assembled, own = load(dense), load(expert)
        for layer in range(kind.shared_layers, 3):
            assembled.model.layers[layer].mlp = own.model.layers[layer].mlp
        torch.testing.assert_close(
            logits(load(out), BATCH, MASK), logits(assembled, BATCH, MASK), rtol=0, atol=1e-5
        )


@EVERY
def test_it_loads_without_a_missing_or_unexpected_key(
    case: Case, models: dict[str, list[Path]], tmp_path: Path
) -> None:
    dense, *others = models[case.name]
    kind = case.kind(top_k=1)
    write_stock(tmp_path / "out", dict(zip("ab", others)), dense, None, kind=kind)
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert not any(info.values())
    assert said == []
    tied = case.overrides.get("tie_word_embeddings", False)
    heads = model.lm_head.weight is model.get_input_embeddings().weight
    assert heads == model.config.tie_word_embeddings == tied
    again = tmp_path / "again"
    model.save_pretrained(again)
    assert torch.equal(logits(load(again), BATCH), logits(model, BATCH))


def test_a_head_that_differs_from_the_embedding_stays_in_spite_of_the_settings(
    tmp_path: Path,
) -> None:
    dense = MIXTRAL.save(tmp_path / "dense")
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    write_stock(tmp_path / "out", dict.fromkeys("ab", dense), dense, None, kind=MIXTRAL.kind())
    out = Checkpoint.open(tmp_path / "out")
    assert torch.equal(out.read("lm_head.weight"), Checkpoint.open(dense).read("lm_head.weight"))
    assert out.config["tie_word_embeddings"] is False


def test_settings_as_older_versions_wrote_them_mean_the_same(tmp_path: Path) -> None:
    dense = MIXTRAL.save(tmp_path / "dense")
    config = json.loads((dense / "config.json").read_text())
    # Of a first Llama: no base of the rotary positions, no epsilon, no key-value heads' default.
    for key in ("rope_parameters", "head_dim", "dtype", "rms_norm_eps", "transformers_version"):
        del config[key]
    for further in ({}, {"rope_theta": 300.0}, {"rope_scaling": {"type": "linear", "factor": 2.0}}):
        (dense / "config.json").write_text(json.dumps({**config, **further}))
        out = tmp_path / f"out{len(further)}{''.join(further)}"
        write_stock(out, dict.fromkeys("ab", dense), dense, None, kind=MIXTRAL.kind())
        torch.testing.assert_close(
            logits(load(out), BATCH), logits(load(dense), BATCH), rtol=0, atol=1e-5
        )
        stays = json.loads((out / "config.json").read_text())
        assert all(stays[key] == value for key, value in further.items())


def test_bytes_stay_as_they_are_and_other_dtypes_are_cast(tmp_path: Path) -> None:
    dense = MIXTRAL.save(tmp_path / "dense", dtype=torch.bfloat16)
    fine = MIXTRAL.save(tmp_path / "fine", seed=1)
    coarse = MIXTRAL.save(tmp_path / "coarse", seed=2, dtype=torch.bfloat16)
    kind = MIXTRAL.kind()
    given = routers(kind, 2)
    write_stock(tmp_path / "out", {"fine": fine, "coarse": coarse}, dense, given, kind=kind)
    out = Checkpoint.open(tmp_path / "out")
    assert {spec.dtype for spec in out.tensors.values()} == {"BF16"}
    sources = [Checkpoint.open(path) for path in (fine, coarse, dense)]
    for layer in range(3):
        stored, at = f"model.layers.{layer}.mlp.", f"model.layers.{layer}.block_sparse_moe."
        for i, source in enumerate(sources[:2]):
            for name, matrix in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
                expected = source.read(f"{stored}{matrix}_proj.weight").bfloat16()
                assert torch.equal(out.read(f"{at}experts.{i}.{name}.weight"), expected)
        assert torch.equal(out.read(f"{at}gate.weight"), given[layer].weight.bfloat16())
    for name in sources[2].tensors:
        if ".mlp." not in name:
            assert torch.equal(out.read(name), sources[2].read(name))


def test_tokenizer_template_generation_settings_and_provenance_come_along(tmp_path: Path) -> None:
    dense = MIXTRAL.save(tmp_path / "dense")
    (dense / "chat_template.jinja").write_text("{{ messages }}")
    GenerationConfig(temperature=0.3, do_sample=True).save_pretrained(dense)
    experts = {"maths": MIXTRAL.save(tmp_path / "one", seed=1), "code": dense}
    kind, out = MIXTRAL.kind(top_k=1), tmp_path / "out"
    write_stock(out, experts, dense, None, kind=kind, reasons={"maths": "best at sums"})
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages }}"
    assert GenerationConfig.from_pretrained(out).temperature == 0.3
    card = (out / "README.md").read_text()
    assert "1 of 2 feed-forward experts in each of 3 layers" in card
    assert "expert 0, maths: best at sums" in card
    assert "F-L-T" in card
    said = json.loads((out / "config.json").read_text())["modelglue"]
    assert said == {"format": 1, "kind": kind.to_mapping(), "experts": ["maths", "code"]}


def test_shards_are_read_wherever_a_tensor_lies(tmp_path: Path) -> None:
    dense = MIXTRAL.save(tmp_path / "dense")
    sharded = MIXTRAL.save(tmp_path / "sharded", max_shard_size="30KB")
    kind = MIXTRAL.kind()
    for name, path in (("one", dense), ("many", sharded)):
        write_stock(tmp_path / name, {"a": path, "b": dense}, path, routers(kind, 2), kind=kind)
    one, many = (Checkpoint.open(tmp_path / name) for name in ("one", "many"))
    assert one.fingerprint() == many.fingerprint()


def test_a_disk_too_small_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = MIXTRAL.save(tmp_path / "models/dense")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(OutOfSpace, match="1,000 free"):
        write_stock(tmp_path / "out", dict.fromkeys("ab", dense), dense, None, kind=MIXTRAL.kind())
    assert os.listdir(tmp_path) == ["models"]


def start_slowly(write: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Begin to write in another process, which sends a byte for each piece: (process, pipe)."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child:
        os.close(write_end)
        return child, read_end
    plain = CheckpointWriter.write_bytes

    def slowly(self: CheckpointWriter, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        os.write(write_end, b".")
        time.sleep(0.002)

    try:
        monkeypatch.setattr(CheckpointWriter, "write_bytes", slowly)
        write()
    finally:
        os._exit(1)


def test_killed_in_the_middle_it_leaves_nothing_that_looks_whole_and_can_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [MIXTRAL.save(tmp_path / f"models/{i}", seed=i) for i in range(2)]
    kind = MIXTRAL.kind()
    time.sleep(0.1)  # files that were written this moment may still change: nothing resumes on them

    def write(name: str) -> Path:
        experts = dict(zip("ab", paths))
        return write_stock(
            tmp_path / name, experts, paths[0], routers(kind, 2), kind=kind, threads=2
        )

    whole = Checkpoint.open(write("models/whole")).fingerprint()
    pieces = 3 * (4 + 2 + 1 + 6) + 3
    # Three times the same one, each going on where the last stopped; then another near its end.
    for name, moment in (("out", 1), ("out", 8), ("out", 19), ("late", pieces - 1)):
        child, pipe = start_slowly(lambda name=name: write(name), monkeypatch)
        for _ in range(moment):
            assert os.read(pipe, 1) == b"."
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(pipe)
        for folder in (tmp_path / name, *tmp_path.glob(f".{name}.*")):
            # All but the renaming may be done by then.
            if (folder / "config.json").exists():
                assert name == "late"
                assert Checkpoint.open(folder).fingerprint() == whole
    assert Checkpoint.open(write("out")).fingerprint() == whole
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out"]
