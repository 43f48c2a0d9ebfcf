"""How to publish on the Hub: the options of a push, and which of them contradict one another."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from moedd_loaders.errors import UsageError

__all__ = ["PushOptions", "check_branch", "check_options"]

_PULL = re.compile(r"refs/pr/(\d+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class PushOptions:
    """How to publish. `private` None: as the account's rule, or the repository, has it.

    `tag` None: "v" and the version; "": none. `results`: a file of further records. `bars`: show
    the client's progress bars. `revision`: a branch, or "refs/pr/N". For the others see
    `hubplan.make_plan`.
    """

    version: str | None = None
    licence: str | None = None
    private: bool | None = None
    overwrite: bool = False
    card_only: bool = False
    replace_card: bool = False
    formats: tuple[str, ...] | None = None
    tag: str | None = None
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    collection: str | None = None
    results: Path | None = None
    endpoint: str | None = None
    bars: bool = False

    @property
    def branch(self) -> str:
        return self.revision or "main"

    @property
    def pull(self) -> int | None:
        """The number of the pull request that `revision` addresses."""
        match = _PULL.fullmatch(self.branch)
        return int(match[1]) if match else None

    @property
    def proposing(self) -> bool:
        return self.create_pr or self.pull is not None

    @property
    def on_main(self) -> bool:
        return self.branch == "main" and not self.create_pr


def check_options(options: PushOptions) -> None:
    """Options that contradict one another, or a name that is none. Raises UsageError."""
    if options.card_only:
        _check_card_only(options)
    if options.create_pr and options.revision not in (None, "main"):
        raise UsageError(
            f"--create-pr proposes a change of main and --revision {options.revision} is something "
            "else: give one of them"
        )
    if options.proposing and options.tag:
        raise UsageError(
            f"--tag {options.tag} names what is published, and a pull request only proposes it: "
            "push without --tag, and tag what is merged"
        )
    named = options.branch
    if (named.startswith("refs/") and options.pull is None) or _COMMIT.fullmatch(named):
        raise UsageError(
            f"--revision {named} is neither the name of a branch nor a pull request, expected a "
            "name such as trial, or refs/pr/1"
        )


def check_branch(options: PushOptions, tags: Collection[str]) -> None:
    """A branch of a tag's name would hide it. Raises UsageError."""
    if options.branch in tags:
        raise UsageError(
            f"--revision {options.branch} is a tag, and tags do not move: give the name of a branch"
        )


def _check_card_only(options: PushOptions) -> None:
    if options.overwrite:
        raise UsageError("--card-only leaves the images alone and --overwrite replaces them")
    for option, given in (("--set-version", options.version), ("--license", options.licence)):
        if given is not None:
            raise UsageError(
                f"{option} {given} changes moedd.json, which --card-only leaves alone, so the card "
                "would contradict it: push without --card-only"
            )
    if options.formats is not None:
        raise UsageError(
            "--formats chooses what is sent of the images, which --card-only leaves alone: give "
            "one of them"
        )
