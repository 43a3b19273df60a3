"""A plan as a whole: told, imported, made in a moment."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hollow
import numpy as np
import pytest
from plans import UP, names, plan_of

from modelglue.merge.config.schema import parse_config
from modelglue.merge.plan.merge_plan import make_plan

# The whole


def test_a_plan_describes_every_tensor_as_plain_data(zoo: list[Path]) -> None:
    plan = plan_of("ties", models=names(zoo[:2]), base_model=str(zoo[3]))
    described = json.loads(json.dumps(plan.describe()))
    assert described["bytes_to_read"] == 3 * plan.models[0].nbytes
    assert [model["name"] for model in described["models"]] == ["a", "b", "d"]
    assert described["measured"] == "tensor"
    assert described["bytes_to_write"] == plan.models[0].nbytes
    found = next(t for t in described["tensors"] if t["name"] == UP.format(1))
    assert found["sources"] == [{"model": name, "tensor": UP.format(1)} for name in "ab"]
    assert found["base"] == {"model": "d", "tensor": UP.format(1)}
    assert found["parameters"]["weight"] == [1.0, 1.0]


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_the_memory_that_a_plan_tells_is_about_what_the_merge_takes(
    tmp_path: Path, method: str
) -> None:
    shapes = {f"model.layers.{layer}.up.weight": (3000, 1024) for layer in range(4)}
    numbers = np.random.default_rng(0)
    for name in ("base", "a", "b", "c", "d"):
        file = hollow.save(tmp_path / name, shapes) / "model.safetensors"
        noise = numbers.standard_normal(4 * 3000 * 1024, dtype=np.float32).view(np.uint32) >> 16
        with file.open("r+b") as stream:
            stream.seek(-2 * len(noise), os.SEEK_END)
            stream.write(noise.astype(np.uint16).tobytes())
    config: dict[str, Any] = {"merge_method": method, "models": [*"abcd"]}
    if method != "linear":
        config |= {"base_model": "base", "parameters": {"density": 0.5}}
    program = f"""
import os, threading, time
from pathlib import Path
from modelglue.merge.config.schema import parse_config
from modelglue.merge.engine.stream import execute
from modelglue.merge.plan.merge_plan import make_plan
import modelglue.merge.kernels.loops
try:  # numba loads it with the first loop, where it is installed: no doing of the merge
    import scipy.linalg
except ImportError:
    pass
def private():
    with open("/proc/self/status") as file:
        return next(int(l.split()[1]) * 1024 for l in file if l.startswith("RssAnon"))
plan = make_plan(parse_config({config!r}, root=Path({str(tmp_path)!r})))
done, peak, start = threading.Event(), [0], private()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], private())
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
execute(plan, Path({str(tmp_path / "out")!r}) / str(os.getpid()), threads=2)
done.set()
watcher.join()
print((peak[0] - start) / plan.describe(threads=2)["memory"])
"""
    (tmp_path / "out").mkdir()
    for _ in range(2):  # the first may compile the loops, which takes more
        run = subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert 0.6 < float(run.stdout) < 1.2


def test_planning_imports_neither_torch_nor_transformers(zoo: list[Path]) -> None:
    program = f"""
import sys
from modelglue.merge.config.schema import parse_config
from modelglue.merge.plan.merge_plan import make_plan
config = {{"merge_method": "slerp", "models": {names(zoo[:2])!r}, "parameters": {{"t": [0, 1]}}}}
make_plan(parse_config(config))
sys.exit(any(name in sys.modules for name in ("torch", "transformers", "numba")))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_tens_of_thousands_of_tensors_are_planned_in_a_moment(tmp_path: Path) -> None:
    tensors = {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight": (1, 1)
        for layer in range(50)
        for expert in range(134)
        for part in ("w1", "w2", "w3")
    }
    models = [hollow.save(tmp_path / name, tensors, num_hidden_layers=50) for name in "abcd"]
    weight = [{"filter": "w1", "value": [0.1, 1]}, {"value": 0.5}]
    config = parse_config(
        {"merge_method": "linear", "models": names(models), "parameters": {"weight": weight}}
    )
    start = time.process_time()
    plan = make_plan(config)
    assert len(plan.tensors) > 20_000
    assert time.process_time() - start < 6
