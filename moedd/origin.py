"""How, where and in how long a set was made, in one line; what is not known is said to be so."""

from moedd_loaders.manifest import Provenance

__all__ = ["made_by"]


def made_by(made: Provenance) -> str:
    """For sets made here: versions, machine, seed, time. Imported sets know none of it."""
    if made.seconds is None and made.profile == "unknown":
        return (
            f"made elsewhere, brought here by moedd {made.moedd}: its seed, machine, time and "
            "schedule are not known"
        )
    seed = "seeds of its parts" if made.seed is None else f"seed {made.seed}"
    time = (
        "time not known of all parts"
        if made.seconds is None
        else (f"{made.seconds / 60:.1f} min of matching")
    )
    return (
        f"made by moedd {made.moedd}, torch {made.torch}, {made.device}, profile {made.profile}, "
        f"{seed}: {time}"
    )
