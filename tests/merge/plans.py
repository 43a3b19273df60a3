"""Plans made in a line, and what tests ask of them."""

from pathlib import Path
from typing import Any

from modelglue.merge.config.schema import parse_config
from modelglue.merge.plan.merge_plan import MergePlan, TensorPlan, make_plan

UP = "model.layers.{}.mlp.up_proj.weight"


def plan_of(method: str, **config: Any) -> MergePlan:
    return make_plan(parse_config({"merge_method": method, **config}))


def tensor(plan: MergePlan, name: str) -> TensorPlan:
    return next(tensor for tensor in plan.tensors if tensor.name == name)


def sources(plan: MergePlan, name: str) -> list[tuple[str, str]]:
    """(model, tensor) of every source."""
    return [(plan.checkpoint(s).name, s.name) for s in tensor(plan, name).sources]


def piece(model: Path, first: int, last: int, **parameters: Any) -> dict[str, Any]:
    return {"model": str(model), "layer_range": [first, last], "parameters": parameters}


def names(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]
