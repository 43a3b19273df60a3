"""The files that belong to a model beside its weights and its configuration."""

from pathlib import Path

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tiktoken.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
"""Names and patterns of names, relative to the folder."""


def companions(folder: Path, *, code: bool = False) -> dict[str, bytes]:
    """The tokenizer files, chat templates and generation configuration of a model folder.

    Args:
        folder: of the model.
        code: also the Python files that a configuration with `auto_map` names.

    Returns:
        Contents by path relative to the folder.
    """
    found: dict[str, bytes] = {}
    patterns = [*COMPANIONS, *(["*.py"] if code else [])]
    wanted = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    for path in wanted:
        inner = sorted(path.rglob("*")) if path.is_dir() else [path]
        found.update({str(p.relative_to(folder)): p.read_bytes() for p in inner if p.is_file()})
    return found
