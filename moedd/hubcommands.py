"""The commands that publish, fetch and compare sets: what they are called with.

Heavy imports happen inside the commands, so that help answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from moedd_loaders.errors import UsageError

SetArgument = Annotated[str, typer.Argument(metavar="NAME", help="A set: its folder or name.")]
LicenceOption = Annotated[
    str | None,
    typer.Option("--license", help="Licence of the source data: an identifier or a link."),
]
VersionOption = Annotated[
    str | None, typer.Option("--set-version", help="Publish as this version, X.Y.Z.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace other images, as a higher version.")
]
ResultsOption = Annotated[
    Path | None, typer.Option("--results", help="A file of further benchmark records.")
]
EndpointOption = Annotated[
    str | None, typer.Option("--endpoint", help="Another Hub (default: HF_ENDPOINT).")
]


def add_hub_commands(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command("push-to-hub")(push_to_hub)
    for command in (push, pull, leaderboard):
        app.command()(command)


def push_to_hub(
    name: SetArgument,
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="NAMESPACE/NAME, or NAME in your account.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, write nothing.")
    ] = False,
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Default: the account's rule, or as it is."),
    ] = None,
    licence: LicenceOption = None,
    set_version: VersionOption = None,
    overwrite: OverwriteOption = False,
    tag: Annotated[str | None, typer.Option(help="Name of the tag (default: vX.Y.Z).")] = None,
    no_tag: Annotated[bool, typer.Option("--no-tag", help="Make no tag.")] = False,
    revision: Annotated[str | None, typer.Option(help="Commit to this branch.")] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose it as a pull request.")
    ] = False,
    card_only: Annotated[
        bool, typer.Option("--card-only", help="Update card, preview and records only.")
    ] = False,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Drop the text written on the Hub.")
    ] = False,
    formats: Annotated[
        str | None, typer.Option(help="parquet,webdataset,safetensors (default: all).")
    ] = None,
    results: ResultsOption = None,
    collection: Annotated[str | None, typer.Option(help="Slug of a collection to add to.")] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    endpoint: EndpointOption = None,
    no_xet: Annotated[
        bool, typer.Option("--no-xet", help="Send large files by plain HTTP.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was done as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Publish a set on the Hugging Face Hub: one commit, checked, tagged, safe to repeat."""
    from moedd.publishing import run_push_to_hub
    from moedd_publish.hub import PushOptions

    if tag is not None and no_tag:
        raise UsageError(f"--tag {tag} and --no-tag are both given: give one of them")
    options = PushOptions(
        version=set_version,
        licence=licence,
        private=private,
        overwrite=overwrite,
        card_only=card_only,
        replace_card=replace_card,
        tag="" if no_tag else tag,
        revision=revision,
        create_pr=create_pr,
        message=message,
        collection=collection,
        results=results,
        endpoint=endpoint,
    )
    run_push_to_hub(
        name,
        repo_id,
        options,
        formats=formats,
        dry_run=dry_run,
        as_json=as_json,
        quiet=quiet,
        xet=not no_xet,
    )


def push(
    name: SetArgument,
    url: Annotated[str, typer.Argument(metavar="URL", help="s3://..., gs://..., file://...")],
    licence: LicenceOption = None,
    set_version: VersionOption = None,
    overwrite: OverwriteOption = False,
    results: ResultsOption = None,
) -> None:
    """Publish a set at any address that fsspec writes to; load it by the same address."""
    from moedd.publishing import run_push

    run_push(name, url, licence=licence, version=set_version, overwrite=overwrite, results=results)


def pull(
    name: Annotated[str, typer.Argument(metavar="REPO_ID[@REV]", help="A set on the Hub.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="Copy the whole set into this new folder.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only say what the cache holds.")
    ] = False,
    endpoint: EndpointOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say where it is as JSON.")] = False,
) -> None:
    """Fetch a set from the Hub: manifest and tensors, into the cache, pinned to one commit."""
    from moedd.publishing import run_pull

    run_pull(name, offline=offline, as_json=as_json, to=to, endpoint=endpoint)


def leaderboard(
    hub: Annotated[bool, typer.Option("--hub", help="Sets on the Hub (tag moedd).")] = False,
    local: Annotated[
        Path | None, typer.Option("--local", help="Sets in this folder (default: yours, bundled).")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Only sets of this data.")] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Only sets of so many images per class.")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="A network, name or budget.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page.")] = None,
    space: Annotated[
        str | None, typer.Option("--push-space", metavar="REPO_ID", help="Publish it as a Space.")
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Distilled data sets",
    endpoint: EndpointOption = None,
) -> None:
    """Compare the benchmark records of many sets, recipe by recipe."""
    from moedd.boardcommand import run_leaderboard

    run_leaderboard(
        hub=hub,
        local=local,
        data=data,
        budget=budget,
        sort=sort,
        as_csv=as_csv,
        as_json=as_json,
        html=html,
        space=space,
        title=title,
        endpoint=endpoint,
    )
