"""Mixtures: make one, see where it sends a text, train its routers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from modelglue.cli.app import Device, Json, app, print_json
from modelglue.errors import InputError

if TYPE_CHECKING:
    from modelglue.mixture.inspect_routes import TextRoute
    from modelglue.mixture.mix import MixtureSummary

Out = Annotated[Path, typer.Argument(help="The mixture to make.")]


@app.command()
def mix(
    config: Annotated[Path, typer.Argument(help="YAML: experts, each with model and prompts.")],
    out: Out,
    kind: Annotated[
        str | None,
        typer.Option(help="F-L-T, B-L-S, M-M-S …: level, router, input; in the file's place."),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Put routers over checkpoints, or inside of one made of them; nothing is trained."""
    from modelglue.mixture.config import load_mixture

    mixture = load_mixture(config, kind=kind)
    given = {**mixture.arguments(), "out": out, "device": device or "cpu"}
    if mixture.is_bundle:
        from modelglue.mixture.mix import mix as put_together

        summary = put_together(**given)
    else:
        from modelglue.mixture.compose import compose

        summary = compose(**given)
    if as_json:
        print_json(summary.to_json())
    else:
        _show_mixture(summary)


@app.command()
def route(
    model: Annotated[Path, typer.Argument(help="A bundle, or a checkpoint with routers.")],
    text: Annotated[list[str] | None, typer.Argument(help="Texts to route.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A .txt with a text a line, or a .jsonl with texts.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Which experts texts go to, and why: probabilities, near prompts, what each layer says."""
    from modelglue.mixture.inspect_routes import inspect_routes
    from modelglue.mixture.training_samples import read_samples

    texts = list(text or ())
    if file is not None:
        texts += [sample.routed_on for sample in read_samples(file)]
    if not texts:
        raise InputError("nothing to route: give texts, or --file")
    found = inspect_routes(model, texts, device=device or "cpu")
    if as_json:
        print_json([one.to_json() for one in found])
    else:
        for one in found:
            _show_route(one)


@app.command(name="train-router")
def train_router(
    model: Annotated[Path, typer.Argument(help="A bundle, or a checkpoint with routers.")],
    out: Out,
    text: Annotated[
        list[Path] | None,
        typer.Option(help='.txt, a text a line; .jsonl with "text", or "prompt", "completion".'),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help='Bundles: .jsonl with "text" and "scores": {expert: number}.'),
    ] = None,
    router: Annotated[
        Literal["linear", "mlp"] | None, typer.Option(help="Bundles: the kind to train.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Default: 300; of a bundle at most 500.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.0, help="Checkpoints: the highest learning rate. Default: 0.05."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Checkpoints: sequences a step. Default: 8.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Checkpoints: tokens of a sequence. Default: 256.")
    ] = None,
    balance: Annotated[
        float | None,
        typer.Option(min=0.0, help="Weight of using experts alike. Default: 0.01; a bundle's 0."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the parts and their order.")] = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train routers alone on texts or scores; OUT is the same mixture with what was learnt."""
    from modelglue.mixture.manifest import FILE, read_manifest
    from modelglue.mixture.training import TableSettings
    from modelglue.mixture.training_bundle import train_bundle
    from modelglue.mixture.training_layers import LayerSettings, train_layers
    from modelglue.mixture.training_samples import read_samples, read_scores

    is_bundle = (model / FILE).is_file()
    given: dict[str, Any] = {"steps": steps, "balance": balance}
    of_layers: dict[str, Any] = {"rate": rate, "rows": rows, "length": length}
    _refuse_others(is_bundle, {"scores": scores, "router": router}, of_layers)
    if (not text) == (scores is None):
        raise InputError("give texts with --text, or for a bundle --scores; one of the two")
    samples = [sample for path in text or () for sample in read_samples(path)]
    where = device or "cpu"
    if is_bundle:
        names = [expert.name for expert in read_manifest(model).experts]
        done = train_bundle(
            model,
            out,
            samples if scores is None else read_scores(scores, names),
            router=router,
            settings=TableSettings(seed=seed, **_given(given)),
            device=where,
            progress=None if as_json else lambda line: typer.echo(line, err=True),
        ).to_json()
    else:
        settings = LayerSettings(seed=seed, **_given({**given, **of_layers}))
        done = train_layers(model, out, samples, settings=settings, device=where).to_json()
        done.update(done.pop("report"))
    if as_json:
        print_json(done)
    else:
        _show_training(done)


def _refuse_others(
    is_bundle: bool, of_bundles: Mapping[str, object], of_layers: Mapping[str, object]
) -> None:
    """Refuse options that are for the other sort of mixture."""
    others, sort = (
        (of_layers, "a checkpoint, and this is a bundle")
        if is_bundle
        else (of_bundles, "a bundle, and this is none")
    )
    if wrong := [f"--{name}" for name, value in others.items() if value is not None]:
        raise InputError(f"{', '.join(wrong)}: for routers of {sort}")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _show_mixture(made: "MixtureSummary") -> None:
    from modelglue.mixture.conditions import shown

    typer.echo(f"{made.path}: {made.kind.short} over {', '.join(made.experts)}")
    if made.form == "bundle":
        typer.echo("  form       a bundle of whole models")
    elif made.not_stock is None:
        typer.echo(f"  form       the stock class {made.form}")
    else:
        typer.echo("  form       a checkpoint with its own modelling file")
        typer.echo(f"  not stock  {made.not_stock}")
    typer.echo(f"  condition  {shown(made.conditions)}")
    for confusion in made.confusions:
        typer.echo(f"warning: {confusion}", err=True)


def _show_route(found: "TextRoute") -> None:
    from rich.text import Text

    from modelglue.report.markup import clean
    from modelglue.report.terminal import table_of, wide_console

    console = wide_console()
    names = list(found.share)
    console.print(Text(f"{_short(clean(found.text))}  →  {clean(found.expert)}", style="bold"))
    if found.layers:
        table = table_of("", ["layer", *map(clean, names)])
        for layer in found.layers:
            table.add_row(str(layer.layer), *_percent(names, layer.share))
        table.add_row("all", *_percent(names, found.share))
    else:
        table = table_of("", ["", *map(clean, names)])
        table.add_row("probability", *_percent(names, found.probability))
        if sum(share > 0 for share in found.share.values()) > 1:
            table.add_row("share", *_percent(names, found.share))
    console.print(table)
    for near in found.nearest:
        whose = ", ".join(
            clean(name) if number == 1.0 else f"{clean(name)} {number:g}"
            for name, number in near.experts.items()
        )
        console.print(Text(f"  {near.similarity:+.2f}  {_short(clean(near.text))}  ({whose})"))
    if found.tokens:
        parts = [
            f"{clean(word)!r} {clean(max(share, key=share.__getitem__))}"
            for word, share in found.tokens
        ]
        console.print(Text("  " + "  ".join(parts)), soft_wrap=True)


def _show_training(done: Mapping[str, Any]) -> None:
    def shown(interval: Mapping[str, float]) -> str:
        return f"{interval['mean']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"

    typer.echo(f"{done['path']}: {done['unit']} on {done['samples']} texts kept apart")
    typer.echo(f"  before  {shown(done['before'])}")
    typer.echo(f"  after   {shown(done['after'])}")
    typer.echo(f"  gain    {shown(done['gain'])}")
    if "oracle" in done:
        typer.echo(f"  best single expert {done['single']:.4f}, oracle {done['oracle']:.4f}")
    if not done["kept"]:
        typer.echo("  Training gained nothing on texts kept apart; the routers are as they were.")


def _percent(names: Sequence[str], shares: Mapping[str, float]) -> list[str]:
    return [f"{100 * shares[name]:.1f} %" for name in names]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:79] + "…"
