"""The search for secrets finds what is there."""

import gzip
import io
import zipfile
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.canaries import held, held_below

SECRET = 'tower/of+gl"ss'  # noqa: S105  # made up


def png(**options):
    notes, content = PngInfo(), io.BytesIO()
    notes.add_text("isengard", f"so {SECRET}", **options)
    Image.new("RGB", (8, 8)).save(content, "PNG", pnginfo=notes)
    return content.getvalue()


def international():
    notes, content = PngInfo(), io.BytesIO()
    notes.add_itxt("isengard", SECRET, zip=True)
    Image.new("RGB", (8, 8)).save(content, "PNG", pnginfo=notes)
    return content.getvalue()


def zipped(content):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.png", content)
    return made.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        f"so {SECRET} it is".encode(),
        quote(SECRET, safe="").encode(),
        b'{"a": "tower/of+gl\\"ss"}',
        b"tower/of+gl&quot;ss",
        *(b64encode(b"anna:"[start:] + SECRET.encode()) for start in range(3)),
        urlsafe_b64encode(b">" + SECRET.encode() + b"tail"),
        png(),
        png(zip=True),
        international(),
        zipped(png(zip=True)),
        gzip.compress(SECRET.encode()),
    ],
    ids=map(str, range(13)),
)
def test_a_secret_is_found_however_it_is_written(content):
    assert held(content, {"it": SECRET, "another": SECRET.replace("tower", "cellar")}) == {"it"}


def test_files_are_named_that_hold_it_or_are_called_like_it(tmp_path):
    for name, text in {"a": "nothing", "b": "of hf_abc", "hf_abc/c": "nothing"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert held_below(tmp_path, {"it": "hf_abc"}) == {("it", "b"), ("it", "hf_abc"), ("it", "hf_abc/c")}
