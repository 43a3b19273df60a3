"""The command line: fast to answer, one clear message and the right exit code for every error."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import modelglue
import shrunken
import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.cli import main
from modelglue.merge.method import METHODS
from modelglue.recipe.config import RecipeConfig

Run = Callable[..., int]
COMMANDS = (
    "demo glue inspect cluster merge search mix serve eval report minizoo methods stats".split()
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process; gives the exit code."""

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["modelglue", *map(str, words)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return call


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shrunken.make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["glue", "--help"]])
def test_help_loads_neither_torch_nor_transformers(words: list[str]) -> None:
    program = (
        "import sys; from modelglue.cli import main\n"
        f"sys.argv = ['modelglue', *{words!r}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, modelglue; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_every_public_name_can_be_imported() -> None:
    for name in modelglue.__all__:
        assert getattr(modelglue, name) is not None


def test_help_names_every_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    told = capsys.readouterr().out
    assert all(f"\n  {command} " in told for command in COMMANDS)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["inspect", "./nowhere"], "nowhere"),
        (["glue", "gone.yaml"], "gone.yaml: cannot be read"),
        (["merge", "gone.yml", "out"], "gone.yml: cannot be read"),
        (["merge", "gone.yml", "out", "--device", "xyz"], "device 'xyz' cannot be used"),
        (["merge", "gone.yml", "out", "--device", "meta"], "device 'meta' cannot be used"),
        (["mix", "gone.yml", "out"], "gone.yml: cannot be read"),
        (["report", "nowhere"], "holds no report.json"),
        (
            ["stats", "nowhere", "--text", "gone.txt", "--kind", "gram", "--output", "out"],
            "gone.txt: there is no such file",
        ),
        (["methods", "liner"], 'did you mean "linear"?'),
        (["minizoo", "quik", "zoo"], 'did you mean "quick"?'),
        (["eval", "nowhere", "--task", "gone.yaml"], "gone.yaml: cannot be read"),
        (["eval", "nowhere"], "name a task or a suite"),
        (["eval", "nowhere", "--suite", "paper-report", "--data", "d"], "there is no dev.jsonl or"),
        (["cluster", "./a", "--task-vectors"], "--base"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_how_to_go_on(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modelglue.recipe.config.load_recipe", stop)
    monkeypatch.setattr("modelglue.merge.run.as_plan", stop)
    for words in (["glue", "glue.yaml"], ["merge", "merge.yml", "out"]):
        assert run(*words) == 130
        told = capsys.readouterr().err
        assert words[0] in told.split("go on from here")[0]


def test_a_demo_with_a_bad_output_is_refused_before_training(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run("demo", "--zoo", tmp_path / "zoo", "--output", tmp_path) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"title": 3}', "{"])
def test_a_damaged_report_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "report.json").write_text(content)
    assert run("report", tmp_path) == 2
    assert "report" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["glue"], ["unknown"], ["glue", "x.yaml", "--threshhold", "1"]])
def test_wrong_usage_is_exit_code_2(run: Run, words: list[str]) -> None:
    assert run(*words) == 2


def test_debug_shows_the_traceback(run: Run) -> None:
    with pytest.raises(modelglue.errors.CheckpointNotFound):
        run("inspect", "./nowhere", "--debug")


def test_failed_work_is_exit_code_1(
    run: Run, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load(zoo.read_text())
    output = tmp_path / "taken"
    for threshold, code in [(0.95, 0), (0.9, 1)]:
        path = zoo.parent / f"{threshold}.yaml"
        search = {"strategies": ["heuristic_average"], "validation": 0}
        recipe |= {"threshold": threshold, "search": search}
        path.write_text(yaml.safe_dump(recipe))
        assert run("search", path, "--output", output) == code
    assert "another recipe" in capsys.readouterr().err


def test_inspect_and_cluster_print_what_json_says(
    run: Run, zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [zoo.parent / "models" / name for name in ("base", "ft-a", "drifted", "foreign")]
    found: dict[str, Any] = {}
    for command in ("inspect", "cluster"):
        assert run(command, *models, "--json") == 0
        found[command] = json.loads(capsys.readouterr().out)
        assert run(command, *models) == 0
        told = capsys.readouterr().out
        assert all(path.name in told for path in models)
    assert found["inspect"][3]["model_type"] == "gpt_neox"
    assert ["base", "ft-a"] in found["cluster"]["families"]


def test_a_dry_run_prints_every_stage_and_does_nothing(
    run: Run, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("glue", zoo, "--output", tmp_path / "run", "--dry-run") == 0
    told = capsys.readouterr().out
    assert all(stage in told for stage in ("cluster", "search-1", "merge-1", "mixture", "report"))
    assert not (tmp_path / "run").exists()
    assert run("glue", zoo, "--output", tmp_path / "run", "--dry-run", "--json") == 0
    stages = {stage["stage"]: stage for stage in json.loads(capsys.readouterr().out)}
    # Five models share their shapes: 5 singles, 4 averages, 2 × 4 × 9 shares, on 4 tasks.
    assert stages["search-1"]["evaluations"] == (5 + 4 + 2 * 36) * 4


def test_merge_checks_prints_its_plan_and_merges(
    run: Run, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "merge.yml"
    models = [{"model": str(zoo.parent / "models" / name)} for name in ("ft-a", "ft-b")]
    config.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    assert run("merge", config, tmp_path / "out", "--dry-run") == 0
    assert "model.embed_tokens.weight" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert run("merge", config, tmp_path / "out") == 0
    assert run("inspect", tmp_path / "out") == 0
    assert run("merge", config, tmp_path / "out") == 2
    assert "is there already" in capsys.readouterr().err


def test_the_plan_as_json_has_every_tensor(
    run: Run, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "merge.yml"
    models = [str(zoo.parent / "models" / name) for name in ("ft-a", "ft-b")]
    config.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    memory = []
    for threads in (1, 3):
        words = ["merge", config, tmp_path / "out", "--dry-run", "--json", "--threads", threads]
        assert run(*words) == 0
        plan = json.loads(capsys.readouterr().out)
        memory.append(plan["memory"])
    with Checkpoint.open(models[0]) as checkpoint:
        assert [tensor["name"] for tensor in plan["tensors"]] == list(checkpoint.tensors)
    assert memory[0] < memory[1]


def test_stats_says_what_it_computed_and_what_it_skipped(
    run: Run, llamas: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("two and two\nmake four\n")
    tied = tiny.save_model(tmp_path / "tied", tie_word_embeddings=True)
    words = ["stats", tied, "--text", text, "--kind", "gram"]
    assert run(*words, "--output", tmp_path / "lines") == 0
    told = capsys.readouterr().out
    assert "in 2 sequences" in told
    assert "skipped, its weight is more than a linear layer's" in told
    assert run(*words, "--output", tmp_path / "one", "--whole", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["sequences"] == 1
    assert "model.embed_tokens.weight" in [n for names in made["skipped"].values() for n in names]
    words = ["stats", llamas[0], "--text", text, "--kind", "fisher", "--dtype", "bfloat16"]
    assert run(*words, "--output", tmp_path / "half", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["dtype"], made["skipped"]) == ("bfloat16", {})


def test_mix_and_eval_go_from_checkpoints_to_scores(
    run: Run, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = zoo.parent / "mix.yaml"
    experts = [
        {"model": f"models/{name}", "prompts": [f"{name} {word}" for word in shrunken.WORDS]}
        for name in ("base", "foreign")
    ]
    config.write_text(yaml.safe_dump({"experts": experts}))
    assert run("mix", config, tmp_path / "bundle", "--json") == 0
    assert json.loads(capsys.readouterr().out)["experts"] == ["base", "foreign"]
    for model in (tmp_path / "bundle", zoo.parent / "models/base"):
        assert run("eval", model, "--task", zoo, "--json") == 0
        scores = json.loads(capsys.readouterr().out)
        assert [task["task"] for task in scores["tasks"]] == ["story", "choice", "echo", "code"]
        assert run("eval", model, "--task", zoo, "--split", "search") == 0
        assert "story" in capsys.readouterr().out


def test_methods_are_listed_and_explained(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    assert "linear" in capsys.readouterr().out
    assert run("methods", "linear") == 0
    assert "https://arxiv.org/abs/2203.05482" in capsys.readouterr().out


def test_every_method_is_one_line_of_the_list(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in METHODS:
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert "…" not in line


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("passthrough", ["scale", "each", "model", "none", "any"]),
        ("ties", ["trim", "each", "merge", "tensor", "tensor,", "global"]),
        ("ties", ["density", "each", "model", "1.0", "0", "to", "1"]),
        ("ties", ["normalize", "each", "merge", "true", "true,", "false"]),
        ("karcher", ["tol", "each", "merge", "1e-05", "above", "0"]),
        ("fisher", ["statistics", "each", "model", "must", "be", "given"]),
    ],
)
def test_a_parameter_is_shown_with_default_and_range(
    run: Run, capsys: pytest.CaptureFixture[str], method: str, words: list[str]
) -> None:
    assert run("methods", method) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (found,) = [line for line in lines if line[:2] == words[:2]]
    assert found[: len(words)] == words


def test_glue_shows_its_result_and_says_when_there_is_nothing_left_to_do(
    run: Run, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert run("glue", zoo, "--output", output) == 0
    first = capsys.readouterr().out
    assert "glued model" in first
    assert str(output / "report.html") in first
    assert run("glue", zoo, "--output", output) == 0
    assert "nothing was done" in capsys.readouterr().out
    page = (output / "report.html").read_text()
    shutil.rmtree(output / "stages")
    (output / "report.html").unlink()
    assert run("report", output) == 0
    assert (output / "report.html").read_text() == page


@pytest.mark.parametrize("command", ["glue", "search"])
def test_who_evaluates_can_be_said_on_the_command_line(
    command: str,
    run: Run,
    zoo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = []

    def stop(config: RecipeConfig, **settings: object) -> None:
        given.append(config.search)
        raise KeyboardInterrupt

    monkeypatch.setattr("modelglue.recipe.glue.glue", stop)
    monkeypatch.setattr("modelglue.recipe.search.search_families", stop)
    recipe = yaml.safe_load(zoo.read_text()) | {"output": str(tmp_path / "run")}
    recipe["search"] |= {"executor": "ray", "workers": 4, "address": "host:6379"}
    path = zoo.parent / "on-ray.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert run(command, path, "--workers", 3) == 130
    assert run(command, path, "--executor", "serial") == 130
    assert [(search.executor, search.workers) for search in given] == [("ray", 3), ("serial", 1)]
    capsys.readouterr()
    assert run(command, path, "--executor", "slurm") == 2
    assert "must be one of serial, workers, ray, not 'slurm'" in capsys.readouterr().err
    assert run(command, "--help") == 0
    told = capsys.readouterr().out
    assert "--workers" in told
    assert "serial, workers or ray" in " ".join(told.split())


def test_the_demo_leaves_code_out_where_nothing_can_contain_it(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelglue.errors import SandboxUnavailable
    from modelglue.recipe import demo
    from modelglue.recipe.config import load_recipe

    def nothing() -> None:
        raise SandboxUnavailable("no sandbox works here: install bubblewrap")

    monkeypatch.setattr(demo, "probe", nothing)
    config, notes = demo.without_code_where_unsafe(load_recipe(zoo))
    assert [task.name for task in config.tasks] == ["story", "choice", "echo"]
    assert "code" in notes[0]
    assert "install bubblewrap" in notes[0]
    unsafe, silence = demo.without_code_where_unsafe(load_recipe(zoo, unsafe_code=True))
    assert len(unsafe.tasks) == 4
    assert silence == ()
