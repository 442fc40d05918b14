"""Which Python the two commands run on: stand-ins for interpreters on a PATH of their own."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # bootstrap.py is beside setup.py and installed nowhere

import bootstrap
from bootstrap import Python, Uv

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="pybullet's wheels are for Linux on x86-64"
)


class Machine:
    """A PATH with nothing on it but what a test puts there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setenv("PATH", str(folder))

    def has(self, name: str, script: str = "exit 0") -> str:
        """Puts a program there."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    def python(self, name: str, minor: int, venv: bool = True, headers: bool = True) -> Python:
        """Puts an interpreter there, which says what it is and makes environments that are empty folders."""
        answer = f'{{"version": [3, {minor}], "venv": {str(venv).lower()}, "headers": {str(headers).lower()}}}'
        script = f"case $1 in -c) echo '{answer}';; *) echo $0 $@ >> {self.folder}/log;; esac"
        return Python(self.has(name, script), (3, minor), venv, headers)

    @property
    def log(self) -> list[str]:
        """What was run."""
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize("minor", [10, 11])
def test_a_python_with_a_wheel_is_taken_as_it_is(machine: Machine, minor: int) -> None:
    python = machine.python("python3", minor)
    assert next(bootstrap.ways("python3", chosen=False)) == python


@pytest.mark.parametrize("minor", [8, 12, 13, 14])
def test_another_python_is_found_before_anything_is_compiled(machine: Machine, minor: int) -> None:
    here, ten = machine.python("python3", minor), machine.python("python3.10", 10)
    machine.has("c++")
    assert next(bootstrap.ways("python3", chosen=False)) == ten
    eleven = machine.python("python3.11", 11)
    expected = [eleven, ten, Uv(None)] + ([here] if minor in (12, 13) else [])
    assert list(bootstrap.ways("python3", chosen=False)) == expected


def test_a_python_that_was_asked_for_is_compiled_for(machine: Machine) -> None:
    machine.python("python3.11", 11)
    asked = machine.python("mine", 13)
    assert next(bootstrap.ways("mine", chosen=True)) != asked  # there is no compiler
    machine.has("g++")
    assert next(bootstrap.ways("mine", chosen=True)) == asked


def test_stand_ins_that_do_not_run_and_pythons_without_venv_are_passed_over(machine: Machine) -> None:
    machine.has("python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    machine.python("python3", 10, venv=False)
    uv = machine.has("uv")
    assert list(bootstrap.ways("python3", chosen=False)) == [Uv(uv)]


def test_without_headers_nothing_is_compiled(machine: Machine) -> None:
    machine.python("python3", 12, headers=False)
    machine.has("c++")
    assert list(bootstrap.ways("python3", chosen=False)) == [Uv(None)]


def test_where_uv_fails_pybullet_is_compiled(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    here = machine.python("python3", 12)
    machine.has("c++")
    machine.has("uv", "echo 'no connection' >&2; exit 2")
    bootstrap.make(machine.folder / "env", "python3", chosen=False)
    assert machine.log == [f"{here.command} -m venv --clear {machine.folder / 'env'}"]
    assert "trying the next way" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("minor", "settings", "reason"),
    [
        (9, {}, "is Python 3.9, and Python 3.10 to 3.13 is needed"),
        (11, {"venv": False}, "is Python 3.11, but lacks the venv module"),
        (12, {}, r"is Python 3.12, for which pybullet has no wheel; to compile it, a C\+\+ compiler is needed"),
        (13, {"headers": False}, r"a C\+\+ compiler and Python's headers \(Python.h\) is needed"),
    ],
)
def test_where_there_is_no_way_it_says_what_to_install(
    machine: Machine, minor: int, settings: dict[str, bool], reason: str
) -> None:
    machine.python("python3", minor, **settings)
    machine.has("uv", "exit 2")
    with pytest.raises(SystemExit, match=reason) as error:
        bootstrap.make(machine.folder / "env", "python3", chosen=False)
    for line in (
        "sudo apt install g++ python3-dev python3-venv",
        "sudo dnf install python3.11",
        "brew install python@",
    ):
        assert line in str(error.value)


def test_an_environment_that_was_made_is_kept(tmp_path: Path) -> None:
    assert bootstrap.existing(tmp_path / "env") is None
    bootstrap.make(tmp_path / "env", sys.executable, chosen=True)
    made = bootstrap.existing(tmp_path / "env")
    assert made is not None and made.version == sys.version_info[:2]
