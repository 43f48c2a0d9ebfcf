"""What the command `trajectories` does, apart from reading its arguments."""

import time

from moedd.config import resolve_config
from moedd.experts.mtt import MTTConfig
from moedd.networks import network_for
from moedd.parts import whole
from moedd.profile import choose_profile
from moedd.progress import Reporter
from moedd.ranks import world
from moedd.realdata import RealData, load_real
from moedd.tables import counted
from moedd.trajectories import Trajectories, load_trajectories, trajectory_path
from moedd_loaders.errors import UsageError, from_oserror
from moedd_loaders.names import parse_name
from moedd_loaders.resolve import home

_IPC = 10


def run_trajectories(
    data_name: str,
    *,
    count: int | None,
    epochs: int | None,
    data: str | None,
    size: int | tuple[int, int] | None,
    channels: int | None,
    skip_bad: bool,
    overrides: list[str],
    profile_name: str | None,
) -> None:
    """`moedd trajectories`: the ones that `moedd distill DATA-mtt-...` of the same settings uses.

    Raises UsageError: settings that do not fit, trajectories on a part.
    """
    name = parse_name(f"{data_name}-mtt-{_IPC}x1")
    real = load_real(data_name, path=data, size=size, channels=channels, skip_bad=skip_bad)
    config = resolve_config(name, real.shape, data_path=data, overrides=overrides)
    settings = config.experts[0]
    assert isinstance(settings, MTTConfig)
    if settings.train_on == "part":
        raise UsageError(
            "mtt.train_on=part given; the parts follow from a run's experts and seed, so its own "
            "moedd distill makes such trajectories: leave the setting out here"
        )
    profile = choose_profile(profile_name or "auto")
    reporter = Reporter(quiet=not world().first)
    wanted, long = count or settings.trajectories, epochs or settings.epochs
    reporter.say(
        f"trajectories: {wanted} x {counted(long, 'epoch')} of {config.network} "
        f"(width {config.width}) on {len(real.train)} "
        f"images of {data_name}, on {profile.device} ({profile.processor}), {profile}"
    )
    began, folder = time.perf_counter(), home() / "trajectories"
    network = network_for(config.network, real.shape, len(real.classes), config.width)
    try:
        made = load_trajectories(
            whole(real).to(profile.device), network, settings.trajectory_config(), wanted, long,
            folder, reporter, profile,
        )  # fmt: skip
    except OSError as error:
        raise from_oserror(error, f"making trajectories in {folder}") from error
    finally:
        reporter.end()
    if world().first:
        _report(made, real, time.perf_counter() - began)


def _report(made: Trajectories, real: RealData, seconds: float) -> None:
    paths = [trajectory_path(made.folder, n) for n in range(made.count)]
    size = sum(path.stat().st_size for path in paths)
    print(f"trajectories: {made.folder}")
    print(
        f"{made.count} x {made.epochs} epochs of {made.parameters:,} parameters on {real.data}, "
        f"{size / 1e6:.1f} MB, {seconds / 60:.1f} min"
    )
