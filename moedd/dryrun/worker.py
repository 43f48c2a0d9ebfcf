"""The process that times a run: a fresh one, so that its peak memory is that of the run.

    python -m moedd.dryrun.worker FOLDER

FOLDER/arguments.json says what to time, FOLDER/found.json is what was found, or went wrong.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from moedd_loaders.errors import MoeddError, MoeddWarning

ARGUMENTS, FOUND = "arguments.json", "found.json"


def main(folder: Path) -> None:
    """Time what the folder says and write down what was found."""
    from moedd.commands import Work, run_distill
    from moedd.dryrun.estimate import Estimate, Stage
    from moedd.dryrun.measure import Measurement
    from moedd.pixels import on_disk

    asked = json.loads((folder / ARGUMENTS).read_text("utf-8"))
    begun = time.time()
    start = Stage(title="start", covers="Python, torch, imports", amount="1 process")
    start.seconds = begun - asked["started"]
    found: list[Estimate] = []
    warnings.showwarning = _shown  # type: ignore[assignment]

    def measure(work: Work) -> None:
        reading = Stage(title="reading the data", seconds=time.time() - begun)
        reading.amount = f"{len(work.real.train) + len(work.real.test)} images"
        reading.covers = "reading and checking the real data, probing the machine"
        estimate = Measurement(work, folder).estimate([start, reading])
        estimate.scratch = sum(on_disk(split.images) for split in (work.real.train, work.real.test))
        found.append(estimate)

    said: dict[str, Any]
    try:
        run_distill(**_typed(asked["arguments"]), instead=measure)
        said = {"estimate": found[0].model_dump(mode="json")}
    except MoeddError as error:
        said = {"error": type(error).__name__, "message": str(error)}
    (folder / FOUND).write_text(json.dumps(said), encoding="utf-8")


def _typed(arguments: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples."""
    size = arguments["size"]
    return {**arguments, "size": tuple(size) if isinstance(size, list) else size}


def _shown(message: Any, category: Any, *where: Any) -> None:
    text = str(message) if category is MoeddWarning else f"{category.__name__}: {message}"
    print(f"moedd: warning: {text}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
