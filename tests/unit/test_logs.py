import contextvars
import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from PIL import Image

from isengard import logs
from isengard.settings import ROOT

log = logging.getLogger("isengard.test")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "test.jsonl"


@pytest.fixture
def lines(path):
    """The file's lines, read now."""
    logs.configure(level="DEBUG", path=path)
    return lambda: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def raised() -> None:
    raise RuntimeError("login with hf_abcdefghijkl failed")


def test_a_line_is_json_with_time_level_logger_message_and_fields(lines):
    log.info("job queued", extra={"rank": 8, "loss": 0.5, "kinds": ("a", "b"), "path": Path("x")})
    (line,) = lines()
    assert line["time"].endswith("+00:00")
    assert (line["level"], line["logger"], line["message"]) == ("INFO", "isengard.test", "job queued")
    assert (line["rank"], line["loss"], line["kinds"], line["path"]) == (8, 0.5, ["a", "b"], "x")


def test_a_loss_that_is_not_a_number_still_makes_valid_json(lines):
    log.info("step", extra={"loss": float("nan"), "best": float("inf"), "done": True, "eta": None})
    (line,) = lines()
    assert (line["loss"], line["best"], line["done"], line["eta"]) == ("nan", "inf", True, None)


def test_a_field_cannot_replace_the_message_or_level(lines):
    log.info("true", extra={"level": "false", "time": "false"})
    assert (lines()[0]["level"], lines()[0]["message"]) == ("INFO", "true")


def test_text_that_is_no_unicode_is_written_escaped(lines):
    """Given to our handler alone: the test runner's own cannot take it."""
    record = log.makeRecord(log.name, logging.INFO, "", 0, "file \udcff read", (), None)
    (file,) = [h for h in logging.getLogger().handlers if type(h).__name__ == "_SharedFile"]
    file.handle(record)
    assert lines()[0]["message"] == "file \udcff read"


def test_bound_fields_are_on_every_line_inside_the_block_only(lines):
    with logs.bound(correlation_id="c1"):
        with logs.bound(job_id="j1"):
            log.info("inside")
        log.info("between")
    log.info("outside")
    inside, between, outside = lines()
    assert (inside["correlation_id"], inside["job_id"]) == ("c1", "j1")
    assert between["correlation_id"] == "c1"
    assert "job_id" not in between
    assert "correlation_id" not in outside


def test_fields_bound_everywhere_reach_threads_and_go_after_the_block(lines):
    with logs.bound(everywhere=True, job_id="j1"):
        in_thread(lambda: log.info("inside"))
    in_thread(lambda: log.info("outside"))
    inside, outside = lines()
    assert inside["job_id"] == "j1"
    assert "job_id" not in outside


def test_other_bound_fields_cross_threads_with_a_copied_context(lines):
    with logs.bound(job_id="j1"):
        context = contextvars.copy_context()
        in_thread(lambda: context.run(log.info, "copied"))
        in_thread(lambda: log.info("bare"))
    copied, bare = lines()
    assert copied["job_id"] == "j1"
    assert "job_id" not in bare


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("using hf_AbCdEfGhIjKlMn now", "hf_AbCdEfGhIjKlMn"),
        ("key sk-proj-abc123456789 given", "sk-proj-abc123456789"),
        ("Authorization: Bearer abc.def-123456", "abc.def-123456"),
        ("sent 'Basic dXNlcjpwYXNz' along", "dXNlcjpwYXNz"),
        ("redis://user:p@ss:word@host:6379/0", "p@ss:word"),
        ("https://oauth2:topsecret1@github.com/a/b", "topsecret1"),
        ("ISENGARD_AUTH=anna:hunter22 is set", "hunter22"),
        ("login anna:hunter22@host failed", "hunter22"),
        ("password=hunter22, host=x", "hunter22"),
        ("{'api_key': 'hunter 22'}", "hunter 22"),
        ('{"token": "hunter22"}', "hunter22"),
        ("client-secret: hunter22", "hunter22"),
    ],
)
def test_a_secret_in_a_message_is_hidden(lines, text, hidden):
    log.info("said %s", text)
    log.info("field", extra={"text": text, "deep": {"list": [text]}})
    assert hidden not in json.dumps(lines())
    assert logs.HIDDEN in lines()[0]["message"]


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=48 tokenizer: t5 pad_token_id=0",
        "at 12:03:04 step 5/300 loss=0.12",
        "see https://huggingface.co/black-forest-labs/FLUX.1-dev",
        "prompt: a photo of ohwx woman",
        "author: anna",
        "skip 3 of 4",
    ],
)
def test_what_is_no_secret_stays_readable(text):
    assert logs.redact(text) == text


def test_a_secret_in_a_field_is_hidden_by_its_name(lines):
    log.info(
        "settings", extra={"hf_token": "short", "auth": ("a", "b"), "inner": {"password": 1234}, "tokens": 5}
    )
    (line,) = lines()
    assert (line["hf_token"], line["auth"], line["inner"]["password"]) == (logs.HIDDEN,) * 3
    assert line["tokens"] == 5


def test_a_secret_in_a_traceback_is_hidden(lines):
    try:
        raised()
    except RuntimeError:
        log.exception("failed")
    (line,) = lines()
    assert "RuntimeError: login with ***" in line["exception"]
    assert "hf_abc" not in json.dumps(line)


def test_a_persons_terminal_gets_short_lines_from_warning_on(lines, capsys):
    log.info("routine")
    with logs.bound(job_id="j1", correlation_id="c1"):
        log.warning("disk nearly full", extra={"free_gb": 1, "token": "x"})
    said = capsys.readouterr().err
    assert said.splitlines()[0].endswith("warning disk nearly full job_id=j1 free_gb=1 token=***")
    assert "routine" not in said
    assert len(lines()) == 2


def test_a_traceback_is_for_the_file_and_the_terminal_gets_its_last_line(lines, capsys):
    try:
        raised()
    except RuntimeError:
        log.exception("failed")
    said = capsys.readouterr().err
    assert said.strip().endswith("error failed (RuntimeError: login with *** failed)")
    assert "Traceback" in lines()[0]["exception"]


def test_the_terminal_can_have_json_at_any_level(path, capsys):
    logs.configure(level="INFO", path=path, terminal_level="INFO", terminal_json=True)
    log.info("routine", extra={"step": 1})
    log.debug("detail")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["step"] == 1


def test_a_line_goes_to_whatever_stderr_is_now(path, monkeypatch):
    """As rich puts itself in its place while a progress bar is on screen."""
    logs.configure(level="INFO", path=None)
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    log.warning("above the bar")
    assert "above the bar" in screen.getvalue()


def test_a_terminal_that_is_gone_does_not_stop_the_work(path, monkeypatch):
    logs.configure(level="INFO", path=None)
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stderr", gone)
    log.warning("into the void")


def test_configuring_again_leaves_no_line_twice(path, tmp_path):
    logs.configure(level="INFO", path=tmp_path / "old.jsonl")
    logs.configure(level="INFO", path=path)
    log.info("once")
    assert len(path.read_text().splitlines()) == 1
    assert not (tmp_path / "old.jsonl").exists()


def test_the_level_of_the_file_can_be_raised(path):
    logs.configure(level="WARNING", path=path)
    log.info("routine")
    assert not path.exists()


@pytest.mark.parametrize("name", logs.LIBRARIES)
@pytest.mark.parametrize("imported_first", [True, False])
def test_a_librarys_lines_are_ours_and_nobodys_else(path, capsys, name, imported_first):
    library = logging.getLogger(name)

    def imported() -> None:
        library.addHandler(logging.StreamHandler())
        library.propagate = False

    if imported_first:
        imported()
    logs.configure(level="INFO", path=path)
    imported()
    with logs.bound(job_id="j1"):
        logging.getLogger(f"{name}.models").warning("truncated prompt")
    (line,) = [json.loads(entry) for entry in path.read_text().splitlines()]
    assert (line["logger"], line["job_id"]) == (f"{name}.models", "j1")
    assert capsys.readouterr().err.count("truncated prompt") == 1


def test_python_warnings_are_in_the_file_and_not_on_the_terminal(lines, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure(level="INFO", path=None)
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("token=abc is old", FutureWarning, stacklevel=1)
    assert "FutureWarning" not in capsys.readouterr().err


def test_a_warning_becomes_a_line_with_the_jobs_id(lines):
    with warnings.catch_warnings(), logs.bound(job_id="j1"):
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("token=abc is old", FutureWarning, stacklevel=1)
    (line,) = lines()
    assert (line["logger"], line["job_id"]) == ("py.warnings", "j1")
    assert "FutureWarning: token=*** is old" in line["message"]


def test_lines_go_on_in_a_new_file_when_the_old_one_was_moved_or_removed(lines, path):
    log.info("first")
    path.rename(path.with_suffix(".old"))
    log.info("second")
    path.unlink()
    log.info("third")
    assert [line["message"] for line in lines()] == ["third"]


def test_a_full_file_is_set_aside_and_the_oldest_goes(path, monkeypatch):
    monkeypatch.setattr(logs, "MAX_BYTES", 300)
    monkeypatch.setattr(logs, "KEPT", 2)
    logs.configure(level="INFO", path=path)
    for number in range(20):
        log.info("a line", extra={"number": number, "filler": "x" * 100})
    full = logs.full_files(path)
    assert len(full) == 2
    kept = [json.loads(line) for file in full for line in file.read_text().splitlines()]
    assert [line["number"] for line in kept] == [16, 17, 18, 19]
    assert not path.exists()


def test_each_process_writes_on_in_the_file_that_another_has_begun(path, monkeypatch):
    monkeypatch.setattr(logs, "MAX_BYTES", 100_000)
    one, other = (logs._SharedFile(path) for _ in range(2))
    for handler in (one, other):
        handler.handle(log.makeRecord(log.name, logging.INFO, "", 0, "first", (), None))
    path.rename(path.with_name(f"{path.name}.20261123T120000.000000-1"))
    other.handle(log.makeRecord(log.name, logging.INFO, "", 0, "second", (), None))
    one.handle(log.makeRecord(log.name, logging.INFO, "", 0, "second", (), None))
    assert len(path.read_text().splitlines()) == 2
    one.close()
    other.close()


WRITER = """
import logging, sys
from pathlib import Path
from isengard import logs
logs.MAX_BYTES, logs.KEPT = 4000, 1000
logs.configure(level="INFO", path=Path(sys.argv[1]))
for number in range(400):
    logging.getLogger("writer").info("line", extra={"who": sys.argv[2], "number": number, "x": "y" * 20})
"""


def test_no_line_of_several_processes_is_lost_or_torn_while_files_are_set_aside(path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(who)], cwd=ROOT) for who in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    files = [*logs.full_files(path), *([path] if path.exists() else [])]
    written = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(files) > 10
    assert sorted((line["who"], line["number"]) for line in written) == [
        (str(who), number) for who in range(3) for number in range(400)
    ]


def test_a_log_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    logs.configure(level="INFO", path=tmp_path / "file" / "x.jsonl")
    log.info("one")
    log.info("two")
    assert capsys.readouterr().err.count("cannot write the log") == 1


def in_thread(work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


SECRET = 'tower of/gl"ass'  # noqa: S105  # made up


@pytest.mark.parametrize("written", [SECRET, "tower%20of%2Fgl%22ass", 'tower of/gl\\"ass'])
def test_a_secret_that_is_known_is_hidden_wherever_it_stands(path, written):
    logs.configure(level="INFO", path=path, hidden=[SECRET])
    log.info("asked", extra={"address": f"at {written}?", "deep": [{"said": written}]})
    log.error("failed", exc_info=(ValueError, ValueError(f"no {written} here"), None))
    assert written not in path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").count(logs.HIDDEN) == 3


def test_a_word_that_is_too_short_to_be_told_from_others_stays(path):
    logs.configure(level="INFO", path=path, hidden=["", "none"])
    assert logs.conceal("none of them") == "none of them"


def test_to_conceal_takes_away_what_is_known_and_nothing_that_only_looks_like_a_secret():
    logs.hide([SECRET])
    assert logs.conceal(f"this is no token: {SECRET}") == "this is no token: ***"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_library_prints_is_concealed_and_the_stream_stays_what_it_was(stream):
    program = (
        f"import sys; from isengard import logs; logs.hide([{SECRET!r}]); logs.conceal_output();"
        f"out = sys.{stream}; print('said', {SECRET!r}, file=out); out.writelines([{SECRET!r}, ' twice']);"
        "assert (out.isatty(), out.fileno() > 0) == (False, True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert getattr(done, stream) == "said ***\n*** twice"


def test_a_traceback_that_nobody_caught_shows_no_secret():
    program = (
        f"from isengard import logs; logs.hide([{SECRET!r}]); logs.conceal_output(); secret = {SECRET!r};"
        "raise ValueError(secret)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("ValueError: ***\n")


def test_what_a_photo_says_of_itself_is_not_logged(path):
    logs.configure(level="DEBUG", path=path)
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "TIFF", exif=exif)
    assert Image.open(content).getexif()[0x010E] == "taken at home"
    log.info("looked")
    assert "taken at home" not in path.read_text(encoding="utf-8")
