"""Rules of this house that no linter knows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from isengard.settings import ROOT

SOURCES = sorted((ROOT / "isengard").rglob("*.py"))


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tracked():
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines()]


def test_the_command_line_and_every_service_start_without_torch():
    light = [module(path) for path in SOURCES if "engines" not in path.parts and path.stem != "__main__"]
    program = f"import sys, {', '.join(light)}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert not {"torch", "diffusers", "peft", "transformers"} & set(done.stdout.split())


def test_ci_runs_exactly_what_the_readme_says():
    command = "pip install -r requirements-dev.txt && bash scripts/check.sh"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_yaml_file_loads():
    found = [path for path in (ROOT / "configs").rglob("*") if path.is_file()]
    assert found
    for path in found:
        assert yaml.safe_load(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_a_file_stays_short_enough_to_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_nothing_names_the_place_it_was_written_in():
    places = re.compile(r"(?<![\w.])/(work|tmp)/[a-z]")
    texts = {".py", ".md", ".toml", ".yaml", ".txt", ".sh", ".json", ".cfg", ""}
    for path in tracked():
        if path.suffix in texts and path.is_file():
            assert not places.search(path.read_text(encoding="utf-8", errors="replace")), path


def test_every_test_file_has_a_name_of_its_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


def test_the_readme_names_files_and_folders_that_exist():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    folders: list[str] = []
    for line in tree.splitlines():
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [entry]
        assert Path(ROOT, *folders).exists(), line
