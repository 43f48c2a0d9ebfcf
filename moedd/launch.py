"""One command in many processes: how they come together, and how they part.

torchrun (or Slurm, or Kubernetes, through the same variables) starts the command N times with RANK,
WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. Without WORLD_SIZE nothing here does anything.
"""

import os
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from moedd import ranks
from moedd.ranks import PATIENCE, PeerLostError, Ranks
from moedd.watch import Self, Watch, seconds_from
from moedd_loaders.errors import MoeddError, MoeddWarning, NetworkError, UsageError

REACH_SECONDS = 120.0
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def joined() -> Iterator[Ranks]:
    """Be one rank of a run until the end of the block; what goes wrong is said by one rank.

    In a process of its own it gives `ALONE` and does nothing. Raises UsageError: variables that do
    not fit together. NetworkError: the other ranks cannot be reached.
    """
    me = _from_environment()
    if me is None:
        yield ranks.ALONE
        return
    patience = seconds_from("MOEDD_REACH_SECONDS", REACH_SECONDS)
    store = _reach(me, patience)
    # A connection of its own: the other one is taken while this process waits for something.
    watch = Watch(_reach(me, patience, again=True), me)
    watch.start()
    try:
        ranks._world[0] = _meet(store, me, patience)
        if me.rank > 0:
            warnings.simplefilter("ignore", MoeddWarning)
        yield ranks._world[0]
        watch.end()
        dist.destroy_process_group()
    except PeerLostError as error:
        watch.leave(watch.explain(f"lost another rank: {error}"))
    except MoeddError as error:
        watch.leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        watch.leave("interrupted; start it again with --resume", 130)
    except SystemExit:
        watch.end()
        raise
    except BaseException:
        if watch.may_speak():
            print(f"{me}:", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(1)
    finally:
        ranks._world[0] = ranks.ALONE


def _from_environment() -> Self | None:
    """Which rank this is; None for a process of its own."""
    given = {name: os.environ[name] for name in _NEEDED if os.environ.get(name)}
    if given.get("WORLD_SIZE", "1") == "1":
        return None
    missing = [name for name in _NEEDED if name not in given]
    if missing:
        raise UsageError(
            f"WORLD_SIZE={given['WORLD_SIZE']} is set without {', '.join(missing)}: start the "
            "command with torchrun, which sets them all, or unset WORLD_SIZE"
        )
    try:
        rank, size = int(given["RANK"]), int(given["WORLD_SIZE"])
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise UsageError(
            f"RANK={given['RANK']} and WORLD_SIZE={given['WORLD_SIZE']} are set, expected a rank "
            "from 0 to one below the size: start the command with torchrun, which sets them"
        )
    _choose_device()
    return Self(rank, size, f"{socket.gethostname()}, process {os.getpid()}")


def _choose_device() -> None:
    """A GPU of its own for every rank of a host, where there are any."""
    if not torch.cuda.is_available():
        return
    gpus = torch.cuda.device_count()
    own = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    if own is None and gpus > 1:
        raise UsageError(
            f"rank {os.environ['RANK']} cannot tell which of the {gpus} GPUs of its host is its "
            "own: start the command with torchrun, or set LOCAL_RANK (0 for the first rank of a "
            "host)"
        )
    local = int(own or "0")
    if local >= gpus:
        raise UsageError(
            f"rank {os.environ['RANK']} is number {local} (from 0) on its host, which has {gpus} "
            "GPU(s): start no more ranks per host than it has GPUs (--nproc-per-node), or hide "
            "them (CUDA_VISIBLE_DEVICES=) to compute on CPUs"
        )
    torch.cuda.set_device(local)


def _reach(me: Self, seconds: float, again: bool = False) -> dist.Store:
    """The store through which ranks find each other, under names of this start's own; `again`: one
    more connection to it. Where torchrun's agent does not hold it already, rank 0 does; nobody is
    waited for here, so that `_meet` can say who did not come."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    holds = me.rank == 0 and not agents and not again
    try:
        found = dist.TCPStore(
            address, int(port), is_master=holds, timeout=timedelta(seconds=seconds),
            wait_for_workers=False, multi_tenant=True,
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        if holds:
            raise NetworkError(
                f"{me} cannot open the place where ranks meet, {address}:{port} "
                "(MASTER_ADDR:MASTER_PORT): look whether another process has that port, and "
                "whether the address is this host's"
            ) from error
        raise NetworkError(
            f"{me} cannot reach the others: nothing answered "
            f"at {address}:{port} (MASTER_ADDR:MASTER_PORT) within {seconds:g} seconds: look "
            "whether rank 0 runs, and whether its host's name and port can be reached from here"
        ) from error
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"moedd/{start}", found)


def _meet(store: dist.Store, me: Self, seconds: float) -> Ranks:
    """All ranks, when they are there and reach each other."""
    patience = timedelta(seconds=seconds)
    store.set(f"here/{me.rank}", me.where)
    try:
        store.wait([f"here/{rank}" for rank in range(me.size)], patience)
    except RuntimeError as error:
        absent = [str(r) for r in range(me.size) if not store.check([f"here/{r}"])]
        raise NetworkError(
            f"{me} waited {seconds:g} seconds and rank "
            f"{', '.join(absent)} did not come: look why it did not start"
        ) from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=me.rank, world_size=me.size,
            timeout=patience,
        )  # fmt: skip
        dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        raise NetworkError(
            f"{me} found the meeting place but cannot reach "
            "every other rank: open all ports between the hosts, or name the network to use "
            "(GLOO_SOCKET_IFNAME=eth0, and NCCL_SOCKET_IFNAME for GPUs)"
        ) from error
    # The group of the run itself waits as long as work takes.
    members = list(range(me.size))
    return Ranks(me.rank, tuple(members), dist.new_group(members, timeout=PATIENCE))
