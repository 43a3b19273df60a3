"""The parameters of a plan's tensors: checked, and changed where all else stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import NotMergeable, UnusableValues
from modelglue.merge.config.inputs import arrange
from modelglue.merge.config.schema import MergeConfig
from modelglue.merge.config.values import Resolver
from modelglue.merge.method import Method
from modelglue.merge.plan.problems import Problems
from modelglue.merge.plan.slices import Layers
from modelglue.merge.plan.tensor_plan import TensorPlan

if TYPE_CHECKING:
    from modelglue.merge.plan.merge_plan import MergePlan


def with_values(plan: MergePlan, config: MergeConfig) -> MergePlan:
    """The plan that the configuration would get if all was resolved anew, in a part of the time.

    Args:
        plan: of whole models, without slices and modules.
        config: names the same models in the same order; only numbers differ from `plan.config`.

    Raises:
        UnusableValues: nothing can be merged with these values.
        NotMergeable: a value that must be one for the whole model varies.
    """
    problems, method = Problems(), plan.config.method
    (group,) = config.parts[""].groups
    inputs = arrange(method, group, config.base_model)
    levels = [group.parameters, config.parts[""].parameters, config.parameters]
    resolver = Resolver(method, levels, [entry.parameters for entry in inputs.models])
    layers, check = Layers(plan.template.tensors), ValueCheck(method, problems)
    tensors = []
    for tensor in plan.tensors:
        names = (tensor.name,) * len(inputs.models)
        t = 0.0 if resolver.constant else layers.t(tensor.name)
        parameters = resolver(tensor.name, names, t)
        check(tensor.name, parameters)
        tensors.append(replace(tensor, parameters=parameters))
    models = [plan.models[source.model or 0] for source in plan.tensors[0].sources]
    unsaid(method, resolver, models, problems)
    if (varies := variation(method, tensors)) is not None:
        problems.add(varies)
    if problems:
        raise problems.error()
    return replace(plan, tensors=tuple(tensors), config=config)


class ValueCheck:
    """Whether a method can be used with the values of its parameters; equal ones are told once.

    Args:
        method: whose parameters.
        problems: what is wrong is added here.
    """

    def __init__(self, method: Method, problems: Problems) -> None:
        self._method, self._problems = method, problems
        self._checked: dict[int, Mapping[str, Any]] = {}

    def __call__(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Check those of the tensor `name`."""
        if id(parameters) in self._checked:
            return
        self._checked[id(parameters)] = parameters  # kept, so that its id stays its own
        for parameter in self._method.parameters:
            value = parameters[parameter.name]
            for one in value if parameter.per == "model" else (value,):
                told = parameter.problem(one)
                if one is None and told:
                    told = f"must be given: {parameter.help}"
                if told:
                    self._problems.tell(UnusableValues, name, f"{parameter.name}: {told}")
                    return
        told = self._method.check(parameters)
        if told:
            self._problems.tell(UnusableValues, name, told)


def unsaid(
    method: Method, resolver: Resolver, models: Sequence[Checkpoint], problems: Problems
) -> dict[str, None]:
    """What no filter gives to some tensor: a weight is a problem, all else has its default.

    Args:
        method: whose parameters.
        resolver: has resolved all tensors.
        models: whose parameters it resolved.
        problems: what is wrong is added here.

    Returns:
        Notes on the defaults.
    """
    notes: dict[str, None] = {}
    for (name, column), tensor in resolver.unsaid.items():
        parameter = method.parameter(name)
        if parameter is None or parameter.default is None:
            continue
        of = f" of {models[column].name}"
        told = f"no filter of {name}{of if parameter.per == 'model' else ''} is in its name"
        if name == "weight":
            problems.tell(NotMergeable, tensor, f"{told}; add a value without a filter")
        else:
            notes[f"{tensor}: {told}; it gets {parameter.default}"] = None
    return notes


def variation(method: Method, tensors: Sequence[TensorPlan]) -> NotMergeable | None:
    """What is wrong if values vary that a measure of the whole model is taken with."""
    together = {
        id(tensor.parameters): method.read_first(tensor.parameters)
        for tensor in tensors
        if method.reach(tensor.parameters) == "model"
    }
    first = next(iter(together.values()), {})
    vary = [name for name in first if any(v[name] != first[name] for v in together.values())]
    if not vary:
        return None
    return NotMergeable(
        f"parameters: {method.name} looks at the whole model here, so its {' and '.join(vary)} "
        "cannot vary from tensor to tensor. Set it to one value."
    )
