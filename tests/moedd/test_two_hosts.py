"""Two hosts: network namespaces that reach each other through a cable of software only."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rankfactories import environment, rank_process, sentences
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
        with open(home / f"said-{n}", "wb") as said:
            jobs.append(subprocess.Popen([*launcher, *command], env=variables, stderr=said))
    return jobs


def said_on(home: Path) -> list[str]:
    """What the job said on each host."""
    return [(home / f"said-{n}").read_text() for n in range(2)]


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_two_hosts_make_what_one_process_makes(hosts: Hosts, tmp_path: Path) -> None:
    home, whole = tmp_path / "two", tmp_path / "one"
    home.mkdir()
    assert [job.wait(timeout=300) for job in start(hosts, home)] == [0, 0], said_on(home)
    assert "2 ranks: expert 0 on rank 0, expert 1 on rank 1" in "".join(said_on(home))
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
    """The ranks end; torchrun itself may wait longer for the host that it met them on."""
    jobs = start(hosts, tmp_path, "idm.steps=4000", MOEDD_LOST_SECONDS="5")
    log = tmp_path / "runs" / NAME / "log.jsonl"
    try:
        wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") > 20, 300)
        ranks = [rank_process(tmp_path, rank) for rank in (0, 1)]
        ip("-n", next(iter(hosts)), "link", "set", "cable", "down")
        wait_for(lambda: all(map(sentences, said_on(tmp_path))), 60)
        wait_for(lambda: not any(Path(f"/proc/{rank}/exe").exists() for rank in ranks), 60)
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    # The side of the store misses the other rank; the other side misses the store.
    (a,), (b,) = map(sentences, said_on(tmp_path))
    heard = sorted([a, b], key=lambda sentence: "cannot reach the others any more" in sentence)
    assert "has not been heard of for 5 seconds" in heard[0]
    assert "cannot reach the others any more" in heard[1]


def wait_for(moment: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not moment():
        assert time.monotonic() < ends
        time.sleep(0.05)
