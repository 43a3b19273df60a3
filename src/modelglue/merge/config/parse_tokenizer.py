"""What a configuration says about models' names, the tokenizer and the chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from modelglue.checkpoint.chat_templates import template_problem
from modelglue.merge.config.schema import TokenizerConfig, TokenSource, same_model
from modelglue.registry import nearest

_SECTION = ("source", "tokens", "pad_to_multiple_of")
_TOKEN = ("source", "force")
_SOURCE = ("kind", "model", "token", "token_id")


def reference(value: object, where: str, problems: list[str]) -> str | None:
    """A model as a configuration names it: a text, or the mapping that mergekit writes for one."""
    match value:
        case str() if value.strip():
            return value
        case {"model": model, **rest} if not rest.keys() - {"lora", "override_architecture"}:
            base = _path(model, f"{where}.model", problems)
            lora = rest.get("lora")
            adapter = None if lora is None else _path(lora, f"{where}.lora", problems)
            return base and (f"{base}+{adapter}" if adapter else base)
        case {"path": _}:
            return _path(value, where, problems)
    problems.append(f"{where}: a path or org/name is needed")
    return None


def _path(value: object, where: str, problems: list[str]) -> str | None:
    match value:
        case str() if value.strip():
            return value
        case {"path": str(path), **rest} if not rest.keys() - {"revision"}:
            return f"{path}@{rest['revision']}" if rest.get("revision") else path
    problems.append(f"{where}: a path or org/name is needed")
    return None


def parse_tokenizer(
    value: Mapping[str, Any], models: Sequence[str], problems: list[str]
) -> TokenizerConfig | None:
    """`tokenizer`, `tokenizer_source` and `chat_template`; None where nothing is asked.

    Args:
        value: the whole configuration.
        models: all that it names, which may lend rows.
        problems: everything that is wrong is added here.
    """
    section, source = value.get("tokenizer"), value.get("tokenizer_source")
    template = value.get("chat_template")
    if template is not None and (not isinstance(template, str) or not template):
        problems.append('chat_template: is neither "auto", a template\'s name, nor a template')
    elif template is not None and (told := template_problem(template)) is not None:
        problems.append(f"chat_template: {told}")
    if section is not None and source is not None:
        problems.append("tokenizer_source: tokenizer says the same; leave one of them out")
    if section is None:
        if source is not None:
            source = reference(source, "tokenizer_source", problems)
        if source is None and template is None:
            return None
        return TokenizerConfig(source, chat_template=template)
    if not isinstance(section, dict):
        problems.append("tokenizer: is no mapping; it may have source, tokens, pad_to_multiple_of")
        return None
    problems += _unknown(section, _SECTION, "tokenizer")
    named = section.get("source")
    multiple = section.get("pad_to_multiple_of")
    if multiple is not None and (type(multiple) is not int or multiple < 1):
        problems.append(f"tokenizer.pad_to_multiple_of: {multiple!r} is no positive number")
    return TokenizerConfig(
        "union" if named is None else reference(named, "tokenizer.source", problems),
        _tokens(section.get("tokens"), models, problems),
        multiple,
        template,
    )


def _tokens(value: object, models: Sequence[str], problems: list[str]) -> dict[str, TokenSource]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append("tokenizer.tokens: is no mapping of a token to where its row comes from")
        return {}
    problems += [
        f"tokenizer.tokens.{key}: YAML reads this key as {key!r}, which is no text; quote it"
        for key in value
        if not isinstance(key, str)
    ]
    return {
        token: _token(given, f"tokenizer.tokens.{token}", models, problems)
        for token, given in value.items()
        if isinstance(token, str)
    }


def _token(value: object, where: str, models: Sequence[str], problems: list[str]) -> TokenSource:
    if not isinstance(value, dict):
        problems.append(f"{where}: is no mapping; it may have source and force")
        return TokenSource()
    problems += _unknown(value, _TOKEN, where)
    force = value.get("force", False)
    if not isinstance(force, bool):
        problems.append(f"{where}.force: {force!r} is not true or false")
    source = value.get("source")
    if source is None:
        return TokenSource(force=force)
    where = f"{where}.source"
    if not isinstance(source, dict) or "kind" not in source:
        return TokenSource(_lender(source, where, models, problems), force=force)
    problems += _unknown(source, _SOURCE, where)
    if source["kind"] == "zero":
        return TokenSource(zero=True, force=force)
    if source["kind"] != "model_token":
        problems.append(f"{where}.kind: {source['kind']!r} is neither zero nor model_token")
        return TokenSource(force=force)
    token, number = source.get("token"), source.get("token_id")
    if (token is None) == (number is None):
        problems.append(f"{where}: one of token and token_id is needed")
    if token is not None and not isinstance(token, str):
        problems.append(f"{where}.token: YAML reads it as {token!r}, which is no text; quote it")
        token = None
    if number is not None and (type(number) is not int or number < 0):
        problems.append(f"{where}.token_id: {number!r} is no token's number")
    lender = _lender(source.get("model"), f"{where}.model", models, problems)
    return TokenSource(lender, token, number, force=force)


def _lender(value: object, where: str, models: Sequence[str], problems: list[str]) -> str | None:
    model = reference(value, where, problems)
    known = {same_model(name): name for name in models}
    if model is not None and same_model(model) not in known:
        close = nearest(model, models)
        problems.append(f"{where}: {model!r} is none of the models that are merged{close}")
        return None
    return model and known[same_model(model)]


def _unknown(value: Mapping[Any, Any], known: Sequence[str], where: str) -> list[str]:
    return [
        f"{where}.{key}: unknown key{nearest(str(key), known)}" for key in value if key not in known
    ]
