"""Models of the Hugging Face Hub, fetched into its own cache."""

import os
from pathlib import Path

from modelglue.checkpoint.companions import COMPANIONS
from modelglue.errors import CheckpointNotFound

_SMALL = [
    "config.json",
    "adapter_config.json",
    *(name for name in COMPANIONS if "." in name),
    "additional_chat_templates/*",
]
_SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"]
_PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin"]


def fetch(name: str, revision: str | None = None) -> Path:
    """The local folder of `org/name`: weights as safetensors or else `.bin`, config, tokenizer.

    What the cache holds is not fetched again; with HF_HUB_OFFLINE=1 nothing is fetched at all.

    Raises:
        CheckpointNotFound: the Hub has no such model, or cannot be reached, or refuses.
    """
    folder = _snapshot(name, revision, _SMALL + _SAFETENSORS)
    if not any(folder.glob("*.safetensors")):
        # Older models have .bin alone; of the others they would be the same weights twice.
        folder = _snapshot(name, revision, _SMALL + _PICKLED)
    return folder


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    where = f"{name}@{revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError:
        problem = "is gated. Accept its terms on its page, then run `hf auth login`"
    except errors.RevisionNotFoundError:
        problem = f"has no revision {revision!r}. Look at its branches and tags on its page"
    except errors.RepositoryNotFoundError:
        problem = (
            "is neither a folder here nor a model on the Hub. Check the spelling; if it is "
            "private, run `hf auth login`"
        )
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        problem = "is neither a folder here nor in the Hub's cache, and "
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            problem += "HF_HUB_OFFLINE forbids to fetch it. Unset that, or check the spelling"
        else:
            problem += f"the Hub cannot be reached ({_first_line(error)}). Check the connection"
    except (errors.HfHubHTTPError, ValueError, OSError) as error:
        problem = f"could not be fetched from the Hub: {_first_line(error)}"
    except Exception as error:
        # The client lets its HTTP library's own errors through, whichever library that is.
        if not type(error).__module__.startswith(("httpx", "httpcore", "huggingface_hub")):
            raise
        problem = f"could not be fetched from the Hub: {_first_line(error)}"
    raise CheckpointNotFound(f"{where} {problem}.")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]
