"""Several pictures in one, with a heading for each row."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from isengard.files import replacing

CELL = 256
GAP = 12
HEADING = 30
INK, PAPER = (40, 40, 46), (250, 249, 246)


def write_contact_sheet(path: Path, rows: Mapping[str, Sequence[Path]]) -> None:
    """Write rows of pictures, each scaled to `CELL` pixels, under their headings, as one PNG. Raises: DiskFull."""
    columns = max(len(pictures) for pictures in rows.values())
    width = GAP + columns * (CELL + GAP)
    height = GAP + len(rows) * (HEADING + CELL + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=18)
    for row, (heading, pictures) in enumerate(rows.items()):
        top = GAP + row * (HEADING + CELL + GAP)
        draw.text((GAP, top), heading, fill=INK, font=font)
        for column, picture in enumerate(pictures):
            with Image.open(picture) as opened:
                cell = opened.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(cell, (GAP + column * (CELL + GAP), top + HEADING))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
