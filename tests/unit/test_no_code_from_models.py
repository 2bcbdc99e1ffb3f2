"""Nothing that is loaded can be a program: no pickles, no code of a model's own, no text that is run."""

import ast
from functools import cache

import pytest

from isengard.settings import ROOT

SOURCES = [
    *(
        path
        for folder in ("isengard", "tabs", "benchmarks", "scripts")
        for path in (ROOT / folder).rglob("*.py")
    ),
    ROOT / "app.py",
]
PICKLING = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "jsonpickle",
}
RUNNING = {"eval", "exec", "compile", "__import__"}


@cache
def everything():
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Call, ast.Import, ast.ImportFrom))
    ]


def nodes(kind):
    return ((where, node) for where, node in everything() if isinstance(node, kind))


def options(call):
    return {each.arg: getattr(each.value, "value", None) for each in call.keywords}


def called(call):
    """``torch.load`` for ``torch.load(...)``."""
    return ast.unparse(call.func)


def test_no_library_that_unpickles_is_imported():
    found = [
        where
        for where, node in nodes((ast.Import, ast.ImportFrom))
        if {getattr(node, "module", None) or "", *(each.name for each in node.names)} & PICKLING
    ]
    assert found == []


def test_no_model_may_bring_its_own_code():
    asked = [where for where, call in nodes(ast.Call) if "trust_remote_code" in options(call)]
    assert asked == []
    for path in SOURCES:
        assert "trust_remote_code" not in path.read_text(encoding="utf-8"), path


def test_our_own_checkpoints_are_read_as_tensors_only():
    loads = [(where, options(call)) for where, call in nodes(ast.Call) if called(call) == "torch.load"]
    assert loads
    assert [where for where, given in loads if given.get("weights_only") is not True] == []


def test_no_arrays_are_unpickled():
    found = [where for where, call in nodes(ast.Call) if options(call).get("allow_pickle")]
    assert found == []


def test_models_are_loaded_from_safetensors_only():
    """A scheduler and an image processor have no weights; one call takes its options from a variable, and has a test of its own."""
    loads = [
        (where, options(call))
        for where, call in nodes(ast.Call)
        if where.startswith("isengard") and called(call).endswith(".from_pretrained")
        and not called(call).endswith(
            ("Scheduler.from_pretrained", "ImageProcessor.from_pretrained", "AutoTokenizer.from_pretrained")
        )
    ]  # fmt: skip
    assert loads
    lacking = [where for where, given in loads if not given.get("use_safetensors") and None not in given]
    assert lacking == []


def test_no_text_is_run():
    found = [
        where
        for where, call in nodes(ast.Call)
        if called(call) in RUNNING or options(call).get("shell") or called(call) == "os.system"
    ]
    assert found == []


@pytest.mark.parametrize("name", ["yaml.load", "yaml.unsafe_load", "yaml.full_load"])
def test_yaml_makes_plain_values_only(name):
    found = [(where, ast.unparse(call)) for where, call in nodes(ast.Call) if called(call) == name]
    assert all("_UniqueKeys" in text for _, text in found), found
