"""Mixtures beside their experts: tokens per second, and what composing one costs.

    python benchmarks/mixture.py speed     # against the dense expert, in turn, in one process
    python benchmarks/mixture.py writing   # against copying the bytes; about 1.1 B parameters × 4
    python benchmarks/mixture.py show

`speed`: random Llama-shaped models (fp32) of about 20 and 100 M parameters, two experts, one of
which is the dense model. Prompts of 64 tokens are continued greedily by 64. A bundle is asked as
`Bundle.generate` beside `HuggingFaceModel.generate` of the expert; what is one checkpoint as
`generate` of transformers on both sides: a stock one with the loop over its experts that
`HuggingFaceModel` chooses, and with transformers' own. Both sides run in turn, `--repeats` times; a
share is the median of the shares of these rounds.
"One route": prompts that the router sends to one expert. "Mixed": four to each, beside the experts
run one after the other on their shares.

`writing`: `modelglue mix` of four checkpoints with routers that are random, so that no model is
instantiated, less the wall of the same mixture of tiny models; beside it the floor of
`benchmarks/merge.py`: read all inputs and write as many bytes as the mixture has, synced.
"""

import argparse
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evaluate import made_up, make_model
from fabricate import SIZES, fabricate
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.journal import read_json, write_json
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.compose import compose
from modelglue.mixture.notation import MixtureKind
from processes import median, run, warm

RESULTS = Path(__file__).parent / "results" / "mixture.json"
TOKENS, BATCH = 64, 8
KINDS = {
    "block (B-L-S)": MixtureKind("block"),
    "FFN by sample (F-L-S)": MixtureKind("ffn"),
    "FFN, stock (F-L-T)": MixtureKind("ffn", input="token"),
}
STOCK = ("FFN, stock (F-L-T)",)
LEAST = {
    "model (M-L-S), batch 1": 0.97,
    "model (M-L-S), batch 8": 0.9,
    "model (M-L-S), batch 8, mixed": 1.0,
    "block (B-L-S), batch 1": 0.85,
    "block (B-L-S), batch 8": 0.85,
    "FFN, stock (F-L-T), batch 1": 0.85,
    "FFN, stock (F-L-T), batch 8": 0.85,
    "FFN, stock (F-L-T), transformers' loop, batch 1": 0.85,
    "FFN, stock (F-L-T), transformers' loop, batch 8": 0.85,
}
"""What is promised: tokens per second, as a share of the dense expert's."""
WRITING, MEMORY = 1.5, 1e9
WRITTEN = {"FFN, stock (F-L-T)": "F-L-T", "block (B-L-S)": "B-L-S", "model (M-L-S)": "M-L-S"}
EXPERTS = 4

Timed = Callable[[], Any]
Note = Callable[[str, dict[str, float]], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "writing", "show"))
    parser.add_argument("--sizes", type=int, nargs="+", choices=(1, 20, 100), default=[20, 100])
    parser.add_argument("--size", choices=SIZES, default="1.1", help="of what is written")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/.work"))
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures are kept")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    kept: dict[str, Any] = read_json(arguments.json) if arguments.json.exists() else {}
    if arguments.what == "speed":
        for size in arguments.sizes:
            kept.setdefault("speed", {})[str(size)] = speed(size, repeats=arguments.repeats)
            write_json(arguments.json, kept)
    elif arguments.what == "writing":
        found = writing(arguments.work, arguments.size, repeats=arguments.repeats)
        kept.setdefault("writing", {})[arguments.size] = found
        write_json(arguments.json, kept)
    show(kept)


def speed(size: int, *, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each mixture and of the dense expert, by mixture and batch."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}

    def note(name: str, one: dict[str, float]) -> None:
        found[name] = one
        print(f"{size} M, {name}: {one['share']:.2f}", flush=True)

    with tempfile.TemporaryDirectory() as place:
        experts = _experts(size, Path(place))
        texts = _texts()
        prompts = {name: own[:20] for name, own in texts.items()}
        asked = [own[20 : 20 + BATCH] for own in texts.values()]
        bundle_place, places = Path(place) / "bundle", {}
        compose(experts, prompts, bundle_place)
        for name, kind in KINDS.items():
            places[name] = Path(place) / kind.short
            compose(experts, prompts, places[name], kind=kind)
        dense = HuggingFaceModel.load(experts["stories"])
        _of_bundle(bundle_place, dense, asked, note, repeats)
        for name, folder in places.items():
            mixture = HuggingFaceModel.load(folder)
            _of_checkpoint(name, mixture, dense, asked[0], note, repeats)
            if name in STOCK:
                mixture.module.set_experts_implementation("grouped_mm")
                own = f"{name}, transformers' loop"
                _of_checkpoint(own, mixture, dense, asked[0], note, repeats)
    return found


def _of_bundle(
    place: Path,
    dense: HuggingFaceModel,
    asked: list[list[str]],
    note: Note,
    repeats: int,
) -> None:
    bundle = Bundle.load(place)
    routes = [{route.expert for route in bundle.route(own)} for own in asked]
    if routes != [{0}, {1}]:
        sys.exit(f"the router does not part the prompts: {routes}")
    for batch in (1, BATCH):
        one = asked[0][:batch]
        sides = _by_ours(bundle, one), _by_ours(dense, one)
        note(f"model (M-L-S), batch {batch}", in_turn(*sides, repeats))
    halves = [own[: BATCH // 2] for own in asked]
    shares = [_by_ours(bundle.expert(i), half) for i, half in enumerate(halves)]
    mixed = _by_ours(bundle, [*halves[0], *halves[1]])
    alone = in_turn(mixed, lambda: [share() for share in shares], repeats)
    note(f"model (M-L-S), batch {BATCH}, mixed", alone)


def _of_checkpoint(
    name: str,
    mixture: HuggingFaceModel,
    dense: HuggingFaceModel,
    asked: list[str],
    note: Note,
    repeats: int,
) -> None:
    for batch in (1, BATCH):
        one = asked[:batch]
        sides = _by_transformers(mixture, one), _by_transformers(dense, one)
        note(f"{name}, batch {batch}", in_turn(*sides, repeats))


def in_turn(mixture: Timed, dense: Timed, repeats: int) -> dict[str, float]:
    """Median seconds of both, and the median share; the first round warms up and does not count."""
    rounds = [(_seconds(mixture), _seconds(dense)) for _ in range(repeats + 1)][1:]
    ours, theirs = (statistics.median(side) for side in zip(*rounds, strict=True))
    share = statistics.median(expert / own for own, expert in rounds)
    return {"mixture": ours, "dense": theirs, "share": share}


def _seconds(work: Timed) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _by_ours(model: Any, prompts: list[str]) -> Timed:
    return partial(model.generate, prompts, max_new_tokens=TOKENS)


def _by_transformers(model: HuggingFaceModel, prompts: list[str]) -> Timed:
    tokenizer = model.tokenizer
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    length = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}

    def generate() -> Any:
        with torch.inference_mode():
            return model.module.generate(
                inputs.input_ids,
                attention_mask=inputs.attention_mask,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                **length,
            )

    return generate


def _experts(size: int, place: Path) -> dict[str, Path]:
    """A random model, and the same with a little noise on every matrix."""
    model, tokenizer = make_model(size, made_up(400))
    folders = {}
    for name in ("stories", "numbers"):
        folders[name] = place / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.05)
    return folders


def _texts() -> dict[str, list[str]]:
    """Prompts of two kinds, which any router tells apart."""
    questions = made_up(60)
    return {
        "stories": [question.text for question in questions],
        "numbers": [f"{q.equation} ; " * 8 for q in questions],
    }


def writing(work: Path, size: str, *, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of `modelglue mix`, and the floor's seconds."""
    found = {}
    for name, kind in WRITTEN.items():
        tiny = median([_mix(work, "tiny", kind, keep=False) for _ in range(repeats)])
        runs = [_mix(work, size, kind, keep=True) for _ in range(repeats)]
        mixture = work / "mixed"
        nbytes = sum(path.stat().st_size for path in mixture.rglob("*.safetensors"))
        shutil.rmtree(mixture)
        floor = median([_floor(work, size, nbytes) for _ in range(repeats)])
        whole = median(runs)
        found[name] = {
            "seconds": whole.wall - tiny.wall,
            "start": tiny.wall,
            "floor": floor.wall,
            "private": whole.private,
            "bytes": nbytes,
        }
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    return found


def _mix(work: Path, size: str, kind: str, *, keep: bool) -> Any:
    models = fabricate(
        work / f"models-{size}", SIZES[size].shapes, SIZES[size].config, models=EXPERTS
    )
    out = work / "mixed"
    shutil.rmtree(out, ignore_errors=True)
    config = {
        "kind": kind,
        "initialisation": "random",
        "experts": [{"model": str(path), "prompts": [path.name]} for path in models],
    }
    (work / "mixture.yaml").write_text(json.dumps(config))
    warm([path / "model.safetensors" for path in models])
    command = Path(sys.executable).parent / "modelglue"
    spent = run([command, "mix", work / "mixture.yaml", out], cores=2)
    if not keep:
        shutil.rmtree(out)
    return spent


def _floor(work: Path, size: str, nbytes: int) -> Any:
    inputs = sorted((work / f"models-{size}").glob("model-*/model.safetensors"))[:EXPERTS]
    warm(inputs)
    target = work / "floor"
    target.unlink(missing_ok=True)
    floor = Path(__file__).with_name("floor.py")
    words = ["--threads", "2", "--output", str(target), "--bytes", str(nbytes)]
    spent = run([sys.executable, floor, *words, *inputs], cores=2)
    target.unlink()
    return spent


def show(kept: Mapping[str, Any]) -> None:
    for size, rows in kept.get("speed", {}).items():
        print(f"\ntokens per second as a share of the dense expert's, about {size} M parameters\n")
        for name, one in rows.items():
            share, least = one["share"], LEAST.get(name)
            verdict = "" if least is None else f"  ≥ {least} {'yes' if share >= least else 'NO'}"
            print(f"{name:52}{share:6.2f}{verdict}")
    for size, rows in kept.get("writing", {}).items():
        print(f"\nwriting {EXPERTS} experts of {size} B parameters, two cores\n")
        for name, one in rows.items():
            times = one["seconds"] / one["floor"]
            print(
                f"{name:24}{one['bytes'] / 1e9:6.1f} GB {one['seconds']:7.2f} s, "
                f"{times:.2f} times the floor ≤ {WRITING} {'yes' if times <= WRITING else 'NO'}, "
                f"{one['private'] / 1e6:.0f} MB < {MEMORY / 1e6:.0f} "
                f"{'yes' if one['private'] < MEMORY else 'NO'}"
            )


if __name__ == "__main__":
    main()
