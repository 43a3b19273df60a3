"""The same on a real Ray cluster of this machine alone."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import worker_samples
from worker_samples import candidates, outcome, score

from modelglue.errors import ConfigError, RunError
from modelglue.search.executors import Job, executor
from modelglue.search.executors.ray import actors, connect
from modelglue.search.executors.serial import Serial

pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Ray cluster of this machine alone."""
    import ray

    # Its processes must find the factories of these tests.
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        assert connect("local")
        yield
        ray.shutdown()


def test_actors_killed_in_the_middle_of_a_trial_change_nothing(tmp_path: Path) -> None:
    fatal = tuple(candidates(generation)[generation]["a"] for generation in range(2))
    made = executor("ray", worker_samples.KilledOnce(tmp_path, fatal), workers=2)
    assert outcome(made, tmp_path / "ray") == outcome(Serial(score), tmp_path / "serial")
    assert len(list(tmp_path.glob("killed at *"))) == 2


def test_an_error_in_an_actor_reaches_whoever_asked() -> None:
    with closing(executor("ray", worker_samples.Raises("many", 0.2), workers=1)) as made:
        with pytest.raises(ConfigError) as caught:
            list(made.run([Job({"a": a}) for a in (0.1, 0.2)]))
        assert str(caught.value) == "glue.yaml: 2 problems\n  - a: one\n  - b: two"


def test_more_gpus_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"nodes of the Ray cluster have \d+ CPUs and 0 GPUs;"):
        actors(worker_samples.Steady(), workers=1, gpus_per_worker=0.5)


@pytest.mark.parametrize(("gpus", "fits"), [(1, True), (0.5, True), (2, False)])
def test_what_a_worker_needs_must_be_on_one_node(
    gpus: float, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"GPU": 8.0}},  # without a core to run it
        {"Alive": False, "Resources": {"CPU": 4.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    if fits:
        actors(worker_samples.Steady(), workers=1, gpus_per_worker=gpus).close()
    else:
        with pytest.raises(ConfigError, match="needs 1 CPU and 2 GPUs on one node"):
            actors(worker_samples.Steady(), workers=1, gpus_per_worker=gpus)


def test_a_cluster_that_others_have_filled_is_told_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    monkeypatch.setattr("modelglue.search.executors.ray.PATIENCE", 1.0)
    holder = ray.remote(num_cpus=ray.cluster_resources()["CPU"])(_Holder).remote()
    ray.get(holder.__ray_ready__.remote())
    with (
        closing(executor("ray", worker_samples.Steady(), workers=2)) as made,
        pytest.raises(RunError, match=r"within 1 seconds: each needs 1 CPU .* free .* are 0 CPUs"),
    ):
        list(made.run([Job({"a": 0.1})]))
    ray.kill(holder)
    monkeypatch.setattr("modelglue.search.executors.ray.PATIENCE", 60.0)
    with closing(executor("ray", worker_samples.Steady(), workers=1)) as made:
        assert dict(made.run([Job({"a": 0.1})])) == {0: score({"a": 0.1}, None)}


class _Holder:
    """Takes a place and does nothing."""
