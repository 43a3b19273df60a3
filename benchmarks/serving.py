"""A served mixture under load: no request lost, no answer mixed up, and how long they take.

    python benchmarks/serving.py process     # experts in the gateway's process
    python benchmarks/serving.py upstreams   # experts on two servers each; one server is killed
    python benchmarks/serving.py show

A bundle of the miniature zoo's three specialists stands behind a `modelglue serve`. `--requests`
prompts of the tasks' report items are asked all at once, each streamed by OpenAI's own client at
temperature 0, with the length and stops of its task. Every answer is compared, character for
character, with what `Bundle.generate` writes for its prompt alone, and the expert that the header
names with `Bundle.route`'s. When a server is killed (after a quarter of the answers), what had not
begun to stream is to be answered all the same, and what had is to end with `upstream_interrupted`.

Seconds are those of the client, on the same machine as all servers. Exits with 1 if anything was
lost or mixed up. The zoo is trained where it lacks (`--folder`), figures are kept beside this file
in results/serving.json; nothing is written into the zoo.
"""

import argparse
import asyncio
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

import modelglue
from modelglue.journal import read_json, write_json
from modelglue.minizoo.zoo import train_zoo
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.compose import compose
from modelglue.recipe.choose import prompts_of
from modelglue.recipe.config import load_recipe
from serving_load import VERDICTS, Asked, Told, load, verdict

RESULTS = Path(__file__).parent / "results" / "serving.json"
TOKENS = 16  # of an answer, where the task names no length
PERCENTILES = (50, 90, 99, 100)


def main() -> None:
    arguments = _arguments()
    kept: dict[str, Any] = read_json(arguments.json) if arguments.json.exists() else {}
    wrong: list[str] = []
    if arguments.what != "show":
        torch.set_num_threads(1)
        zoo = (arguments.folder / f"{arguments.preset}-{arguments.seed}").resolve()
        train_zoo(arguments.preset, zoo, seed=arguments.seed)
        with tempfile.TemporaryDirectory() as place:
            bundle, asked = prepare(zoo, Path(place), arguments.requests)
            figures, wrong = MEASURES[arguments.what](bundle, asked, Path(place))
        kept.setdefault(arguments.what, {})[f"{arguments.preset}, {arguments.seed}"] = figures
        write_json(arguments.json, kept)
    show(kept)
    if wrong:
        sys.exit("\n" + "\n".join(wrong[:20]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=(*MEASURES, "show"))
    parser.add_argument("--folder", type=Path, default=Path("zoo/benchmark"))
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--seed", type=int, default=300)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures are kept")
    return parser.parse_args()


def prepare(zoo: Path, place: Path, count: int) -> tuple[Bundle, list[Asked]]:
    """The bundle, and different requests in equal shares of the tasks, in a random order."""
    tasks = [(config, config.open()) for config in load_recipe(zoo / "glue.yaml").tasks]
    experts = {task.name: zoo / "models" / _specialist(zoo, task.name) for _, task in tasks}
    prompts = {task.name: prompts_of(task, "search") for _, task in tasks}
    compose(experts, prompts, place / "bundle")
    bundle = Bundle.load(place / "bundle")
    asked = []
    for number, (config, task) in enumerate(tasks):
        settings = config.to_mapping()
        tokens, stop = settings.get("max_new_tokens", TOKENS), tuple(settings.get("stop", ()))
        share = (count + number) // len(tasks)
        for prompt in list(dict.fromkeys(prompts_of(task, "report")))[:share]:
            (text,) = bundle.generate([prompt], max_new_tokens=tokens, stop=stop)
            (route,) = bundle.route([prompt])
            asked.append(Asked(prompt, tokens, stop, text, bundle.experts[route.expert]))
    random.Random(0).shuffle(asked)
    return bundle, asked


def _specialist(zoo: Path, skill: str) -> str:
    models = read_json(zoo / "zoo.json")["models"]
    found = (m["name"] for m in models if m["role"] == "specialist" and m["skill"] == skill)
    return str(next(found))


def in_process(bundle: Bundle, asked: Sequence[Asked], place: Path) -> tuple[Any, list[str]]:
    """One server that holds all experts."""
    with ExitStack() as stack:
        start = _serve(stack, bundle.path, log=place / "gateway.log")
        address = _address(start)
        told, seconds = asyncio.run(load(address, bundle.experts, asked))
        figures, wrong = judged(asked, told, seconds, address)
    if figures["broke off"]:
        wrong.append(f"{figures['broke off']} answers broke off, and nobody was killed")
    return figures, wrong


def on_upstreams(bundle: Bundle, asked: Sequence[Asked], place: Path) -> tuple[Any, list[str]]:
    """Two servers for each expert behind a gateway; one of the busiest expert's is killed."""
    busiest = Counter(one.expert for one in asked).most_common(1)[0][0]
    with ExitStack() as stack:
        # A server of the whole bundle, asked for an expert by its name, is a server of that expert.
        started = {
            name: [
                _serve(stack, bundle.path, log=place / f"{number}-{replica}.log")
                for replica in range(2)
            ]
            for number, name in enumerate(bundle.experts)
        }
        entries = [
            {"name": name, "urls": [_address(server) for server in pair]}
            for name, pair in started.items()
        ]
        config = place / "upstreams.yaml"
        config.write_text(json.dumps({"experts": entries, "probe": {"every": 0.5}}))
        options = ["--upstreams", config, "--name", "glued"]
        address = _address(_serve(stack, bundle.path, *options, log=place / "gateway.log"))
        doomed = started[busiest][0]
        told, seconds = asyncio.run(load(address, bundle.experts, asked, kill=doomed.kill))
        figures, wrong = judged(asked, told, seconds, address)
    figures |= {"killed": f"one of two servers of {busiest}"}
    if not figures["failures"]:
        wrong.append("the server that was killed had nothing to do; ask more at once (--requests)")
    return figures, wrong


@contextmanager
def _ended(program: "subprocess.Popen[str]") -> Iterator[None]:
    try:
        yield
    finally:
        program.kill()
        program.wait()


def _serve(stack: ExitStack, bundle: Path, *options: object, log: Path) -> "subprocess.Popen[str]":
    """A real `modelglue serve` that is starting; it ends with the stack."""
    words = ["serve", bundle, "--port", 0, *(options or ["--name", "glued"])]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(modelglue.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    program = subprocess.Popen(
        [sys.executable, "-m", "modelglue.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=stack.enter_context(log.open("w")),
        text=True,
        env=environment,
    )
    stack.enter_context(_ended(program))
    return program


def _address(program: "subprocess.Popen[str]") -> str:
    """Where a server listens, which is what it says first."""
    line = "" if program.stdout is None else program.stdout.readline()
    if "http://" not in line:
        sys.exit(f"a server did not start: {line}")
    return "http://" + line.split("http://")[1].strip()


def judged(
    asked: Sequence[Asked], told: Sequence[Told], seconds: float, address: str
) -> tuple[dict[str, Any], list[str]]:
    """Figures, and a line for each request that was lost or mixed up."""
    verdicts = [verdict(*pair) for pair in zip(asked, told, strict=True)]
    whole = [t for t, v in zip(told, verdicts, strict=True) if v == "answered"]
    figures = {
        "requests": len(asked),
        **{name: verdicts.count(name) for name in VERDICTS},
        "different answers": len({one.text for one in asked}),
        "experts": dict(Counter(one.expert for one in asked)),
        "failures": _metric(address, "modelglue_upstream_failures_total"),
        "retries": _metric(address, "modelglue_upstream_retries_total"),
        "seconds": seconds,
        "requests per second": len(whole) / seconds,
        "first text": _percentiles([t.first for t in whole if t.text]),
        "whole answer": _percentiles([t.seconds for t in whole]),
    }
    wrong = [
        f"{v}: {a.prompt!r} to {a.expert} is {a.text!r}; {t.expert} told {t.text!r} {t.error}"
        for a, t, v in zip(asked, told, verdicts, strict=True)
        if v in ("lost", "mixed up")
    ]
    return figures, wrong


def _metric(address: str, name: str) -> int:
    """The sum of a gateway's metric over its labels."""
    text = httpx.get(address.removesuffix("/v1") + "/metrics").text
    lines = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
    return round(sum(float(line.rsplit(" ", 1)[1]) for line in lines))


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Each the smallest that so many of a hundred don't exceed."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {str(p): ordered[max(1, math.ceil(len(ordered) * p / 100)) - 1] for p in PERCENTILES}


def show(kept: Mapping[str, Mapping[str, Any]]) -> None:
    for what, zoos in kept.items():
        for zoo, one in zoos.items():
            counts = ", ".join(f"{one[name]} {name}" for name in VERDICTS)
            shares = ", ".join(f"{name} {count}" for name, count in one["experts"].items())
            print(f"\n{what} ({zoo}): {one['requests']} requests at once ({shares})\n")
            print(f"{counts}; {one['different answers']} different answers")
            if "killed" in one:
                print(
                    f"killed: {one['killed']}; {one['failures']} failures, "
                    f"{one['retries']} asked of another server"
                )
            print(f"{one['seconds']:.1f} s, {one['requests per second']:.1f} requests per second")
            for name in ("first text", "whole answer"):
                told = (f"{seconds:7.2f} s ({p} %)" for p, seconds in one[name].items())
                print(f"{name:14}" + "".join(told))


MEASURES: Mapping[str, Callable[[Bundle, Sequence[Asked], Path], tuple[Any, list[str]]]] = {
    "process": in_process,
    "upstreams": on_upstreams,
}


if __name__ == "__main__":
    main()
