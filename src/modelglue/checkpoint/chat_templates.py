"""Chat templates: what a model folder brings, and a few that everybody knows by name."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelglue.checkpoint.files import parse_json_object, read_small
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.tokenizer import folders_of
from modelglue.registry import nearest

# Written for transformers' settings, where a block tag takes the line break after it along.
KNOWN: Mapping[str, str] = {
    "alpaca": """\
{%- for message in messages if message.role == 'system' -%}
{%- if loop.last %}{{ message.content | trim ~ '\\n\\n' }}{% endif -%}
{%- endfor -%}
{%- set headings = {
    'user': 'Instruction', 'user_context': 'Input', 'assistant': 'Response'} -%}
{%- for message in messages if message.role in headings -%}
{{ '### ' ~ headings[message.role] ~ ':\\n' ~ message.content | trim }}
{%- if not loop.last %}{{ '\\n\\n' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role != 'assistant' -%}
{{ '\\n\\n### Response:\\n' }}
{%- endif -%}
""",
    "chatml": """\
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
""",
    "exaone": """\
{%- if messages and messages[0].role != 'system' -%}
{{ '[|system|][|endofturn|]\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '[|' ~ message.role ~ '|]' ~ message.content }}
{{- '\\n' if message.role == 'user' else '[|endofturn|]\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '[|assistant|]' }}
{%- endif -%}
""",
    "llama3": """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' }}
{{- message.content | trim ~ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
""",
    "mistral": """\
{%- set system = messages[0].content ~ '\\n\\n' if messages[0].role == 'system' else '' -%}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}
{{ bos_token }}
{%- for message in turns -%}
{%- if message.role != ['user', 'assistant'][loop.index0 % 2] -%}
{{ raise_exception('After an optional system message, user and assistant must take turns.') }}
{%- elif message.role == 'user' -%}
{{ ' [INST] ' ~ (system if loop.first else '') ~ message.content ~ ' [/INST]' }}
{%- else -%}
{{ ' ' ~ message.content ~ eos_token }}
{%- endif -%}
{%- endfor -%}
""",
}

_SETTINGS = "tokenizer_config.json"
_FILES = ("chat_template.", "additional_chat_templates")


def template_problem(value: str) -> str | None:
    """Why a text is neither "auto", nor a known name, nor a Jinja template; None if it is."""
    if value == "auto" or value in KNOWN:
        return None
    if "{" in value:
        return _syntax_problem(value)
    known = ", ".join(["auto", *KNOWN])
    close = nearest(value, ["auto", *KNOWN])
    return f"{value!r} is no Jinja template and none of {known}{close}"


def find_template(value: str, models: Sequence[Checkpoint | Path]) -> str | None:
    """The template that a name, a template or "auto" stands for.

    Args:
        value: "auto" is the template that most of the models bring; of equally many, the first.
        models: in the order in which they were named.

    Returns:
        None where "auto" finds no template.
    """
    if value != "auto":
        return KNOWN.get(value, value)
    brought = [template.strip() for model in models if (template := template_of(model))]
    return Counter(brought).most_common(1)[0][0] if brought else None


def template_of(model: Checkpoint | Path) -> str | None:
    """The chat template that a model folder brings, its default one if there are several."""
    for folder in folders_of(model):
        alone = folder / "chat_template.jinja"
        if alone.is_file():
            return read_small(alone).decode("utf-8", "replace")
        for name in ("tokenizer_config.json", "chat_template.json"):
            path = folder / name
            if path.is_file():
                content = parse_json_object(read_small(path), path, what="the file")
                if template := _default(content.get("chat_template")):
                    return template
    return None


def with_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """Tokenizer files by name, with this chat template and no other."""
    return {**without_template(files), "chat_template.jinja": template.encode()}


def with_templates_of(files: Mapping[str, bytes], other: Mapping[str, bytes]) -> dict[str, bytes]:
    """Tokenizer files by name, with the chat templates among another model's files alone."""
    result = without_template(files)
    result |= {name: data for name, data in other.items() if name.startswith(_FILES)}
    template = json.loads(other.get(_SETTINGS, b"{}")).get("chat_template")
    if template is not None:
        settings = json.loads(result.get(_SETTINGS, b"{}"))
        result[_SETTINGS] = _json({**settings, "chat_template": template})
    return result


def without_template(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Tokenizer files by name, less chat templates."""
    result = {name: data for name, data in files.items() if not name.startswith(_FILES)}
    settings = json.loads(result.get(_SETTINGS, b"{}"))
    if settings.pop("chat_template", None) is not None:
        result[_SETTINGS] = _json(settings)
    return result


def _json(settings: Mapping[str, Any]) -> bytes:
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()


def _syntax_problem(template: str) -> str | None:
    try:
        from jinja2 import Environment, TemplateSyntaxError
    except ImportError:  # whoever only merges need not have it
        return None
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(template)
    except TemplateSyntaxError as error:
        # transformers has a tag of its own, {% generation %}.
        if "generation" not in str(error.message):
            return f"line {error.lineno} of the template: {error.message}"
    return None


def _default(value: Any) -> str | None:
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) and value else None
