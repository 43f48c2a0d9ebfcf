"""Numbers that go astray: every method stops in one sentence and leaves a snapshot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from enginefactories import digits, make_expert, make_pool
from runfactories import (
    AT_ONCE,
    MOVING,
    cli,
    payload,
    profile,
    tiny_arguments,
    tiny_config,
    tiny_run,
)
from runfactories import digits as all_digits

from moedd.diversify import diversity_step
from moedd.diversity import DiversityConfig
from moedd.experts import Expert, method_names
from moedd.guards import MOST_RMS, require_images, require_movement
from moedd.mixture import Mixture
from moedd.progress import Reporter
from moedd.runstate import RunFolder
from moedd.streams import Streams
from moedd_loaders.errors import DivergedError, MoeddError, NonFiniteError, UsageError
from moedd_loaders.manifest import read_manifest
from moedd_loaders.validate import validate_set

LR = {"idc": "lr_img", "idc_i": "lr_img", "mtt": "lr_img"}
CLASSWISE = ("idc", "idc_i", "idm", "idm_plain")
NO_STEP = ("diversity.every=0",)


def test_every_method_is_in_this_file() -> None:
    assert {*MOVING, *AT_ONCE} == set(method_names())


def break_at(tick: int, harm: Callable[[Expert], None], patch: pytest.MonkeyPatch) -> None:
    """Do harm to the second expert at the beginning of a tick."""
    plain = Mixture.tick

    def broken(self: Mixture, number: int, steps: Any) -> Any:
        if number == tick:
            harm(self.experts[1])
        return plain(self, number, steps)

    patch.setattr(Mixture, "tick", broken)


def no_image(expert: Expert) -> None:
    expert.images[3].fill_(float("nan"))


def no_velocity(expert: Any) -> None:
    velocity = expert.velocity if expert.method == "mtt" else expert.optimizer.velocity
    velocity[0].fill_(float("inf"))


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory, pools: Path) -> Callable[[str], Path]:
    """The set of an undisturbed run of a method, made when it is asked for."""
    home = tmp_path_factory.mktemp("whole")
    (home / "pools").symlink_to(pools, target_is_directory=True)

    def of(method: str) -> Path:
        name = f"digits-{method}-1x2"
        if not (home / "sets" / name).exists():
            tiny_run(home, name, *NO_STEP, called=name)
        return home / "sets" / name

    return of


# ------------------------------------------------------------------------------------ NaN
@pytest.mark.parametrize("method", MOVING)
@pytest.mark.parametrize("harm", [no_image, no_velocity])
def test_nan_stops_the_run_and_its_snapshot_goes_on_to_the_same_bytes(
    method: str,
    harm: Callable[[Expert], None],
    home: Path,
    whole_runs: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"digits-{method}-1x2"
    arguments = [*tiny_arguments(name, *NO_STEP), "--checkpoint-seconds", "0"]
    with monkeypatch.context() as patch:
        break_at(3, harm, patch)
        told = cli(*arguments)
    assert told.code == 1
    snapshot = home / "runs" / name / "checkpoint.safetensors"
    for part in (
        # Momentum moves the images of some methods before anything is measured on them.
        "loss of " if harm is no_image or method in CLASSWISE else "image step of ",
        f" of expert 1 ({method}) is ",
        "at its step 3 of 4: lower ",
        f"{method}.",
        "start anew with --overwrite",
        f"the last good snapshot is that of tick 2 of 4, and --resume goes on from it: {snapshot}",
    ):
        assert part in told.sentence, part
    assert not (home / "sets").exists()
    assert not [path for path in home.rglob(".*") if path.is_file()]
    told = cli(*arguments, "--resume")
    assert told.code == 0, told.err
    assert "resuming at tick 2" in told.err
    assert payload(home / "sets" / name) == payload(whole_runs(method))
    validate_set(home / "sets" / name)


def test_the_log_of_a_run_that_stopped_holds_the_rows_before(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(3, no_image, monkeypatch)
    assert cli(*tiny_arguments("digits-idm-1x2", *NO_STEP)).code == 1
    log = (home / "runs" / "digits-idm-1x2" / "log.jsonl").read_text().splitlines()
    assert len(log) == 4  # two experts, two whole ticks


def test_nan_without_a_checkpoint_in_between_goes_back_to_the_start(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(4, no_image, monkeypatch)
    told = cli(*tiny_arguments("digits-idm-1x2"))
    assert told.code == 1
    assert "the last good snapshot is that of tick 0 of 4" in told.sentence


def test_features_that_are_not_finite_in_the_diversity_step(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images are finite still, and too large for the network."""
    monkeypatch.setattr(DiversityConfig, "every", 1, raising=False)
    config = tiny_config("digits-idm_plain+idc-1x2", "diversity.every=1")
    mixture = Mixture.build(config, all_digits(), home, profile(), Reporter(quiet=True))
    before = [expert.images.clone() for expert in mixture.experts]
    mixture.experts[1].images[0].fill_(3e38)
    with pytest.raises(NonFiniteError) as caught:
        diversity_step(mixture.experts, config.diversity, Streams(0))
    for part in ("diversity step", "expert 1 (idc) after its step 0 of 4", "--set idc.lr_img="):
        assert part in str(caught.value)
    assert "expert 0" not in str(caught.value)
    assert torch.equal(mixture.experts[0].images, before[0])


# ------------------------------------------------------------------------------ divergence
@pytest.mark.parametrize("method", MOVING)
@pytest.mark.parametrize("size", ["1e30", "1e6"])
def test_images_that_run_off_stop_the_run(method: str, size: str, home: Path) -> None:
    """To numbers that overflow, and to numbers that do not."""
    name = f"digits-{method}-1x2"
    told = cli(*tiny_arguments(name, f"{method}.{LR.get(method, 'lr')}={size}", *NO_STEP))
    assert told.code == 1
    for part in (f"({method})", "step", "--overwrite", "the last good snapshot is that of tick 0"):
        assert part in told.sentence, part
    assert not (home / "sets").exists()
    assert RunFolder(home / "runs" / name).checkpoint.exists()


@pytest.mark.parametrize("setting", ["dc.lr_net", "dsa.lr_net", "mtt.step_size"])
def test_a_network_that_runs_off_while_images_are_matched(setting: str, home: Path) -> None:
    """The step size at fault is among those that the sentence names."""
    name = f"digits-{setting.split('.')[0]}-1x2"
    told = cli(*tiny_arguments(name, f"{setting}=1e30", *NO_STEP))
    assert told.code == 1
    for part in ("loss of expert 0", setting, "--overwrite", "snapshot"):
        assert part in told.sentence, part
    assert not (home / "sets").exists()


def test_the_learned_step_size_cannot_run_off(home: Path) -> None:
    """However large its own step: it changes by a tenth of itself at most."""
    assert cli(*tiny_arguments("digits-mtt-1x2", "mtt.lr_lr=1e30", *NO_STEP)).code == 0
    for entry in read_manifest(home / "sets" / "digits-mtt-1x2").experts:
        assert entry.step_size is not None
        assert 0.05 * 0.65 < entry.step_size < 0.05 * 1.5


def test_nothing_is_left_where_timing_fails(home: Path) -> None:
    arguments = [*tiny_arguments("digits-idm-1x2", "idm.lr=1e38"), "--max-hours", "0.0001"]
    arguments.remove("--schedule")
    arguments.remove("paper")
    told = cli(*arguments)
    assert told.code == 1
    assert "of expert 0 (idm) is " in told.sentence
    assert not list((home / "runs").iterdir())


def test_a_smaller_step_size_starts_anew_as_advised(home: Path) -> None:
    name = "digits-idm-1x2"
    assert cli(*tiny_arguments(name, "idm.lr=1e30", *NO_STEP)).code == 1
    assert cli(*tiny_arguments(name, *NO_STEP)).code == 4  # the unfinished run is not thrown away
    assert cli(*tiny_arguments(name, *NO_STEP), "--overwrite").code == 0
    validate_set(home / "sets" / name)


def test_images_are_judged_before_they_become_the_snapshot(home: Path) -> None:
    arguments = tiny_arguments("digits-idm-1x2", "idm.lr=1e6", *NO_STEP)
    told = cli(*arguments, "--checkpoint-seconds", "0")
    assert told.code == 1
    assert "the images of expert 0 (idm) diverge: after its step 1 of 4" in told.sentence
    assert "where 0 is black and 1 white, expected at most 100" in told.sentence
    assert "the last good snapshot is that of tick 0" in told.sentence


@pytest.mark.parametrize("value", [MOST_RMS * 1.1, float("nan"), float("inf"), 1e30])
def test_what_counts_as_diverged(value: float) -> None:
    expert = make_expert("idc", digits(2, 8))
    require_images([expert])
    expert.images.fill_(MOST_RMS * 0.9)
    require_images([expert])
    expert.images.fill_(value)
    with pytest.raises(
        DivergedError, match=r"expert 0 \(idc\) diverge.*--set idc\.lr_img="
    ) as caught:
        require_images([expert])
    assert caught.value.exit_code == 1


def test_a_student_that_goes_astray_in_a_row_stops_the_run(home: Path) -> None:
    told = cli(*tiny_arguments("digits-mtt-1x2", "mtt.step_size=20", "mtt.patience=2", *NO_STEP))
    assert told.code == 1
    for part in ("(mtt) diverges: its last 2 steps", "mtt.lr_lr", "snapshot", "step size is"):
        assert part in told.sentence
    assert not (home / "sets").exists()


def test_a_student_that_always_goes_astray_makes_no_set(home: Path) -> None:
    """Fewer steps than `patience`: none moved anything, and a set of real images is no result."""
    told = cli(*tiny_arguments("digits-mtt-1x2", "mtt.step_size=20", *NO_STEP))
    assert told.code == 1
    assert "all 4 steps of expert 0 (mtt) were left out" in told.sentence
    assert not (home / "sets").exists()


def test_steps_that_were_left_out_are_noted() -> None:
    expert = make_expert("idm", digits(2, 300))
    expert.done, expert.left_out = 3, 2
    require_movement([expert])
    expert.left_out = 3
    with pytest.raises(DivergedError, match="all 3 steps"):
        require_movement([expert])


# ------------------------------------------------------------------------ networks astray
@pytest.mark.parametrize("method", ["idm", "herding"])
def test_a_pool_whose_training_went_astray_is_not_kept(method: str, moedd_home: Path) -> None:
    told = cli(*tiny_arguments(f"digits-{method}-1x1", "pool.lr=1e30", "pool.steps=6"))
    assert told.code == 1
    for part in ("network 1 of 1 of the pool", "NaN or infinite", "step size 1e+30", "pool.lr"):
        assert part in told.sentence
    assert not list(moedd_home.rglob("*.safetensors"))
    assert not (moedd_home / "runs" / f"digits-{method}-1x1").exists()
    # With another step size it is another pool, and nothing is in the way.
    assert cli(*tiny_arguments(f"digits-{method}-1x1")).code == 0


@pytest.mark.parametrize("method", ["herding", "kcenter"])
def test_features_that_are_not_finite_choose_nothing(method: str) -> None:
    real = digits(2, 12)
    pool = make_pool(real)
    for stored in pool.stored:
        for parameter in stored.parameters.values():
            parameter.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=rf"expert 0 \({method}\) chooses by .* {method}\.age"):
        make_expert(method, real, pool=pool)


def test_an_observer_whose_training_went_astray_chooses_nothing(home: Path) -> None:
    """With the demand on its accuracy switched off it would go through."""
    name = "digits-rded-1x1"
    told = cli(*tiny_arguments(name, "rded.observer_lr=1e30", "rded.observer_floor=0"))
    assert told.code == 1
    assert "observer of expert 0 (rded)" in told.sentence
    assert "rded.observer_lr" in told.sentence
    assert not (home / "sets").exists()
    assert not (home / "runs" / name).exists()


def test_trajectories_whose_training_went_astray_are_not_kept(home: Path) -> None:
    told = cli(*tiny_arguments("digits-mtt-1x1", "mtt.trajectory_lr=1e30"))
    assert told.code == 1
    assert "training loss of trajectory 0 is nan" in told.sentence
    assert "mtt.trajectory_lr" in told.sentence
    assert not list((home / "trajectories").rglob("*.safetensors"))
    assert not (home / "sets").exists()


@pytest.mark.parametrize("error", [NonFiniteError("a"), DivergedError("a"), UsageError("a")])
def test_only_numbers_that_went_astray_name_the_snapshot(
    error: MoeddError, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Mixture, "tick", failing)
    with pytest.raises(type(error)) as caught:
        tiny_run(home, "digits-idm-1x1")
    assert ("snapshot" in str(caught.value)) is not isinstance(error, UsageError)
    shutil.rmtree(home / "runs")
