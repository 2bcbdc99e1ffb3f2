"""``python -m isengard characters``: who a LoRA can be trained of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from isengard.cli.common import application, err, out, print_json
from isengard.cli.follow import finish, working
from isengard.domain.character import (
    CLASS_WORDS,
    AddedImage,
    Character,
    RefusedImage,
    TrashedCharacter,
    trigger_warning,
)
from isengard.domain.identity import ScorerKind
from isengard.store.decoding import MIN_SIDE

HELP = r"""Characters: photos of one person, animal or figure, and what is written about them.

A character has a trigger word, a made-up word that will call it up in prompts, and a class word that says what it is.
Captions hold them as \[trigger] and \[class], so both can change later.
"""
EXAMPLES = r"""A first character

  python -m isengard characters create "Anna Smith" --class-word woman

  python -m isengard characters add anna-smith photos/*.jpg more-photos.zip

  python -m isengard characters caption anna-smith "a photo of \[trigger] \[class]" --only-empty

  python -m isengard characters show anna-smith

Then: python -m isengard train --help
"""

#: The photos suggest what tells a character apart.
AUTOMATIC = "automatic"
SCORERS = (AUTOMATIC, *ScorerKind)

app = typer.Typer(help=HELP, epilog=EXAMPLES, no_args_is_help=True)

CharacterId = Annotated[str, typer.Argument(metavar="ID", help="The character's id, as `list` shows it.")]
EntryId = Annotated[str, typer.Argument(metavar="ENTRY", help="Entry of `trash`, or the character's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Trigger = Annotated[
    str | None, typer.Option(help="A rare word: letters and digits. Suggested when left out.")
]
ClassWord = Annotated[str, typer.Option(help=f"What it is: {', '.join(CLASS_WORDS)} or another word.")]
Notes = Annotated[str, typer.Option(help="Anything worth remembering.")]


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What you call it; need not be unique.")],
    *,
    trigger: Trigger = None,
    class_word: ClassWord = "person",
    notes: Notes = "",
    as_json: AsJson = False,
) -> None:
    """Make a character without images yet; its id is on stdout."""
    service = application(context).characters
    character = service.create(name, trigger=trigger, class_word=class_word, notes=notes)
    if as_json:
        print_json(character.model_dump(mode="json"))
    else:
        out.print(character.id)
    err.print(f"trigger word: {character.trigger}; now add photos: characters add {character.id} FILES")
    _warn_of_trigger(character)


@app.command("list")
def list_(context: typer.Context, *, as_json: AsJson = False) -> None:
    """All characters, and folders among them that cannot be read."""
    service = application(context).characters
    characters, damaged = service.list(), service.damaged()
    if as_json:
        print_json(
            {
                "characters": [_listed(character) for character in characters],
                "damaged": [one.model_dump(mode="json") for one in damaged],
            }
        )
        return
    table = Table("Id", "Name", "Trigger", "Class", "Images", box=None)
    for one in characters:
        table.add_row(one.id, one.name, one.trigger, one.class_word, str(len(one.images)))
    out.print(table if characters else 'no characters yet: python -m isengard characters create "A Name"')
    for broken in damaged:
        err.print(f"damaged: {broken.id}: {broken.reason}")


@app.command()
def show(context: typer.Context, character_id: CharacterId, *, as_json: AsJson = False) -> None:
    """One character: its images and captions, and whether it is ready for a training."""
    service = application(context).characters
    character, readiness = service.get(character_id), service.readiness(character_id)
    if as_json:
        verdict = {"ready": readiness.ready, "reason": readiness.reason}
        print_json(character.model_dump(mode="json") | {"readiness": readiness.model_dump() | verdict})
        return
    out.print(f"{character.name} ({character.id}): {character.trigger} {character.class_word}")
    if character.notes:
        out.print(character.notes)
    table = Table("Image", "Size", "File", "Caption", box=None)
    for image in character.images:
        table.add_row(image.id, f"{image.width} x {image.height}", image.filename, image.caption)
    if character.images:
        out.print(table)
    out.print(f"{readiness.summary}: {'ready' if readiness.ready else 'not ready'}")
    for finding in readiness.findings:
        out.print(f"- {finding.text}")


@app.command()
def examine(context: typer.Context, character_id: CharacterId, *, as_json: AsJson = False) -> None:
    """Look at each photo and say what is wrong: somebody else, no face, blurred, sideways, twins, captions, too much alike.

    Changes nothing. Photos that were looked at before are not looked at again.
    """
    main = application(context)
    with Progress(TextColumn("looking at the photos"), BarColumn(), MofNCompleteColumn(), console=err) as bar:
        task = bar.add_task("looking", total=None)
        result = main.doctor.examine(
            character_id, report=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    files = {image.id: image.filename for image in main.characters.get(character_id).images}
    for finding in result.findings:
        fix = f" ({finding.fix.kind.replace('_', ' ')})" if finding.fix else ""
        where = f"{files[finding.image]} {finding.image}: " if finding.image else ""
        out.print(f"- {where}{finding.reason}{fix}")
    facts = result.facts
    out.print(f"{facts.showing} of {facts.photos} photos show the character; {len(result.findings)} findings")


@app.command()
def edit(
    context: typer.Context,
    character_id: CharacterId,
    *,
    name: Annotated[str | None, typer.Option(help="A new name; the id stays.")] = None,
    trigger: Annotated[str | None, typer.Option(help="Another trigger word, for trainings to come.")] = None,
    class_word: Annotated[str | None, typer.Option(help="What it is.")] = None,
    notes: Annotated[str | None, typer.Option(help="Replaces the notes.")] = None,
    scorer: Annotated[str | None, typer.Option(help=f"What tells it apart: {', '.join(SCORERS)}.")] = None,
) -> None:
    """Change what is said of a character."""
    service = application(context).characters
    if scorer == AUTOMATIC:
        scorer = ""
    character = service.edit(
        character_id, name=name, trigger=trigger, class_word=class_word, notes=notes, scorer=scorer
    )
    out.print(f"{character.name} ({character.id}): {character.trigger} {character.class_word}")
    if scorer is not None:
        out.print(_told_apart(character, application(context).likeness.kind(character)))
    _warn_of_trigger(character)


@app.command()
def add(
    context: typer.Context,
    character_id: CharacterId,
    files: Annotated[
        list[Path], typer.Argument(help="Images, zip archives, .txt captions named like an image.")
    ],
    *,
    model: Annotated[
        str | None, typer.Option(help="Say which images are under this base model's resolution.")
    ] = None,
    min_side: Annotated[int, typer.Option(min=1, help="Refuse images with a shorter side.")] = MIN_SIDE,
    as_json: AsJson = False,
) -> None:
    """Add images: JPEG, PNG, WebP, TIFF, BMP, AVIF or HEIC, up to 50 MB and 100 megapixels each.

    Each file is judged by itself and the good ones stay. Pictures are turned upright and kept as PNG in sRGB without
    GPS position or any other metadata. Exit code 1 when none was taken.
    """
    main = application(context)
    resolution = main.catalog.model(model).resolutions[0] if model else 0
    results: list[AddedImage | RefusedImage] = []
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), console=err
    ) as progress:
        task = progress.add_task("reading", total=main.characters.count_files(files))
        for result in main.characters.add_files(
            character_id, files, min_side=min_side, resolution=resolution
        ):
            results.append(result)
            progress.update(task, advance=1, description=result.filename[-40:])
            if not as_json:
                for line in _result_lines(result):
                    progress.console.print(line)
    added = [result for result in results if isinstance(result, AddedImage)]
    refused = [result for result in results if isinstance(result, RefusedImage)]
    if as_json:
        print_json({"added": _dumped(added), "refused": _dumped(refused)})
    else:
        out.print(f"{len(added)} added, {len(refused)} refused")
    if refused and not added:
        raise typer.Exit(1)


@app.command()
def caption(
    context: typer.Context,
    character_id: CharacterId,
    text: Annotated[
        str, typer.Argument(help=r"With \[trigger] and \[class]; \[caption] stands for the present caption.")
    ],
    *,
    image: Annotated[str | None, typer.Option(help="Only this image; else all.")] = None,
    only_empty: Annotated[bool, typer.Option("--only-empty", help="Keep the captions that exist.")] = False,
) -> None:
    r"""Write captions.

    Describe what may change (scene, pose, clothes, light) and not what never does (the face):

      characters caption anna "a photo of \[trigger] \[class], outdoors"

      characters caption anna "\[trigger], \[caption]"    puts the trigger before all captions
    """
    service = application(context).characters
    if image:
        service.set_caption(character_id, image, text)
        out.print("1 caption written")
        return
    out.print(f"{service.caption_all(character_id, text, only_empty=only_empty)} captions written")


@app.command()
def describe(
    context: typer.Context,
    character_id: CharacterId,
    *,
    captioner: Annotated[
        str,
        typer.Option("--with", help="A captioner, as `models list` shows it; else the first that is here."),
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also where there is a caption.")] = False,
) -> None:
    """Let a model write captions of what may change: the scene, the pose, the clothes; not of who it is.

    What it replaced comes back with `characters undo`. What you write meanwhile stays.
    """
    main = application(context)
    job = main.captioning.submit(character_id, captioner=captioner, overwrite=overwrite)
    with working(main):
        done = finish(main, job.id)
    out.print(f"{(done.result or {})['written']} captions written")


@app.command()
def undo(context: typer.Context, character_id: CharacterId) -> None:
    """Take the last change of many captions back, but for captions that were changed since."""
    out.print(f"{application(context).characters.undo_captions(character_id)} captions are as before")


@app.command()
def replace(
    context: typer.Context,
    character_id: CharacterId,
    find: Annotated[str, typer.Argument(help="Upper and lower case count.")],
    replacement: Annotated[str, typer.Argument(metavar="REPLACE")],
) -> None:
    """Find and replace in all captions."""
    changed = application(context).characters.replace_in_captions(character_id, find, replacement)
    out.print(f"{changed} captions changed")


@app.command()
def remove(
    context: typer.Context,
    character_id: CharacterId,
    images: Annotated[list[str], typer.Argument(help="Image ids, as `show` lists them.")],
    *,
    yes: Yes = False,
) -> None:
    """Delete images with their captions for good."""
    service = application(context).characters
    _confirm(f"delete {len(images)} images of {character_id!r} for good?", yes=yes)
    for image in images:
        service.remove_image(character_id, image)
    out.print(f"{len(images)} images deleted")


@app.command()
def delete(context: typer.Context, character_id: CharacterId) -> None:
    """Move a character into the trash, from where `restore` brings it back."""
    entry = application(context).characters.delete(character_id)
    out.print(entry.id)
    err.print(f"{character_id} is in the trash; to bring it back: characters restore {entry.id}")


@app.command()
def trash(context: typer.Context, *, as_json: AsJson = False) -> None:
    """What was deleted and can be restored or purged."""
    entries = application(context).characters.trashed()
    if as_json:
        print_json(_dumped(entries))
        return
    table = Table("Entry", "Name", "Images", box=None)
    for entry in entries:
        table.add_row(entry.id, entry.name, str(entry.images))
    out.print(table if entries else "the trash is empty")


@app.command()
def restore(
    context: typer.Context,
    entry: EntryId,
    *,
    new_id: Annotated[str | None, typer.Option(help="Another id, when its own is taken.")] = None,
    trigger: Annotated[str | None, typer.Option(help="Another trigger, when its own is taken.")] = None,
) -> None:
    """Bring a character back from the trash."""
    character = application(context).characters.restore(entry, character_id=new_id, trigger=trigger)
    out.print(character.id)


@app.command()
def purge(
    context: typer.Context,
    entry: Annotated[str | None, typer.Argument(metavar="ENTRY", help="Entry of `trash`.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Empty the trash.")] = False,
    yes: Yes = False,
) -> None:
    """Delete from the trash for good."""
    service = application(context).characters
    if (entry is None) != everything:
        raise typer.BadParameter("give an entry of the trash, or --all")
    _confirm(f"delete {'all that is in the trash' if entry is None else repr(entry)} for good?", yes=yes)
    if entry is None:
        out.print(f"{service.purge_all()} characters deleted")
        return
    service.purge(entry)
    out.print("1 character deleted")


@app.command()
def export(
    context: typer.Context,
    character_id: CharacterId,
    path: Annotated[Path, typer.Argument(help="The zip to write.")],
    *,
    resolve: Annotated[
        bool,
        typer.Option("--resolve", help=r"Put the words themselves in the place of \[trigger] and \[class]."),
    ] = False,
) -> None:
    """Write images and captions as a zip that any trainer reads."""
    out.print(str(application(context).characters.export(character_id, path, resolve=resolve)))


def _confirm(question: str, *, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True, err=True)


def _warn_of_trigger(character: Character) -> None:
    if warning := trigger_warning(character.trigger):
        err.print(f"careful: {warning}")


def _told_apart(character: Character, kind: ScorerKind) -> str:
    why = "as you chose" if character.scorer else "as the photos suggest"
    return f"told apart by: {kind.replace('_', ' ')}, {why}"


def _listed(character: Character) -> dict[str, Any]:
    return character.model_dump(mode="json", exclude={"images"}) | {"images": len(character.images)}


def _dumped(models: Sequence[AddedImage | RefusedImage | TrashedCharacter]) -> list[dict[str, Any]]:
    return [model.model_dump(mode="json") for model in models]


def _result_lines(result: AddedImage | RefusedImage) -> list[str]:
    if isinstance(result, RefusedImage):
        return [f"refused {result.filename}: {result.reason}"]
    return [f"{result.filename}: {note}" for note in result.notes]
