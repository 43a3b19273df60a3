import os
from pathlib import Path

import pytest

from modelglue import machine


def test_a_containers_limit_counts_where_it_is_the_smaller_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000, "SC_AVPHYS_PAGES": 1}
    monkeypatch.setattr(os, "sysconf", memory.__getitem__)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.memory_of() == machine.memory_of("cpu") == 4096 * 1000
    for text, expected in (("max\n", 4096000), ("1000000\n", 1000000), ("9999999999\n", 4096000)):
        (tmp_path / "memory.max").write_text(text)
        assert machine.memory_of() == expected
