"""Made-up reports of any size, shaped like real ones."""

import random
from dataclasses import replace

from modelglue.report.data import (
    AcceptanceTest,
    Difference,
    InputInfo,
    ModelFate,
    PairReason,
    RivalComparison,
    RoutingTable,
    RunReport,
    SearchGeneration,
    SearchPath,
    SearchStep,
    SimilarityMap,
    TableRow,
    TaskInfo,
)

SKILLS = ("knowledge", "maths", "code", "chat")
STRATEGIES = ("heuristic_average", "heuristic_coefficient", "heuristic_similarity")


def make_report(
    models: int = 8,
    *,
    families: int = 3,
    tasks: int = 3,
    seed: int = 0,
    gain: tuple[float, float, float] = (0.042, 0.029, 0.055),
) -> RunReport:
    """A plausible report: the last family is foreign and compares with nobody."""
    rng = random.Random(seed)
    names = [f"{SKILLS[i % 4]}-{'abcdefghijklmnopqrstuvwxyz'[i // 4]}" for i in range(models)]
    family_of = [0 if i < models * 0.65 else 1 + (i % max(1, families - 1)) for i in range(models)]
    family_of = [min(f, families - 1) for f in family_of]
    members = [
        [n for n, f in zip(names, family_of, strict=True) if f == k] for k in range(families)
    ]
    task_names = [("knowledge", "maths", "code", "chat", "story", "logic")[t] for t in range(tasks)]
    similarity = _similarity(rng, names, family_of, members)
    searches = tuple(
        _search(rng, k, strategy, group, winner=strategy == STRATEGIES[1])
        for k, group in enumerate(members)
        if len(group) > 1
        for strategy in STRATEGIES
    )
    kept = {n: w for s in searches if s.winner for n, w in s.coefficients.items()}
    fates = tuple(
        ModelFate(
            name=name,
            path=f"models/{name}",
            architecture="LlamaForCausalLM" if family < families - 1 else "GPTNeoXForCausalLM",
            parameters=950_000,
            family=family,
            fate="baseline" if i == 0 else "merged" if name in kept else "dropped",
            reason="the base of the family; scored, not merged"
            if i == 0
            else "raises the search score by 2.31 points"
            if name in kept
            else "at best lowers the search score by 1.04 points",
            search={task: rng.uniform(0.2, 0.8) for task in task_names},
        )
        for i, (name, family) in enumerate(zip(names, family_of, strict=True))
    )
    return RunReport(
        title="quick zoo, seed 7",
        modelglue="0.1.0",
        seconds=163.4,
        models=fates,
        similarity=similarity,
        searches=searches,
        routing=RoutingTable(
            experts=("family 1 (merged)", "family 2 (merged)", names[-1]),
            tasks=tuple(task_names),
            counts=tuple(
                tuple(800 if k == t % 3 else rng.randrange(60) for k in range(3))
                for t in range(tasks)
            ),
        ),
        tasks=tuple(TaskInfo(t, "multiple_choice", 200, 800) for t in task_names),
        table=_table(rng, names, task_names, gain),
        notes=("The code task was left out: no sandbox is possible on this system.",),
        inputs=tuple(InputInfo(n, f"{rng.getrandbits(256):064x}") for n in names),
        versions={"torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.7"},
        command="modelglue glue zoo/glue.yaml",
    )


def make_evolved_report(*, accepted: bool = True, generations: int = 30) -> RunReport:
    """The same after evolutions: of grouped weights in family 1, of a way through layers in 2."""
    report, rng = make_report(12), random.Random(1)
    first, second = report.similarity.families[:2]
    task = report.tasks[0].name
    beaten = tuple(replace(path, winner=False) for path in report.searches if path.family == 0)
    gap = Difference(0.031, 0.012, 0.05) if accepted else Difference(0.004, -0.013, 0.021)
    said = (
        "The merge is accepted."
        if accepted
        else f"No merge helps here: the best single model, {first[1]}, stays."
    )
    return replace(
        report,
        searches=(
            *beaten,
            _evolution(rng, 0, "evolution", _grouped(rng, first[:3]), generations),
            _evolution(rng, 1, f"data_flow for {task}", _layers(rng, second), 7),
        ),
        tasks=tuple(replace(task, validation_items=80) for task in report.tasks),
        acceptance=(
            AcceptanceTest(
                0,
                "evolution",
                tuple(task.name for task in report.tasks),
                accepted,
                level=0.05,
                looks=2,
                tried=1234,
                comparisons=(
                    RivalComparison(first[1], gap, 0.00004 if accepted else 0.31),
                    RivalComparison(first[0], Difference(0.2, 0.17, 0.23), 0.00004),
                ),
                text=said,
            ),
            AcceptanceTest(
                1,
                "data_flow",
                (task,),
                False,
                level=0.05,
                looks=2,
                tried=42,
                comparisons=(RivalComparison(second[0], Difference(-0.02, -0.05, 0.01), 0.9),),
                text=f"No merge helps here: the best single model, {second[0]}, stays.",
            ),
        ),
    )


def _evolution(
    rng: random.Random, family: int, strategy: str, coefficients: dict[str, float], count: int
) -> SearchPath:
    generations, standing = [], float("-inf")
    for number in range(count):
        best = 0.62 + 0.1 * number / count + rng.uniform(-0.02, 0.02)
        failed = 6 if number == 3 else 0
        if not failed:
            standing = max(standing, best - 0.002)
        generations.append(
            SearchGeneration(
                number,
                float("-inf") if failed else best,
                standing,
                0.17 * 0.93**number,
                6,
                stopped=0 if failed else rng.randrange(4),
                failed=failed,
                items=rng.randrange(800, 1800),
            )
        )
    return SearchPath(
        family,
        strategy,
        winner=True,
        score=standing,
        trials=6 * count,
        coefficients=coefficients,
        generations=tuple(generations),
        items=sum(generation.items for generation in generations),
        low=standing - 0.03,
        high=standing + 0.03,
    )


def _grouped(rng: random.Random, names: tuple[str, ...]) -> dict[str, float]:
    groups = [*(f"layers {i}-{i + 1}" for i in range(0, 12, 2)), "rest"]
    weights = {f"{name} [{group}]": rng.uniform(-0.1, 0.9) for group in groups for name in names}
    densities = {f"density of {name}": rng.uniform(0.2, 1) for name in names}
    return {**weights, **densities, "lambda of *": 0.8}


def _layers(rng: random.Random, names: tuple[str, ...]) -> dict[str, float]:
    """Layers 0 to 3 of the first model, then 2 to 5 of the last."""
    way = [(names[0], layer) for layer in range(4)] + [(names[-1], layer) for layer in range(2, 6)]
    return {
        f"place {place} of {name} [layer {layer}]": 1.0 if place < 4 else rng.uniform(0.8, 1.2)
        for place, (name, layer) in enumerate(way)
    }


def _similarity(
    rng: random.Random, names: list[str], family_of: list[int], members: list[list[str]]
) -> SimilarityMap:
    n, last = len(names), len(members) - 1
    matrix: list[list[float | None]] = [[1.0] * n for _ in range(n)]
    reasons = []
    for i in range(n):
        for j in range(i):
            a, b = family_of[i], family_of[j]
            value: float | None = rng.uniform(0.955, 0.995) if a == b else rng.uniform(0.85, 0.93)
            if a != b and last in (a, b) and last > 0:
                value = None
                reasons.append(
                    PairReason(names[j], names[i], "architecture LlamaForCausalLM ≠ GPTNeoX")
                )
            elif a != b and value is not None:
                reasons.append(PairReason(names[j], names[i], f"similarity {value:.2f} < 0.95"))
            matrix[i][j] = matrix[j][i] = value
    return SimilarityMap(
        names=tuple(names),
        matrix=tuple(tuple(row) for row in matrix),
        threshold=0.95,
        families=tuple(tuple(group) for group in members),
        reasons=tuple(reasons),
    )


def _search(
    rng: random.Random, family: int, strategy: str, group: list[str], *, winner: bool
) -> SearchPath:
    best = rng.uniform(0.6, 0.7)
    steps = [SearchStep(group[0], None, best, best, True, "the best single model")]
    coefficients = {group[0]: 1.0}
    for i, name in enumerate(group[1:]):
        share = round(rng.randrange(3, 10) / 10, 2)
        score = best + (rng.uniform(0.004, 0.03) if i % 2 == 0 else -rng.uniform(0.001, 0.05))
        if i == 3:
            score = 0.27
        accepted = score > best
        reason = "raises the search score" if accepted else "at best lowers the search score"
        steps.append(
            SearchStep(name, share, score, best, accepted, f"{reason} by {abs(score - best):.4f}")
        )
        if accepted:
            coefficients = {n: w * share for n, w in coefficients.items()} | {name: 1 - share}
            best = score
    return SearchPath(family, strategy, winner, best, 9 * len(group), coefficients, tuple(steps))


def _table(
    rng: random.Random, names: list[str], tasks: list[str], gain: tuple[float, float, float]
) -> tuple[TableRow, ...]:
    best = 0.74

    def row(  # type: ignore[no-untyped-def]
        name, kind, gap, stored=950_000, active=950_000, note=""
    ):
        average = best if gap is None else best + gap[0]
        spread = [rng.uniform(-0.08, 0.08) for _ in tasks]
        centre = average - sum(spread) / len(spread)
        found = {task: centre + d for task, d in zip(tasks, spread, strict=True)}
        difference = None if gap is None else Difference(*gap)
        return TableRow(name, kind, found, average, difference, stored, active, note)

    rows = [
        row(names[1], "single", None, note="chosen on the search items"),
        row("uniform merge of everything", "uniform", (-0.332, -0.351, -0.310)),
        row("uniform merge of family 1", "uniform", (-0.012, -0.026, 0.003)),
        row("Heuristic-Average", "heuristic", (0.011, -0.002, 0.023)),
        row("Heuristic-Coefficient", "heuristic", (0.031, 0.018, 0.043)),
        row("Heuristic-Similarity", "heuristic", (0.024, 0.011, 0.037)),
        row("mixture without merging", "mixture", (0.06, 0.04, 0.08), 950_000 * len(names)),
        row("glued model", "glued", gain, 2_852_000, 951_000),
        row("per-task oracle", "oracle", (0.09, 0.08, 0.1), 950_000 * len(names)),
    ]
    for name in [names[0], *names[2:]]:
        worse = rng.uniform(-0.4, -0.05)
        rows.append(row(name, "single", (worse, worse - 0.02, worse + 0.02)))
    return tuple(rows)
