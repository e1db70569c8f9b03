"""The three folders beside mmrl/ are part of it, and only of it."""

import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("processors", "rewards", "tools")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_a_relative_link_in_the_package(folder):
    link = ROOT / "mmrl" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder
    assert importlib.import_module(f"mmrl.{folder}").__name__ == f"mmrl.{folder}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_importing_a_folder_by_its_bare_name_says_what_to_write(folder):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {folder}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"import mmrl.{folder}" in result.stderr


def test_the_core_imports_no_implementation():
    """Only the demo, which is a user of the framework, and doctor name one."""
    for file in (ROOT / "mmrl").glob("**/*.py"):
        place = file.relative_to(ROOT / "mmrl")
        if place.parts[0] in (*FOLDERS, "demo") or place.name == "doctor.py":
            continue
        for folder in FOLDERS:
            named = re.sub(rf'"mmrl\.{folder}\.\w+:\w+"', "", file.read_text())  # an import path, as a configuration's
            assert f"mmrl.{folder}" not in named, place


def test_the_wheel_holds_only_the_package(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"mmrl"}
    for needed in ("rewards/answer.py", "tools/zoom.py", "processors/image.py", "report/template.html", "cli.py"):
        assert f"mmrl/{needed}" in names


def listed_in_the_readme():
    """Paths that the README's tree names, e.g. mmrl/data/rows.py."""
    tree = (ROOT / "README.md").read_text().partition("```\nconfigs/\n")[2].partition("```")[0]
    top, paths = "configs", set()
    for line in tree.splitlines():
        if not line.startswith(" "):
            top = line.split("/")[0]
            continue
        entry = re.split(r"  +", line.strip())[0]
        folder = f"{top}/{entry}".rpartition("/")[0]
        names = re.findall(r"\w+\.(?:py|yaml|html)", line if entry.endswith("/") else entry)
        paths |= {f"{folder}/{name}" for name in names}
    return paths


def test_the_readme_has_a_line_for_every_file_and_for_no_other():
    folders = ("mmrl", *FOLDERS, "configs")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.*") if file.name != "__init__.py"]
    there = {str(file.relative_to(ROOT)) for file in files if file.suffix in (".py", ".yaml", ".html")}
    there = {path for path in there if not any(path.startswith(f"mmrl/{folder}/") for folder in FOLDERS)}
    assert listed_in_the_readme() == there
