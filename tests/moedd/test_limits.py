"""How many bytes of images may lie where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moedd import limits
from moedd_loaders.errors import UsageError


def test_the_share_of_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MOEDD_DATA_IN_MEMORY", raising=False)
    group = tmp_path / "memory.max"
    monkeypatch.setattr(limits, "_CONTROL_GROUPS", (str(tmp_path / "none"), str(group)))
    monkeypatch.setattr(limits, "_OWN_GROUP", str(tmp_path / "none"))
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group.write_text("max\n")
    assert limits.memory_limit() == min(machine // 32, 256 * 2**20)
    group.write_text("320000000\n")
    assert limits.memory_limit() == 10_000_000
    monkeypatch.setenv("MOEDD_DATA_IN_MEMORY", "77")
    assert limits.memory_limit() == 77
    monkeypatch.setenv("MOEDD_DATA_IN_MEMORY", "1e9")
    with pytest.raises(UsageError, match="MOEDD_DATA_IN_MEMORY is '1e9', expected a number of byt"):
        limits.memory_limit()


def test_limits_of_the_own_control_group_and_of_those_around_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "cgroup"
    own.write_text("9:name=systemd:/x\n4:memory:/slurm/job_1\n1:cpu,cpuacct:/\n0::/user/a:b\n")
    monkeypatch.setattr(limits, "_OWN_GROUP", str(own))
    assert limits._own_limits() == [
        "/sys/fs/cgroup/memory/slurm/job_1/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes",
        "/sys/fs/cgroup/user/a:b/memory.max",
        "/sys/fs/cgroup/user/memory.max",
    ]
