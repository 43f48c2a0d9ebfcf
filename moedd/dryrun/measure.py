"""A dry run's measurements: every stage of a run once, at its true size, in a folder to be thrown
away, and a few steps of what is done again and again."""

import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from moedd.commands import Work
from moedd.distill import PREVIEW_SECONDS, save_preview
from moedd.dryrun.book import Book
from moedd.dryrun.estimate import FORMATS, Estimate, ExpertCost, Stage
from moedd.dryrun.evaluation import time_evaluation
from moedd.dryrun.standins import Standins, without_floor
from moedd.experts import Expert
from moedd.finish import write_result
from moedd.guards import require_images
from moedd.mixture import Mixture
from moedd.plans import default_plan
from moedd.progress import Reporter
from moedd.runstate import RunFolder, RunState
from moedd.tables import counted
from moedd.timing import Laps, Pace, choose_fraction, measure
from moedd_loaders.manifest import TENSORS, Manifest, parquet_path, tar_path
from moedd_loaders.read import read_tensors


class Measurement:
    """Of one run. `folder`: where the name of the present stage is kept."""

    def __init__(self, work: Work, folder: Path) -> None:
        self.work = work
        self.book = Book(work.profile, folder, Reporter())

    def estimate(self, before: Sequence[Stage]) -> Estimate:
        """Time everything. `before`: the stages that lie behind already, without their peaks."""
        work, book = self.work, self.book
        peak = book.meter.lap()
        for stage in before:
            stage.peak, stage.device_peak = peak.host, peak.device
        book.stages += before
        standins = Standins(
            work.config, work.real, work.profile, work.places.home, book.folder / "scratch", book
        )
        experts, fraction, manifest = self._run(made_up=standins.make())
        if work.evaluates:
            stored = read_tensors(work.places.target, manifest)
            time_evaluation(book, stored, default_plan(work.config), standins)
        sizes = [sum(expert.formats.values()) for expert in experts]
        whole = next(stage for stage in book.stages if stage.title == _SET).kept
        profile = work.profile
        return Estimate(
            name=work.places.name,
            machine=f"{profile.device} ({profile.processor}), {profile}",
            fraction=fraction,
            experts=experts,
            stages=book.stages,
            other_files=whole - sum(sizes),
        )

    def _run(self, made_up: bool) -> tuple[list[ExpertCost], float, Manifest]:
        """The run itself: beginning, matching, checkpoints, the set."""
        work, book = self.work, self.book
        with book.stage("beginning") as stage:
            began = perf_counter()
            config = without_floor(work.config) if made_up else work.config
            mixture = Mixture.build(
                config, work.real, work.places.home, work.profile, Reporter(quiet=True)
            )
            for expert, settings in zip(mixture.experts, work.config.experts, strict=True):
                expert.config = settings
            stage.seconds = perf_counter() - began
            stage.amount = counted(sum(len(e.labels) for e in mixture.experts), "image")
            stage.covers = "parts, stored networks, first images (all of rded, coresets)"
        fraction = self._fraction(mixture)
        steps = mixture.steps(fraction)
        pace, peaks, row_bytes = self._match(mixture, fraction, steps)
        state = self._checkpoints(mixture, fraction, steps, row_bytes)
        manifest = self._set(mixture, state)
        costs = [
            self._expert(expert, steps[e], pace.experts[e], peaks[e], manifest, e)
            for e, expert in enumerate(mixture.experts)
        ]
        return costs, fraction, manifest

    def _fraction(self, mixture: Mixture) -> float:
        effort = self.work.effort
        if effort.max_hours is None:
            return effort.fraction
        with self.book.stage("fitting the schedule") as stage:
            began = perf_counter()
            fraction = choose_fraction(
                mixture, effort.fraction, effort.max_hours, self.book.reporter
            )
            stage.seconds = perf_counter() - began
            stage.covers = f"a few steps, for --max-hours {effort.max_hours:g}"
        return fraction

    def _match(
        self, mixture: Mixture, fraction: float, steps: Sequence[int]
    ) -> tuple[Pace, list[Stage], float]:
        """The pace, a peak of each expert, and the bytes of a run's log."""
        every, total = mixture.config.diversity.every, max(steps)
        peaks: list[Stage] = []
        rows: list[list[dict[str, Any]]] = []
        with self.book.stage("matching") as stage:
            mixture.settle(fraction)

            def after(result: Any) -> None:
                peak = self.book.meter.lap()
                peaks.append(Stage(title="", peak=peak.host, device_peak=peak.device))
                stage.peak = max(stage.peak, peak.host)
                stage.device_peak = max(stage.device_peak, peak.device)
                made = result if isinstance(result, list) else [result] if result else []
                rows.append([{"tick": total, "expert": 0, "step": total, **row} for row in made])

            pace = measure(mixture, after)
            times = [p.seconds(n) for p, n in zip(pace.experts, steps, strict=True)]
            stage.seconds = sum(times)
            stage.amount = counted(sum(steps), "step")
            stage.covers = "the steps of all experts"
        sizes = [sum(len(json.dumps(row)) + 30 for row in of) for of in rows]
        counts = list(steps)
        if mixture.diverse:
            counts.append(total // every)
            diversity = Stage(title="diversity", amount=counted(counts[-1], "step"))
            diversity.seconds = pace.diversity.seconds(counts[-1])
            diversity.peak, diversity.device_peak = peaks[-1].peak, peaks[-1].device_peak
            diversity.covers = "pushing pairs of experts apart"
            self.book.stages.append(diversity)
        return pace, peaks, sum(n * size for n, size in zip(counts, sizes, strict=True))

    def _checkpoints(
        self, mixture: Mixture, fraction: float, steps: Sequence[int], log: float
    ) -> RunState:
        """Time one checkpoint and one picture; their number follows from the matching's time."""
        work = self.work
        matching = sum(s.seconds for s in self.book.stages if s.title in ("matching", "diversity"))
        state = RunState(
            fraction=fraction, tick=max(steps), threads=torch.get_num_threads(),
            profile=work.profile.name, precision=work.profile.precision,
            device=work.profile.device,
        )  # fmt: skip
        run = RunFolder(work.places.home / "runs" / work.places.name)
        with self.book.stage("checkpoints") as stage:
            began = perf_counter()
            require_images(mixture.experts)
            run.save(mixture.config, state, mixture.experts, work.real.fingerprint)
            saving = perf_counter() - began
            save_preview(mixture, run)
            drawing = perf_counter() - began - saving
            # One at the start, one at the end, and one a minute (a step may take longer).
            longest = matching / max(1, *steps)
            saves = 2 + int(matching / max(work.effort.checkpoint_seconds, longest, 1e-3))
            pictures = 1 + int(matching / max(PREVIEW_SECONDS, longest))
            stage.seconds = saves * saving + pictures * drawing
            stage.amount = f"{counted(saves, 'checkpoint')}, {counted(pictures, 'picture')}"
            stage.covers = "a checkpoint (twice while it is replaced), log, picture"
            stage.passing = 2 * run.checkpoint.stat().st_size
            stage.kept = int(log) + run.preview.stat().st_size
        return state

    def _set(self, mixture: Mixture, state: RunState) -> Manifest:
        work = self.work
        with self.book.stage(_SET) as stage:
            began = perf_counter()
            manifest = write_result(
                work.config, work.real, mixture.experts, work.places.target, work.places.name,
                state, work.profile, overwrite=False,
            )  # fmt: skip
            stage.seconds = perf_counter() - began
            files = [path for path in work.places.target.rglob("*") if path.is_file()]
            stage.kept = sum(path.stat().st_size for path in files)
            stage.amount = f"{manifest.budget.images} stored images"
            stage.covers = "every format, card, picture, report on diversity"
        return manifest

    def _expert(
        self, expert: Expert, steps: int, laps: Laps, peak: Stage, manifest: Manifest, e: int
    ) -> ExpertCost:
        entry = manifest.experts[e]
        stored, of = sum(entry.stored_per_class), manifest.budget.images
        shards = [shard for each in manifest.experts for shard in each.shards]
        files = manifest.files

        def size(paths: Sequence[str]) -> int:
            return sum(files[path].size for path in paths)

        state = expert.state_dict().values()
        found = {
            "tensors": files[TENSORS].size * stored // of,
            "parquet": size([parquet_path(shard, len(shards)) for shard in entry.shards]),
            "webdataset": size([tar_path(shard) for shard in entry.shards]),
        }
        assert set(found) == set(FORMATS)
        return ExpertCost(
            method=expert.method,
            steps=steps,
            schedule=expert.steps,
            step_seconds=laps.each,
            seconds=laps.seconds(steps),
            peak=peak.peak,
            device_peak=peak.device_peak,
            checkpoint=sum(tensor.numel() * tensor.element_size() for tensor in state),
            stored=stored,
            decoded=sum(entry.decoded_per_class),
            formats=found,
        )


_SET = "writing the set"
