"""Where a configuration names its models and statistics: the keys, for messages."""

from collections.abc import Iterator, Mapping

from modelglue.merge.config.schema import MergeConfig, same_model
from modelglue.merge.config.values import Settings


def places(config: MergeConfig) -> Mapping[str, str]:
    """Every model and every checkpoint of statistics that is named → the first key that does.

    Models come first; two spellings of one are one.
    """
    keys: dict[str, str] = {}
    for key, reference in _named(config):
        keys.setdefault(same_model(reference), key)
    named = (*config.references, *config.statistics)
    return {reference: keys[same_model(reference)] for reference in named}


def _named(config: MergeConfig) -> Iterator[tuple[str, str]]:
    for name, part in config.parts.items():
        prefix = f"modules.{name}." if name else ""
        for i, group in enumerate(part.groups):
            inside = f"{prefix}slices[{i}]." if part.slices else prefix
            for j, entry in enumerate(group.sources):
                where = f"{inside}{'sources' if part.slices else 'models'}[{j}]"
                yield f"{where}.model", entry.model
                yield from _statistics(config, f"{where}.", entry.parameters)
            if group.base_model:
                yield f"{inside}base_model", group.base_model
            yield from _statistics(config, inside, group.parameters)
        yield from _statistics(config, prefix, part.parameters)
    if config.base_model:
        yield "base_model", config.base_model
    yield from _statistics(config, "", config.parameters)


def _statistics(config: MergeConfig, where: str, settings: Settings) -> Iterator[tuple[str, str]]:
    for parameter in config.method.parameters:
        if parameter.kind == "checkpoint" and settings.get(parameter.name) is not None:
            yield f"{where}parameters.{parameter.name}", str(settings[parameter.name])
