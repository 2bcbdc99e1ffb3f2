"""``python -m isengard storage`` and ``cleanup``: what uses the disk, and what of it can go."""

from typing import Annotated

import typer
from rich.table import Table

from isengard.cli.common import application, err, out, print_json
from isengard.domain.disk import size
from isengard.domain.storage import Look, Policy, Usage

#: Runs, LoRAs, models, ... that are told one by one.
LARGEST = 12

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def storage(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Say what uses the disk: photos, trainings, LoRAs, images, base models, caches, trash, logs."""
    look = application(context).storage.look()
    if as_json:
        print_json({**look.usage.model_dump(mode="json"), "used": look.usage.used})
        return
    usage = look.usage
    for part, bytes_used in usage.parts.items():
        if bytes_used:
            out.print(f"{size(bytes_used):>10}  {part}")
    out.print(f"{size(usage.used):>10}  in {usage.files} files; {_limits(usage)}")
    table = Table(box=None)
    for title in ("Largest", "Of", "Name", "Size"):
        table.add_column(title)
    for entry in usage.entries[:LARGEST]:
        within = ", ".join(f"{name} {size(each)}" for name, each in entry.inside.items())
        name = f"{entry.title} ({entry.name})" if entry.title else entry.name
        table.add_row(size(entry.size), entry.part, name, within)
    out.print(table)
    if look.items:
        err.print(f"{_sum(look)} can go; see: python -m isengard cleanup --dry-run")


def cleanup(  # noqa: PLR0913  # each is an option
    context: typer.Context,
    *,
    samples: Annotated[
        bool,
        typer.Option("--samples", help="Sample pictures of ended trainings, but those of the last step."),
    ] = False,
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints",
            help="Checkpoints of succeeded trainings: neither the last, the best, pinned nor asked for.",
        ),
    ] = False,
    trash: Annotated[
        bool, typer.Option("--trash", help="Deleted characters, LoRAs and images, for good.")
    ] = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="Latents, prompts and small pictures; made again when needed.")
    ] = False,
    abandoned: Annotated[
        bool, typer.Option("--abandoned", help="Downloads, uploads and files that were never finished.")
    ] = False,
    older_than: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="DAYS",
            help="Only what is older; 30, and 2 for what is abandoned. Caches and what is abandoned: a day at least.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what nobody needs any more, after showing it. Without a choice it is all of the kinds below.

      python -m isengard cleanup --dry-run

      python -m isengard cleanup --checkpoints --samples --older-than 7

    What waiting, running and paused jobs need is never touched, wherever they run, nor is what a failed or cancelled
    training can go on from.
    """
    given = {
        Policy.SAMPLES: samples, Policy.CHECKPOINTS: checkpoints, Policy.TRASH: trash, Policy.CACHE: cache,
        Policy.ABANDONED: abandoned,
    }  # fmt: skip
    chosen = [policy for policy, wanted in given.items() if wanted] or list(Policy)
    service = application(context).storage
    look = service.look(older_than)
    going = [item for item in look.items if item.policy in chosen]
    for item in going:
        out.print(f"{size(item.size):>10}  {item.policy}: {item.what}")
    total = sum(item.size for item in going)
    if not going or dry_run:
        out.print(f"{size(total)} would go" if going else "there is nothing to remove")
        return
    if not yes:
        typer.confirm(f"Remove these {size(total)} for good?", abort=True, err=True)
    cleaned = service.clean(look.number, chosen)
    for sentence in cleaned.kept:
        err.print(sentence)
    out.print(f"{size(cleaned.size)} are free again")


def _limits(usage: Usage) -> str:
    disk = f"{size(usage.disk_free)} of {size(usage.disk_total)} are free on the disk"
    if usage.quota is None:
        return disk
    return f"{disk}; ISENGARD_QUOTA_GB allows {size(usage.quota)}"


def _sum(look: Look) -> str:
    return size(sum(item.size for item in look.items))
