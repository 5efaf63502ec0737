"""What is installed: the packages of the mapping in setup.cfg, and no others."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import fxprune

PACKAGES = {"fxprune": "fxprune", "fxprune.passes": "passes", "fxprune.models": "models"}


@pytest.mark.parametrize("package", [*PACKAGES, "fxprune.rules", "fxprune.lab", "fxprune.reports"])
def test_packages_import_from_any_folder(package: str, tmp_path: Path) -> None:
    code = f"import {package} as package; print(package.__file__)"
    environment = {**os.environ, "PYTHONPATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    found, expected = Path(run.stdout.strip()).resolve(), importlib.util.find_spec(package)
    assert expected is not None
    assert expected.origin is not None
    assert found == Path(expected.origin).resolve()


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(fxprune.__file__).parent / "py.typed").is_file()


def test_the_command_is_installed() -> None:
    commands = importlib.metadata.entry_points(group="console_scripts", name="fxprune")
    assert [command.value for command in commands] == ["fxprune.cli:main"]


def test_the_wheel_holds_the_mapped_packages_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(checkout / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("fxprune", "passes", "models", "tests", "benchmarks", "docs"):
        if (checkout / name).is_dir():
            shutil.copytree(checkout / name, source / name, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*command, "-w", str(tmp_path), str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr

    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fxprune"}
    expected = set()
    for package, folder in PACKAGES.items():
        for path in filter(Path.is_file, (source / folder).rglob("*")):
            expected.add(f"{package.replace('.', '/')}/{path.relative_to(source / folder).as_posix()}")
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_pyproject_holds_only_the_build_system(checkout: Path) -> None:
    lines = [line for line in (checkout / "pyproject.toml").read_text().splitlines() if line.strip()]
    assert lines[0] == "[build-system]"
    assert len(lines) == 3


def test_every_dependency_has_its_reason(checkout: Path) -> None:
    text = (checkout / "setup.cfg").read_text()
    config = ConfigParser()
    config.read_string(text)
    requirements = config["options"]["install_requires"].split()
    requirements += [name for extra in config["options.extras_require"].values() for name in extra.split()]
    reasons = [line[1:].replace(",", "") for line in text.splitlines() if line.startswith("#   ")]
    named = {word for reason in reasons for word in reason.split()}
    for requirement in requirements:
        assert requirement.split(">")[0].split("=")[0] in named, requirement


def test_nothing_imports_the_folders_by_their_bare_names(checkout: Path) -> None:
    folders = ("fxprune", "passes", "models", "tests", "benchmarks")
    files = [path for folder in folders for path in (checkout / folder).rglob("*.py")]
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            bare = [name for name in names if name.split(".")[0] in ("passes", "models", "tests")]
            assert not bare, f"{path}: {bare}"


def test_links_make_the_checkout_look_like_the_package(checkout: Path) -> None:
    for name in ("passes", "models"):
        assert (checkout / "fxprune" / name).resolve() == checkout / name
