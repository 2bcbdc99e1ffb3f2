"""Files of AI-Toolkit on the training tab, without a browser."""

import gradio as gr
import pytest
import yaml

from isengard.errors import InvalidSpec, NotFound
from isengard.services.machine import Machine
from tabs import training, training_exchange
from tabs.common import Page
from tabs.pictures import Pictures
from tabs.training_setup import Choice
from tests.tiny_app import tiny_app

CHOICE = Choice("mira", "tiny", "quick")
FILE = """
job: extension
config:
  name: ada
  process:
    - type: sd_trainer
      network: {type: lora, linear: 8}
      datasets: [{folder_path: /data, resolution: [64, 128]}]
      train: {lr: 2e-4, gradient_checkpointing: true, do_cfg: true}
"""


@pytest.fixture
def page(tmp_path, tiny_flux):
    app = tiny_app(tmp_path, tiny_flux)
    settings = app.settings
    pictures = Pictures(folder=settings.cache_dir / "pictures", gallery=settings.images_dir)
    return Page(app=app, machine=Machine(device="cpu"), pictures=pictures)


@pytest.fixture
def upload(tmp_path, monkeypatch):
    """Put a text where Gradio puts uploads; its path."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))

    def put(content):
        path = tmp_path / "uploads" / "config.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return put


def test_an_export_has_what_was_changed_in_the_form_and_no_path_of_this_machine(page, tmp_path):
    text = training_exchange.exported(page, CHOICE, {"overrides": {"rank": "8", "resolutions": "64, 80"}})
    process = yaml.safe_load(text)["config"]["process"][0]
    assert process["network"]["linear"] == 8
    assert process["datasets"][0]["resolution"] == [64, 80]
    assert str(tmp_path) not in text


def test_an_export_without_a_character_says_where_to_make_one(page):
    with pytest.raises(InvalidSpec, match="Characters tab"):
        training_exchange.exported(page, Choice("", "tiny", "quick"), {})
    with pytest.raises(NotFound):
        training_exchange.exported(page, Choice("../etc", "tiny", "quick"), {})


def test_a_setting_that_ai_toolkit_lacks_is_refused_at_the_export(page):
    with pytest.raises(InvalidSpec, match="loss_weighting"):
        training_exchange.exported(page, CHOICE, {"overrides": {"loss_weighting": "cosmap"}})


def test_an_import_fills_the_form_and_lists_the_rest(page, upload):
    form, left_out = training_exchange.imported(
        page, upload(FILE), {"base": {"rank": "4"}, "overrides": {"seed": "3", "rank": "2"}}
    )
    assert form == {
        "base": {"rank": "4"},
        "overrides": {
            "seed": "3",
            "rank": "8",
            "targets": "all_linear",
            "learning_rate": "0.0002",
            "gradient_checkpointing": True,
            "resolutions": "64, 128",
        },
    }
    assert "train.do_cfg: true" in left_out


def test_what_was_imported_can_be_started(page, upload):
    form, _ = training_exchange.imported(page, upload(FILE), None)
    text = training_exchange.exported(page, CHOICE, form)
    again, _ = training_exchange.imported(page, upload(text), {})
    assert form["overrides"].items() <= again["overrides"].items()


def test_a_long_list_is_cut(page, upload):
    many = "\n".join(f"x{number}: 1" for number in range(300))
    _, left_out = training_exchange.imported(page, upload(FILE + many), {})
    assert len(left_out) == training_exchange.LISTED + 1
    assert left_out[-1].endswith("more)")


def test_a_path_that_was_not_uploaded_is_refused(page, upload, tmp_path):
    upload(FILE)
    outside = tmp_path / "elsewhere.yaml"
    outside.write_text(FILE)
    for path in (str(outside), "", None):
        with pytest.raises(gr.Error, match="not uploaded here"):
            training_exchange.imported(page, path, {})


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff\xfe", "is no text"), (b"x" * 500_000, "too long"), ("a: [", "YAML")]
)
def test_a_file_that_cannot_be_read_is_refused(page, upload, content, words):
    with pytest.raises(InvalidSpec, match=words):
        training_exchange.imported(page, upload(content), {})


def test_the_tab_binds_both_buttons(page, upload):
    with gr.Blocks() as blocks:
        training.build(page)
    functions = {function.name: function.fn for function in blocks.fns.values() if function.fn}
    text = functions["export_settings"]("mira", "tiny", "quick", {})
    form, left_out = functions["import_settings"](upload(text), {})
    assert form["overrides"]["rank"] == "4"
    assert left_out.visible
    with pytest.raises(gr.Error, match="choose a character"):
        functions["export_settings"]("", "tiny", "quick", {})
