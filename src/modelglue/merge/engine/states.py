"""Plans for modules that compute with other tensors than their checkpoints store.

transformers joins some tensors as it loads a model (the experts of a layer, say). Then modules are
loaded in the place of checkpoints, and their states are merged. What an elementwise method makes of
joined tensors is what it makes of the parts; of any other method it would be another model than the
one that is written, so those are refused.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from modelglue.checkpoint.files import Descriptors
from modelglue.checkpoint.naming import place, split_layer
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.spec import TensorSpec, dtype_name
from modelglue.errors import NotMergeable
from modelglue.merge.engine.held import Held
from modelglue.merge.memory import as_array
from modelglue.merge.method import Law
from modelglue.merge.plan.merge_plan import MergePlan, Source, TensorPlan


class States:
    """Loaded modules in the place of checkpoints.

    Args:
        load: a checkpoint as a module.
        held: gets their tensors.
    """

    def __init__(self, load: Callable[[Checkpoint], nn.Module], held: Held) -> None:
        self._load, self._held = load, held
        self._loaded: dict[int, tuple[Checkpoint, Checkpoint]] = {}

    def of(self, checkpoint: Checkpoint) -> Checkpoint:
        """A checkpoint's module, as a checkpoint of the names and shapes that it computes with."""
        if id(checkpoint) not in self._loaded:
            state = self._load(checkpoint).state_dict()
            specs = {
                name: TensorSpec(
                    name, dtype_name(t.dtype), tuple(t.shape), checkpoint.path, 0, t.nbytes
                )
                for name, t in state.items()
                if t.is_floating_point()
            }
            loaded = Checkpoint(checkpoint.path, checkpoint.config, specs, Descriptors())
            for name in specs:
                flat = state[name].detach().reshape(-1)
                self._held.add(loaded, name, flat if self._held.device else as_array(flat))
            self._loaded[id(checkpoint)] = (checkpoint, loaded)
        return self._loaded[id(checkpoint)][1]

    def translated(self, plan: MergePlan, state: Mapping[str, Tensor]) -> MergePlan:
        """The plan in the names of a module's state.

        Raises:
            NotMergeable: it would not give the same model.
        """
        method = plan.config.method
        by_entry = Law.ELEMENTWISE in method.laws and method.statistics == "none"
        if not by_entry or method.parameter("seed") is not None:
            own = next(t.name for t in plan.tensors if t.name not in state)
            raise NotMergeable(
                f"{own} is joined with others as transformers loads the model, so that "
                f"{method.name} would make something else of it than what is written. Merge with "
                "linear or task_arithmetic."
            )
        tensors = [
            _translated(name, tensor, _made_like(name, plan.tensors))
            for name, tensor in state.items()
            if tensor.is_floating_point()
        ]
        models = tuple(map(self.of, plan.models))
        base = self.of(plan.base) if plan.reads_base and plan.base is not None else plan.base
        for tensor in tensors:
            for source in (*tensor.sources, *([tensor.base] if tensor.base else [])):
                model = base if source.model is None else models[source.model]
                if model is None or source.name not in model.tensors:
                    raise NotMergeable(
                        "two checkpoints of one family load into modules of different tensors"
                    )
        return replace(plan, models=models, base=base, tensors=tuple(tensors))


def _made_like(name: str, tensors: Sequence[TensorPlan]) -> TensorPlan:
    """A tensor of the plan that is made as the module's tensor `name` has to be."""
    here = place(name)
    near = [t for t in tensors if t.name == name]
    near = near or [t for t in tensors if place(t.name).layer == here.layer] or list(tensors)
    if len(set(map(_making, near))) > 1:
        near = [t for t in near if place(t.name).role == here.role] or near
    if len(set(map(_making, near))) > 1:
        raise NotMergeable(
            f"{name} is joined of several tensors as transformers loads the model, and their "
            "parameters differ. Give the tensors of a layer the same ones."
        )
    return near[0]


def _making(tensor: TensorPlan) -> Hashable:
    """What may differ from tensor to tensor: where it is from, and the parameters."""
    sources = (*tensor.sources, *([tensor.base] if tensor.base else []))
    return (
        tensor.method,
        repr(sorted(tensor.parameters.items())),
        tuple((source.model, place(source.name).layer) for source in sources),
    )


def _translated(name: str, tensor: Tensor, like: TensorPlan) -> TensorPlan:
    def source(of: Source) -> Source:
        split, layer = split_layer(name), place(of.name).layer
        if split is None or layer is None:
            return Source(of.model, name)
        return Source(of.model, f"{split[0]}{layer}{split[2]}")

    return TensorPlan(
        name,
        dtype_name(tensor.dtype),
        tuple(tensor.shape),
        like.method,
        tuple(map(source, like.sources)),
        None if like.base is None else source(like.base),
        like.parameters,
    )
