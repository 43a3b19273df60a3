"""What the machine has, in use or not: what is free at the moment would change a repeated run."""

import os
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def memory_of(device: str | None = None) -> int:
    """All bytes of memory that the machine has, or lets this container use, or the device has."""
    if device is not None and device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = []
    with suppress(ValueError, OSError, AttributeError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(ValueError, OSError):  # "max" where there is none
            limits.append(int((_CGROUP / limit).read_text()))
    return min(limits, default=2 << 30)
