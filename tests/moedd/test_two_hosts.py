"""Two hosts: network namespaces that reach each other through a cable of software only."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rankfactories import environment, sentences
from runfactories import payload, tiny_arguments, tiny_run

from moedd_loaders.manifest import read_manifest

NAME = "digits-idm-1x2"
PORT = "29513"
Hosts = dict[str, str]  # name of the namespace -> its address


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    tag = f"moedd{os.getpid()}"
    hosts = {f"{tag}a": "10.213.7.1", f"{tag}b": "10.213.7.2"}
    try:
        for host in hosts:
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
        a, b = hosts
        ip("link", "add", "name", "cable", "netns", a, "type", "veth",
           "peer", "name", "cable", "netns", b)  # fmt: skip
        for host, address in hosts.items():
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", host, "link", "set", "cable", "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("hardware: there is no `ip` to make network namespaces with")
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(two_hosts())
        except subprocess.CalledProcessError as error:
            pytest.skip(f"hardware: no network namespaces here ({error.stderr.decode().strip()})")
        yield made


def start(hosts: Hosts, home: Path, *settings: str, **more: str) -> list[subprocess.Popen[bytes]]:
    """The same command on both hosts, one rank on each."""
    meeting = f"{next(iter(hosts.values()))}:{PORT}"
    jobs = []
    for n, (host, address) in enumerate(hosts.items()):
        launcher = [
            *("ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "tiny"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--local-addr", address),
            # Names of these hosts lead nowhere, so torchrun is told on which of them to meet.
            *("--rdzv-conf", f"is_host={int(n == 0)}"),
        ]
        command = ["-m", "moedd", *tiny_arguments(NAME, *settings), "--checkpoint-seconds", "0"]
        variables = environment(home, GLOO_SOCKET_IFNAME="cable", **more)
        jobs.append(subprocess.Popen([*launcher, *command], env=variables, stderr=subprocess.PIPE))
    return jobs


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_two_hosts_make_what_one_process_makes(hosts: Hosts, tmp_path: Path) -> None:
    home, whole = tmp_path / "two", tmp_path / "one"
    said = [job.communicate(timeout=300)[1].decode() for job in start(hosts, home)]
    assert "2 ranks: expert 0 on rank 0, expert 1 on rank 1" in "".join(said)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tiny_run(whole, NAME, called=NAME)
    finally:
        torch.set_num_threads(before)
    assert payload(home / "sets" / NAME) == payload(whole / "sets" / NAME)
    assert read_manifest(home / "sets" / NAME).provenance.ranks == 2


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_cut_cable_is_noticed_on_both_sides(hosts: Hosts, tmp_path: Path) -> None:
    jobs = start(hosts, tmp_path, "idm.steps=4000", MOEDD_LOST_SECONDS="5")
    log = tmp_path / "runs" / NAME / "log.jsonl"
    ends = time.monotonic() + 300
    while not (log.exists() and log.read_bytes().count(b"\n") > 20):
        assert time.monotonic() < ends
        assert all(job.poll() is None for job in jobs), [job.communicate() for job in jobs]
        time.sleep(0.05)
    ip("-n", next(iter(hosts)), "link", "set", "cable", "down")
    said = []
    for job in jobs:
        said += sentences(job.communicate(timeout=200)[1].decode())
        assert job.returncode != 0
    assert len(said) == 2
    # The side of the store misses the other rank; the other side misses the store.
    assert sorted("has not been heard of" in sentence for sentence in said) == [False, True]
    assert sorted("cannot reach the others any more" in sentence for sentence in said) == [
        False,
        True,
    ]
