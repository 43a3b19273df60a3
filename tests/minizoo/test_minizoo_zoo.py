"""A microscopic zoo, trained for real, interrupted and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelglue.errors import InputError, UnknownName
from modelglue.journal import write_json
from modelglue.minizoo import Zoo, presets, train_zoo
from modelglue.minizoo.zoo import Criterion, _describe, _read

NAMES = [member.name for member in presets()["tiny"].members]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return train_zoo("tiny", tmp_path_factory.mktemp("zoo") / "tiny", seed=3, workers=2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def contents(folder: Path) -> dict[str, bytes]:
    """What decides a zoo: not how long its training took."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("training.json", "zoo.json")
    }


def workers_end(group: int) -> bool:
    """Whether no process of the group is left, given a while."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_every_model_opens_with_its_tokenizer_and_answers(zoo):
    assert [model.name for model in zoo.models] == NAMES
    for entry in zoo.models:
        model = AutoModelForCausalLM.from_pretrained(entry.path)
        tokenizer = AutoTokenizer.from_pretrained(entry.path)
        ids = tokenizer("Q: Who?\nA:", return_tensors="pt")
        assert ids["input_ids"][0, 0] == tokenizer.bos_token_id
        model.generate(**ids, max_new_tokens=3, pad_token_id=tokenizer.pad_token_id)
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        message = [{"role": "user", "content": "Who?"}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert prompt == "<s>User: Who?\nAssistant:"


@pytest.mark.parametrize("name", ["base", "foreign"])
def test_the_tokenizer_that_auto_classes_load_is_the_one_that_was_trained(zoo, name):
    from transformers import PreTrainedTokenizerFast

    folder = zoo.folder / "models" / name
    text = "Question: Oso has 17 pens, gets 8.\nAnswer: 17 + 8 = 25 (x ** 2) #### 25"
    loaded = AutoTokenizer.from_pretrained(folder)
    trained = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert loaded(text)["input_ids"] == trained(text)["input_ids"]


def test_fine_tunes_share_the_base_s_tokenizer_and_the_foreign_model_does_not(zoo):
    read = {name: (zoo.folder / "models" / name / "tokenizer.json").read_text() for name in NAMES}
    assert read["maths"] == read["base"] == read["drifted"]
    assert read["foreign"] != read["base"]


def test_a_drifted_model_is_less_like_the_base_than_a_specialist_is(zoo):
    base, maths, drifted = (
        torch.cat([t.flatten() for t in weights(zoo.folder / "models" / name).values()])
        for name in ("base", "maths", "drifted")
    )
    near, far = (torch.cosine_similarity(base, other, dim=0) for other in (maths, drifted))
    assert near > 0.98
    assert far < 0.95


def test_the_configuration_names_what_stands(zoo):
    config = yaml.safe_load(zoo.config.read_text())
    assert config["models"] == [f"models/{name}" for name in NAMES]
    assert config["base"] == "models/base"
    for task in config["tasks"]:
        for split, count in (("search", 24), ("report", 40)):
            lines = (zoo.folder / task[split]).read_text().splitlines()
            assert len([json.loads(line) for line in lines]) == count
    assert [task["kind"] for task in config["tasks"]] == ["multiple_choice", "generate", "code"]


def test_a_zoo_that_stands_is_not_trained_again(zoo):
    before = {path: path.stat().st_mtime_ns for path in zoo.folder.rglob("*")}
    again = train_zoo("tiny", zoo.folder, seed=3)
    assert again.trained == ()
    assert again.models == zoo.models
    assert {path: path.stat().st_mtime_ns for path in zoo.folder.rglob("*")} == before


def test_a_base_without_criterion_has_none_to_miss(zoo):
    assert zoo.criterion is None


@pytest.mark.parametrize(("accuracy", "reached"), [(0.4, True), (0.25, False)])
def test_it_is_noted_whether_the_base_reached_its_criterion(zoo, tmp_path, accuracy, reached):
    folder = tmp_path / "quick"
    plan = presets()["quick"]
    request = {"preset": "quick", "seed": 3, "digest": "x"}
    for member in plan.members:
        (folder / "models" / member.name).mkdir(parents=True)
        effort = {"steps": 2, "tokens": 9, "seconds": 1.0, "checks": [[1, 0.1], [2, accuracy]]}
        write_json(folder / "models" / member.name / "training.json", effort)
    write_json(folder / "zoo.json", _describe(plan, folder, request))
    found = _read(folder, trained=()).criterion
    assert found == Criterion(0.38, accuracy, reached)
    expected = None if reached else "did not reach its accuracy criterion: 0.250 of 0.380"
    assert found.warning is None if reached else expected in found.warning


def test_another_seed_is_refused(zoo):
    with pytest.raises(InputError, match="tiny with seed 3"):
        train_zoo("tiny", zoo.folder, seed=4)


def test_another_preset_is_refused(zoo):
    with pytest.raises(InputError, match="tiny with seed 3"):
        train_zoo("quick", zoo.folder, seed=3)


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a zoo"):
        train_zoo("tiny", tmp_path, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unknown_preset_is_told_its_nearest_name(tmp_path):
    with pytest.raises(UnknownName, match='did you mean "quick"'):
        train_zoo("quik", tmp_path / "zoo", seed=0)


def test_a_missing_model_alone_is_trained_again_to_the_same_weights(zoo, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(zoo.folder, copy)
    shutil.rmtree(copy / "models" / "maths")
    (copy / "zoo.json").unlink()
    seen: list[dict] = []
    again = train_zoo("tiny", copy, seed=3, workers=1, progress=lambda **news: seen.append(news))
    assert again.trained == ("maths",)
    assert {news["model"] for news in seen} == {"maths"}
    assert contents(copy) == contents(zoo.folder)


def test_a_killed_training_is_taken_up_to_the_same_zoo(zoo, tmp_path):
    folder = tmp_path / "killed"
    script = (
        "from pathlib import Path\n"
        "from modelglue.minizoo import train_zoo\n"
        "if __name__ == '__main__':\n"
        f"    train_zoo('tiny', Path({str(folder)!r}), seed=3, workers=2)\n"
    )
    main = tmp_path / "main.py"
    main.write_text(script)
    process = subprocess.Popen([sys.executable, str(main)], start_new_session=True)
    deadline = time.monotonic() + 300
    while not (folder / "models" / "base").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert workers_end(process.pid)
    assert not (folder / "zoo.json").exists()
    again = train_zoo("tiny", folder, seed=3, workers=2)
    assert "base" not in again.trained
    assert again.trained
    assert contents(folder) == contents(zoo.folder)
