"""Settings read from PNG files of others, also of hostile ones."""

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from isengard.domain.generation import ImageRecord, ImageSpec
from isengard.errors import ImageRefused
from isengard.store.artifacts import read_settings
from isengard.store.parameters import read_parameters, write_parameters
from isengard.store.png_text import MAX_TEXT, SIGNATURE, read_texts

A1111 = """portrait of ohwx, (smile:1.2) <lora:mira:0.8>
Negative prompt: blurry, text
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 123, Size: 512x768, Model hash: abc, Lora hashes: "mira: aa, bo: bb", Version: v1.10"""
WANTED = frozenset({"parameters", "isengard"})


def chunk(kind, data, *, length=None):
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", 0)


def png(path, *chunks):
    path.write_bytes(SIGNATURE + b"".join(chunks) + chunk(b"IEND", b""))
    return path


def with_text(path, text, **options):
    info = PngInfo()
    info.add_text("parameters", text, **options)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("options", [{}, {"zip": True}])
def test_a1111_text_maps_as_far_as_it_goes(tmp_path, options):
    found = read_settings(with_text(tmp_path / "a.png", A1111, **options))
    assert found.origin == "parameters"
    assert found.settings == {
        "prompt": "portrait of ohwx, (smile:1.2)",
        "num_inference_steps": 20,
        "guidance_scale": 7.0,
        "seed": 123,
        "width": 512,
        "height": 768,
    }
    assert found.unmapped == (
        "LoRA <lora:mira:0.8>",
        "Negative prompt: blurry, text",
        "Sampler: DPM++ 2M Karras",
        "Model hash: abc",
        'Lora hashes: "mira: aa, bo: bb"',
        "Version: v1.10",
    )


def test_a_step_cache_is_written_for_other_programs_and_read_again():
    spec = ImageSpec(base_model="demo", prompt="x", cache="first_block")
    record = ImageRecord(
        job_id="j", index=0, spec=spec, prompt="x", seed=1, loras=(), seconds=1, created_at=0
    )
    assert read_parameters(write_parameters(record, version="1")).settings["cache"] == "first_block"


def test_a_value_out_of_range_is_named_and_not_taken(tmp_path):
    found = read_parameters("x\nSteps: 5000, Seed: -1, Size: 500x512, CFG scale: much")
    assert found.settings == {"prompt": "x"}
    assert [text.split(" (")[0] for text in found.unmapped] == [
        "Steps: 5000",
        "Seed: -1",
        "Size: 500x512",
        "CFG scale: much",
    ]


def test_a_prompt_alone_is_taken_and_an_empty_one_named():
    assert read_parameters("just words").settings == {"prompt": "just words"}
    assert read_parameters("").unmapped[0].startswith("prompt (")


def test_words_beyond_latin_survive(tmp_path):
    found = read_settings(with_text(tmp_path / "a.png", "ein Bär 熊\nSteps: 4"))
    assert found.settings == {"prompt": "ein Bär 熊", "num_inference_steps": 4}


def test_text_behind_the_pixels_is_found(tmp_path):
    path = with_text(tmp_path / "a.png", "words")
    content = path.read_bytes()
    end = content.index(b"IEND") - 4
    late = chunk(b"iTXt", b"isengard\0\1\0\0\0" + zlib.compress(b"{}"))
    path.write_bytes(content[:end] + late + content[end:])
    assert read_texts(path, WANTED) == {"parameters": "words", "isengard": "{}"}


def test_a_foreign_isengard_text_falls_back_to_the_parameters(tmp_path):
    path = png(tmp_path / "a.png", chunk(b"tEXt", b"isengard\0{}"), chunk(b"tEXt", b"parameters\0words"))
    assert read_settings(path).settings == {"prompt": "words"}


@pytest.mark.parametrize(
    "hostile",
    [
        chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * (MAX_TEXT + 1))),
        chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(200_000_000))),
        chunk(b"zTXt", b"parameters\0\0not zlib"),
        chunk(b"zTXt", b"parameters"),
        chunk(b"iTXt", b"parameters\0\1\0\0\0not zlib"),
        chunk(b"tEXt", b"parameters\0" + b"a" * (MAX_TEXT + 1)),
    ],
    ids=["long", "bomb", "broken", "empty", "broken international", "huge"],
)
def test_a_hostile_text_is_left_out(tmp_path, hostile):
    assert read_texts(png(tmp_path / "a.png", hostile, chunk(b"tEXt", b"other\0x")), WANTED) == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a PNG"),
        (b"GIF89a" + bytes(100), "is not a PNG"),
        (SIGNATURE, "cut-off PNG"),
        (SIGNATURE + chunk(b"tEXt", b"parameters\0x", length=2**31), "cut-off PNG"),
        (SIGNATURE + chunk(b"IDAT", b"") * 200_001, "cut-off PNG"),
    ],
    ids=["empty", "gif", "cut", "lying length", "endless"],
)
def test_a_file_that_is_no_whole_png_is_refused(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageRefused, match=reason):
        read_settings(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ImageRefused, match="cannot be read"):
        read_settings(tmp_path / "absent.png")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["A", " ", 'A:"', "A:,", "<lora:", "\nSteps: 1", "Negative prompt:"])
def test_a_long_hostile_text_takes_no_time(piece):
    text = "Steps: 1" + piece * (MAX_TEXT // len(piece))
    assert set(read_parameters(text).settings) <= {"prompt", "num_inference_steps"}


@settings(max_examples=30)
@given(st.text(max_size=300))
def test_any_text_gives_valid_settings(text):
    found = read_parameters(text + "\nSteps: 3, " + text)
    assert set(found.settings) <= {
        "prompt",
        "num_inference_steps",
        "guidance_scale",
        "seed",
        "width",
        "height",
    }
