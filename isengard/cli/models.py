"""``python -m isengard models``: the base models, and how to get those that are not here."""

from typing import Annotated

import typer
from rich.table import Table

from isengard.cli.common import application, out, print_json
from isengard.wiring import GENERATES


def models(
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Argument(help="Say more about this one.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list on stdout.")] = False,
) -> None:
    """List the base models: whether they are here, what can be done with them, memory to train/generate, licence.

    The demo model comes with Isengard. With a name it says how to get that model:

      python -m isengard models flux1-dev
    """
    app = application(context)
    cards = app.catalog.models() if name is None else (app.catalog.model(name),)
    rows = [(card, app.weights.status(card)) for card in cards]
    if as_json:
        print_json([{**card.model_dump(mode="json"), "state": found.state} for card, found in rows])
        return
    table = Table(box=None)
    for heading in ("Model", "Here?", "Trains", "Images", "Needs GB", "Licence"):
        table.add_column(heading, no_wrap=heading != "Licence")
    for card, found in rows:
        memory = f"{card.train_memory_gb:g}/{card.generate_memory_gb:g}"
        trains = ("yes" if app.training.available_engines(card) else "not yet") if card.trainable else "no"
        images = "yes" if card.family in GENERATES else "not yet"
        table.add_row(card.name, found.state, trains, images, memory, card.licence)
    out.print(table)
    if name is not None:
        card, found = rows[0]
        out.print(str(found.path) if found.ready else app.weights.advice(card, found))
