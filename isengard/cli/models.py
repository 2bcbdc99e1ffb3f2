"""``python -m isengard models``: the base models, and how to get those that are not here."""

from typing import Annotated

import typer
from rich.table import Table

from isengard.cli.common import application, out, print_json


def models(
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Argument(help="Say more about this one.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list on stdout.")] = False,
) -> None:
    """List the base models: their licence, the memory they need, and whether they are on this machine.

    The demo model comes with Isengard. With a name it says how to get that model:

      python -m isengard models flux1-dev
    """
    app = application(context)
    cards = app.catalog.models() if name is None else (app.catalog.model(name),)
    rows = [(card, app.weights.status(card)) for card in cards]
    if as_json:
        print_json([{**card.model_dump(mode="json"), "state": found.state} for card, found in rows])
        return
    table = Table("Model", "Here?", "Trains", "GB to train / generate", "Title and licence", box=None)
    for card, found in rows:
        memory = f"{card.train_memory_gb:g} / {card.generate_memory_gb:g}"
        trains = "yes" if card.trains else "no"
        table.add_row(card.name, found.state, trains, memory, f"{card.title}, {card.licence}")
    out.print(table)
    if name is not None:
        card, found = rows[0]
        out.print(str(found.path) if found.ready else app.weights.advice(card, found))
