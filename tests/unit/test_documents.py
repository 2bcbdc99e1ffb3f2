"""What the documents say of this folder is so."""

import ast
import re

import pytest

from isengard.settings import ROOT

DOCUMENTS = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
TEST = re.compile(r"\b(test_\w+\.py)::(\w+)")
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def named(pattern):
    return sorted(
        {(path, found) for path in DOCUMENTS for found in pattern.findall(path.read_text(encoding="utf-8"))}
    )


@pytest.mark.parametrize("file", sorted({file for _, (file, _) in named(TEST)}))
def test_each_test_that_is_named_exists(file):
    (path,) = (ROOT / "tests").rglob(file)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert {name for _, (found, name) in named(TEST) if found == file} <= tests


@pytest.mark.parametrize(
    ("path", "target"), named(LINK), ids=lambda value: value.name if hasattr(value, "name") else value
)
def test_each_file_that_is_linked_exists(path, target):
    assert (path.parent / target).exists()


def test_each_promise_has_a_test():
    rows = [
        line.split("|")
        for line in (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ][1:]
    for _, promise, tests, _ in rows:
        assert promise.strip().startswith("**") or TEST.search(tests), promise
