"""The folder of a run: what may be taken up again, what is refused, and that nothing is lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from enginefactories import random_data
from runfactories import config_on, digits, profile, tiny_config, tiny_run, tree

from moedd.config import RunConfig
from moedd.distill import Effort
from moedd.experts import Expert
from moedd.mixture import Mixture
from moedd.profile import Profile
from moedd.progress import Reporter
from moedd.realdata import RealData
from moedd.runstate import RunFolder, RunState
from moedd_loaders.errors import ConflictError, DiskFullError, MoeddError, UsageError
from moedd_loaders.files import scratch_name

REAL = "sha256:" + "a" * 64


def experts_of(
    config: RunConfig, home: Path, steps: int = 0, real: RealData | None = None
) -> list[Expert]:
    mixture = Mixture.build(config, real or digits(), home, profile(), Reporter(quiet=True))
    for expert in mixture.experts:
        for _ in range(steps):
            expert.step()
    return mixture.experts


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "one")


def started(run: RunFolder, config: RunConfig) -> None:
    """A checkpoint without experts."""
    assert not run.prepare(config, REAL, resume=False, overwrite=False)
    run.save(config, RunState(0.5), [], REAL)


def test_a_new_run_starts(run: RunFolder) -> None:
    assert run.prepare(tiny_config(), REAL, resume=False, overwrite=False) is False
    # Nothing to go on from is no error: the run was killed before its first checkpoint.
    assert run.prepare(tiny_config(), REAL, resume=True, overwrite=False) is False
    assert run.folder.is_dir()


def test_what_a_killed_write_left_is_taken_away(run: RunFolder) -> None:
    config = tiny_config()
    started(run, config)
    scratch_name(run.checkpoint).write_bytes(b"half")
    assert run.prepare(config, REAL, resume=True, overwrite=False) is True
    assert list(tree(run.folder)) == [run.checkpoint.name]


def test_an_unfinished_run_wants_a_word(run: RunFolder) -> None:
    config = tiny_config()
    started(run, config)
    with pytest.raises(ConflictError, match=r"--resume.*--overwrite") as caught:
        run.prepare(config, REAL, resume=False, overwrite=False)
    assert caught.value.exit_code == 4
    assert run.prepare(config, REAL, resume=True, overwrite=False) is True
    run.log.write_text("old\n")
    assert run.prepare(config, REAL, resume=False, overwrite=True) is False
    assert tree(run.folder) == {}


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("digits-idm-1x2", ("width=16",), "width: was 8, is 16"),
        ("digits-idm-1x2", ("pool.lr=0.5",), "pool.lr: was 0.01, is 0.5"),
        ("digits-idm-1x2", ("diversity.ratio=null",), "diversity.ratio: was 2.0, is None"),
        ("digits-idm-1x2", ("idm.lr=0.5",), "experts.0.lr: was 0.05, is 0.5"),
        ("digits-idm-2x2", (), "ipc: was 1, is 2"),
        ("digits-idm-1x3", (), "methods.2: was None, is 'idm'"),
    ],
)
def test_another_configuration_is_refused_and_named(
    name: str, changed: tuple[str, ...], said: str, run: RunFolder
) -> None:
    started(run, tiny_config())
    before = run.checkpoint.read_bytes()
    with pytest.raises(UsageError) as caught:
        run.prepare(tiny_config(name, *changed), REAL, resume=True, overwrite=False)
    assert said in str(caught.value)
    assert run.checkpoint.read_bytes() == before


def test_another_seed_is_another_configuration(run: RunFolder) -> None:
    started(run, tiny_config())
    with pytest.raises(UsageError, match="seed: was 0, is 1"):
        run.prepare(tiny_config(seed=1), REAL, resume=True, overwrite=False)


def test_where_data_lie_and_evaluation_do_not_matter(run: RunFolder) -> None:
    started(run, tiny_config())
    other = tiny_config("digits-idm-1x2", "evaluation.epochs=9")
    moved = other.model_copy(update={"data_path": "/moved"})
    assert run.prepare(moved, REAL, resume=True, overwrite=False)


def test_other_data_are_refused(run: RunFolder) -> None:
    started(run, tiny_config())
    with pytest.raises(UsageError, match="other real data") as caught:
        run.prepare(tiny_config(), "sha256:" + "b" * 64, resume=True, overwrite=False)
    assert "aaaa" in str(caught.value)
    assert "bbbb" in str(caught.value)


@pytest.mark.parametrize("networks", ["stored", "live"])
def test_experts_go_on_as_if_nothing_had_happened(
    networks: str, run: RunFolder, home: Path
) -> None:
    real = random_data((9, 8))
    config = config_on(real, ("idm", "idc"), ipc=1)
    idc = {"networks": networks, "inner_loop": 2, "train_images": 8, "batch_real": 3}
    experts = (config.experts[0], config.experts[1].model_copy(update=idc))
    config = config.model_copy(update={"experts": experts})
    stopped, whole = (experts_of(config, home, steps, real) for steps in (3, 5))
    run.save(config, RunState(0.25, 3, 77, 1.5, {"0.match": 2.0}), stopped, REAL)
    fresh = experts_of(config, home, real=real)
    state = run.load(fresh, Profile())
    assert state == RunState(0.25, 3, 77, 1.5, {"0.match": 2.0})
    for e, expert in enumerate(fresh):
        assert expert.done == 3
        assert expert.last_step_norm == stopped[e].last_step_norm
        assert torch.equal(expert.images, stopped[e].images)
        for _ in range(2):
            expert.step()
        assert torch.equal(expert.images, whole[e].images)
        for name, value in whole[e].state_dict().items():
            assert torch.equal(expert.state_dict()[name], value), name


def test_a_damaged_checkpoint_is_named(run: RunFolder) -> None:
    started(run, tiny_config())
    data = run.checkpoint.read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"\x00" * len(data)):
        run.checkpoint.write_bytes(damaged)
        with pytest.raises(MoeddError, match=r"checkpoint .*checkpoint\.safetensors cannot"):
            run.prepare(tiny_config(), REAL, resume=True, overwrite=False)


def test_a_full_disk_keeps_the_last_checkpoint(
    run: RunFolder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up after two checkpoints: they are what a resumed run starts from."""
    saved = []
    real_fsync = os.fsync

    def fsync(handle: int) -> None:
        saved.append(handle)
        if len(saved) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(handle)

    settings = ("digits-idm-1x1",)
    tiny_run(home, *settings, called="before", effort=Effort(fraction=0.25))  # trains the pool
    monkeypatch.setattr("moedd.checkpoint.os.fsync", fsync)
    with pytest.raises(DiskFullError, match="the disk is full while distilling full"):
        tiny_run(home, *settings, called="full", effort=Effort(checkpoint_seconds=0))
    kept = RunFolder(home / "runs" / "full")
    assert {p.name for p in kept.folder.iterdir()} == {"checkpoint.safetensors", "log.jsonl"}
    config = tiny_config(*settings)
    assert kept.load(experts_of(config, home), Profile()).tick == 1
    assert not (home / "sets" / "full").exists()
    monkeypatch.undo()
    tiny_run(home, *settings, called="full", resume=True)
    assert (home / "sets" / "full" / "moedd.json").is_file()


def test_another_profile_is_refused_and_the_old_one_is_found_again(
    run: RunFolder, home: Path
) -> None:
    config = tiny_config()
    run.prepare(config, REAL, resume=False, overwrite=False)
    assert run.profile_name() is None
    experts = experts_of(config, home)
    run.save(config, RunState(0.5, profile="fast", precision="bfloat16"), experts, REAL)
    assert run.profile_name() == "fast"
    with pytest.raises(UsageError, match=r"--profile fast \(bfloat16, cpu\).*float32"):
        run.load(experts, Profile())
    # A machine without bfloat16 units computes the fast profile in float32: other bytes.
    with pytest.raises(UsageError, match="same kind of machine"):
        run.load(experts, Profile(name="fast"))
    assert run.load(experts, Profile(name="fast", precision="bfloat16")).profile == "fast"
