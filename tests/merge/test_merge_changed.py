"""Another merge, or one of inputs that changed, does not go on with what is left of the first."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import killed_merge
import pytest
import token_models
import torch
from safetensors.torch import load_file, save_file
from stopped_merges import (
    Config,
    assert_is_undisturbed,
    assert_nothing_looks_whole,
    config_of,
    interrupt,
    run,
    settle,
)

from modelglue.checkpoint import durable
from modelglue.checkpoint.writer import CheckpointWriter


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelglue.merge.chunk.CHUNK", killed_merge.CHUNK)


Stop = Callable[[Config, Path], None]


@pytest.fixture
def stop_late(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Merges until most tensors are finished and noted, then stops as Ctrl-C does."""

    def stop(config: Config, out: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(CheckpointWriter, "commit", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(config, out)
        assert_nothing_looks_whole(out)
        (left,) = out.parent.iterdir()
        assert (left / durable.FINISHED).read_text()

    return stop


@dataclass(frozen=True)
class Change:
    """A configuration, and what becomes of it (or of what it names) between two tries."""

    before: Config
    after: Config
    act: Callable[[], None] = lambda: None


def change(name: str, folder: Path, llamas: list[Path]) -> Change:
    models = []
    for path in llamas[:3]:
        models.append(folder / path.name)
        shutil.copytree(path, models[-1])
    config = config_of("ties", models, density=0.5)
    match name:
        case "nothing":
            return Change(config, config)
        case "weight":
            other = json.loads(json.dumps(config))
            other["models"][1]["parameters"]["weight"] = 0.21
            return Change(config, other)
        case "method":
            config["parameters"] = {"density": 0.5, "normalize": True}
            return Change(config, {**config, "merge_method": "dare_ties"})
        case "dtype":
            return Change(config, {**config, "dtype": "float16"})
        case "order":
            return Change(config, {**config, "models": config["models"][::-1]})
        case "base":
            base, model, other = models
            again = config_of("ties", [model, base, other], density=0.5)
            return Change(config, again)
        case "input":

            def act() -> None:
                weights = models[1] / "model.safetensors"
                tensors = load_file(weights)
                for tensor in tensors.values():
                    tensor += 1
                save_file(tensors, weights, metadata={"format": "pt"})

            return Change(config, config, act)
        case "statistics":
            config = config_of("fisher", models)
            del config["base_model"]
            for i, entry in enumerate(config["models"]):
                tensors = load_file(Path(entry["model"]) / "model.safetensors")
                tensors = {key: tensor.abs() + i for key, tensor in tensors.items()}
                statistics = folder / f"statistics{i}"
                statistics.mkdir()
                save_file(tensors, statistics / "model.safetensors")
                (statistics / "config.json").write_text("{}")
                entry["parameters"]["statistics"] = str(statistics)
            other = json.loads(json.dumps(config))
            one, two = (entry["parameters"] for entry in other["models"])
            one["statistics"], two["statistics"] = two["statistics"], one["statistics"]
            return Change(config, other)
    raise ValueError(name)


CHANGES = ["weight", "method", "dtype", "order", "base", "input", "statistics"]


@pytest.mark.parametrize("name", ["nothing", *CHANGES])
def test_what_changed_between_two_tries_is_merged_anew(
    name: str, stop_late: Stop, llamas: list[Path], tmp_path: Path
) -> None:
    changed = change(name, tmp_path, llamas)
    out = tmp_path / "merged" / "out"
    settle()
    stop_late(changed.before, out)
    changed.act()
    settle()
    merged = run(changed.after, out)
    assert (merged.resumed > 0) == (name == "nothing")
    assert_is_undisturbed(out, changed.after)


def test_rows_that_shall_come_from_elsewhere_are_merged_anew(
    stop_late: Stop, tmp_path: Path
) -> None:
    base = token_models.save(tmp_path / "base", seed=0)
    chat = token_models.save(tmp_path / "chat", seed=1, added=["<x>"])

    def asked(kind: dict[str, Any]) -> Config:
        tokenizer = {"source": "union", "tokens": {"<x>": {"source": kind, "force": True}}}
        return {**config_of("task_arithmetic", [base, chat]), "tokenizer": tokenizer}

    first = asked({"kind": "zero"})
    second = asked({"kind": "model_token", "model": str(chat), "token_id": 7})
    out = tmp_path / "merged" / "out"
    settle()
    stop_late(first, out)
    assert run(second, out).resumed == 0
    assert_is_undisturbed(out, second)


def test_an_adapter_of_another_strength_is_merged_anew(
    stop_late: Stop, llamas: list[Path], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    prefix = "base_model.model.model.layers.1.self_attn.q_proj"
    matrices = {"A": torch.ones(2, 32), "B": torch.ones(32, 2)}
    weights = {f"{prefix}.lora_{name}.weight": matrix for name, matrix in matrices.items()}
    save_file(weights, adapter / "adapter_model.safetensors")
    config = {"merge_method": "linear", "models": [str(llamas[1]), f"{llamas[0]}+{adapter}"]}
    out = tmp_path / "merged" / "out"
    settle()
    stop_late(config, out)
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 6}))
    assert run(config, out).resumed == 0
    assert_is_undisturbed(out, config)


def test_numbers_of_another_device_are_not_mixed_in(
    stop_late: Stop, llamas: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "merged" / "out"
    config = config_of("model_stock", llamas)
    config["models"] = [entry["model"] for entry in config["models"]]
    stop_late(config, out)
    assert run(config, out, device="cpu").resumed == 0
    assert_is_undisturbed(out, config, device="cpu")


def test_threads_may_change_between_two_tries(
    stop_late: Stop, llamas: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "merged" / "out"
    config = config_of("ties", llamas)
    stop_late(config, out)
    assert run(config, out, threads=7).resumed > 0
    assert_is_undisturbed(out, config)


def test_no_file_of_another_merge_of_the_same_weights_stays(
    llamas: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "merged" / "out"
    chatty = {**config_of("linear", llamas), "chat_template": "{{ messages }}"}
    with monkeypatch.context() as patch:
        # The moment before the note of finished tensors goes.
        patch.setattr(durable.Durable, "remove", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(chatty, out)
    (left,) = out.parent.iterdir()
    assert (left / "chat_template.jinja").exists()
    plain = config_of("linear", llamas)
    run(plain, out)
    assert_is_undisturbed(out, plain)
