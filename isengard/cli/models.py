"""``python -m isengard models``: the base models and what is known of them."""

from typing import Annotated

import typer
from rich.table import Table

from isengard.cli.common import application, out, print_json
from isengard.store.weights import Presence


def models(
    context: typer.Context,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list on stdout.")] = False,
) -> None:
    """List the base models: what they are for, their licence, and whether they are on this machine.

    The demo model comes with Isengard. Every other one must be fetched first: train or generate with it once, and
    the answer says how.
    """
    app = application(context)
    rows = [(card, app.weights.status(card)) for card in app.catalog.models()]
    if as_json:
        print_json([{**card.model_dump(mode="json"), "state": state(found)} for card, found in rows])
        return
    table = Table("Model", "Title", "Trains", "Needs to train / generate", "Licence", "Here?", box=None)
    for card, found in rows:
        memory = f"{card.train_memory_gb:g} / {card.generate_memory_gb:g} GB"
        trains = "yes" if card.trains else "no"
        table.add_row(card.name, card.title, trains, memory, card.licence, state(found))
    out.print(table)


def state(presence: Presence) -> str:
    """One word for a person."""
    if presence.ready:
        return "ready"
    return "missing" if presence.path is None else "incomplete"
