"""YAML files that a user writes: read, or refused with the file's name."""

from pathlib import Path
from typing import Any

import yaml

from modelglue.errors import ConfigError


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: it cannot be read, or is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"is no YAML: {error}", where=str(path)) from None
