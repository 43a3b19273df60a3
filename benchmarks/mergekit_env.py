"""mergekit in an environment of its own: neither side decides the other's packages."""

import subprocess
import sys
from pathlib import Path

VERSION = "0.1.5"
TORCH = "2.13.0"


def mergekit_command(work: Path, ready: Path | None) -> Path:
    """The `mergekit-yaml` of an environment: a ready one, or one made under `work`."""
    environment = ready or work / f"mergekit-{VERSION}"
    python = environment / "bin" / "python"
    if ready is None and not (environment / "installed").exists():
        print(f"installing mergekit {VERSION} and torch {TORCH} into {environment}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        for package in (f"torch=={TORCH}", f"mergekit=={VERSION}"):
            subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
        (environment / "installed").touch()
    found = _version(python)
    if found != VERSION:
        sys.exit(f"{environment} holds mergekit {found}, and {VERSION} is wanted")
    return environment / "bin" / "mergekit-yaml"


def _version(python: Path) -> str:
    ask = "import importlib.metadata; print(importlib.metadata.version('mergekit'))"
    return subprocess.run(
        [python, "-c", ask], check=True, capture_output=True, text=True
    ).stdout.strip()
