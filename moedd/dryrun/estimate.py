"""What a dry run finds out, as plain values: the timing process hands it over as JSON."""

from pydantic import BaseModel, Field

FORMATS = ("tensors", "parquet", "webdataset")


class Stage(BaseModel):
    """One stage of a run.

    `kept` and `passing`: bytes on disk that stay, and that are gone when the run has ended. `peak`,
    `device_peak`: bytes of memory while it was timed, what earlier stages left included.
    """

    title: str
    amount: str = ""
    covers: str = ""
    seconds: float = 0.0
    peak: int = 0
    device_peak: int = 0
    kept: int = 0
    passing: int = 0


class ExpertCost(BaseModel):
    """One expert: `steps` of the `schedule` it would have, seconds of a step and of all of them,
    bytes of its state in a checkpoint, images, and bytes of these in each format of the set."""

    method: str
    steps: int
    schedule: int
    step_seconds: float
    seconds: float
    peak: int
    device_peak: int = 0
    checkpoint: int
    stored: int
    decoded: int
    formats: dict[str, int] = Field(description="bytes by format: tensors, parquet, webdataset")


class Estimate(BaseModel):
    """A run's cost in full; `other_files`: bytes of the set that belong to no format of images;
    `scratch`: of decoded real images on disk, as long as the run lasts."""

    name: str
    machine: str
    fraction: float
    experts: list[ExpertCost]
    stages: list[Stage]
    other_files: int = 0
    scratch: int = 0
    notes: list[str] = []

    @property
    def seconds(self) -> float:
        """From the command to its end."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak(self) -> int:
        """Peak resident memory of the process."""
        return max(stage.peak for stage in self.stages)

    @property
    def device_peak(self) -> int:
        """Peak of the memory that torch allocates on the GPU."""
        return max(stage.device_peak for stage in self.stages)

    @property
    def kept(self) -> int:
        """Bytes on disk when the run has ended, beyond what was there before."""
        return sum(stage.kept for stage in self.stages)

    @property
    def disk(self) -> int:
        """Bytes on disk at most at once, beyond what was there before."""
        return self.kept + self.scratch + max(stage.passing for stage in self.stages)

    def format_bytes(self, name: str) -> int:
        """Bytes of all images in one format."""
        return sum(expert.formats[name] for expert in self.experts)
