"""Makes the virtual environment of `make demo` and `make test`, with a Python that every dependency runs on.

    python3 bootstrap.py .venv [--chosen]

All dependencies but pybullet have wheels for Python 3.10 to 3.13. pybullet's are for 3.10 and 3.11 on Linux (x86-64);
elsewhere it is compiled, which takes a C++ compiler and some minutes. So such a Python is looked for, or brought by uv,
before anything is compiled. This file runs on any python3 from 3.7 on and needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator, NamedTuple  # noqa: UP035 (typing's is there on any python3)

WITH_WHEELS = ((3, 11), (3, 10))
SUPPORTED = ((3, 11), (3, 10), (3, 12), (3, 13))
PYBULLET = "pybullet>=3.2.5"
OPEN_FLAMINGO = "open_flamingo==2.0.1"
QUESTION = """
import importlib.util, json, os, sys, sysconfig
print(json.dumps({
    "version": sys.version_info[:2],
    "venv": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
    "headers": os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h")),
}))
"""
ADVICE = """
Install one of these, then run the same command again:
  Debian, Ubuntu    sudo apt install python3.11 python3.11-venv        (where apt has it)
                    sudo apt install g++ python3-dev python3-venv      (compiles pybullet for the python3 of the system)
  Fedora, RHEL      sudo dnf install python3.11
  macOS             brew install python@3.11 && xcode-select --install (no pybullet for Macs: it is compiled)
  anywhere          uv, from https://docs.astral.sh/uv, which brings a Python 3.11 of its own
or name a Python that is not on the PATH: make PYTHON=/path/to/python3.11 ..."""


class Python(NamedTuple):
    """An interpreter.

    Attributes:
        command: what runs it.
        version: as (3, 11).
        venv: whether it can make virtual environments with pip.
        headers: whether extensions can be compiled for it.
    """

    command: str
    version: tuple[int, int]
    venv: bool
    headers: bool

    @property
    def name(self) -> str:
        """Command and version."""
        return "{} ({}.{})".format(self.command, *self.version)


class Uv(NamedTuple):
    """A Python 3.11 that uv finds or brings; uv itself is brought by pip where it is not on the PATH."""

    command: str | None


def main() -> None:
    """Makes the environment, or says what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chosen", action="store_true", help="this Python was asked for: compile rather than search")
    given = parser.parse_args()
    python = existing(given.folder)
    if python is None:
        make(given.folder, sys.executable, given.chosen)
        python = existing(given.folder)
    if python is None:
        raise SystemExit(f"{given.folder} was made, but its Python does not run; remove it and try again")
    install(python)


def has_wheel(version: tuple[int, int]) -> bool:
    """Whether pybullet need not be compiled."""
    return version in WITH_WHEELS and sys.platform == "linux" and platform.machine() == "x86_64"


def compiler() -> str | None:
    """The C++ compiler, None where there is none."""
    return next((found for found in map(shutil.which, ("c++", "g++", "clang++")) if found), None)


def inspect(command: str) -> Python | None:
    """What an interpreter is; None where there is none, or none that runs."""
    path = shutil.which(command)
    if path is None:
        return None
    try:
        said = subprocess.run([path, "-c", QUESTION], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        facts = json.loads(said.stdout.decode())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None  # a stand-in such as pyenv's, for a version that is not chosen
    return Python(path, tuple(facts["version"]), facts["venv"], facts["headers"])


def ways(given: str, chosen: bool) -> Iterator[object]:
    """Every way to an environment that works here, best first: a `Python` or a `Uv`.

    Args:
        given: the interpreter that make was told, or python3.
        chosen: somebody told make.
    """
    here = inspect(given)
    others = [inspect("python{}.{}".format(*version)) for version in SUPPORTED]
    able = [p for p in [here, *others] if p is not None and p.venv and p.version in SUPPORTED]
    ready = [p for p in able if has_wheel(p.version)]
    to_compile = [p for p in able if p not in ready and p.headers and compiler() is not None]
    first = [p for p in ready + to_compile if chosen and p == here]
    uv = [Uv(shutil.which("uv"))] if has_wheel((3, 11)) or compiler() is not None else []
    seen: list[object] = []
    for way in first + ready + ([] if has_wheel((3, 11)) else to_compile) + uv + to_compile:
        if way not in seen:
            seen.append(way)
            yield way


def make(folder: Path, given: str, chosen: bool) -> None:
    """Makes the environment in the first way that works.

    Raises:
        SystemExit: none does. Says what to install.
    """
    for way in ways(given, chosen):
        try:
            if isinstance(way, Python):
                print(f"{folder}: made with {way.name}", flush=True)
                subprocess.run([way.command, "-m", "venv", "--clear", str(folder)], check=True)
            else:
                _make_with_uv(folder, way.command, given)  # type: ignore[attr-defined]
            return
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"that did not work ({error}); trying the next way", flush=True)
    raise SystemExit(_reason(inspect(given), given) + ADVICE)


def _reason(here: Python | None, given: str) -> str:
    """Why there is no way."""
    if here is None:
        return f"{given} does not run."
    reason = "{} is Python {}.{}".format(here.command, *here.version)
    if here.version not in SUPPORTED:
        return reason + ", and Python 3.10 to 3.13 is needed."
    if not here.venv:
        return reason + ", but lacks the venv module."
    lacking = " and ".join(
        (["a C++ compiler"] if compiler() is None else []) + ([] if here.headers else ["Python's headers (Python.h)"])
    )
    return f"{reason}, for which pybullet has no wheel; to compile it, {lacking or 'another Python'} is needed."


def _make_with_uv(folder: Path, uv: str | None, given: str) -> None:
    """An environment with uv's Python 3.11, which it finds or downloads."""
    print(f"{folder}: looking for a Python 3.11 with uv", flush=True)
    with tempfile.TemporaryDirectory() as private:
        if uv is None:
            subprocess.run([given, "-m", "venv", private], check=True, stdout=subprocess.DEVNULL)
            pip = [str(Path(private) / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, "--disable-pip-version-check", "uv"], check=True)
            uv = str(Path(private) / "bin" / "uv")
        environment = {**os.environ, "UV_VENV_CLEAR": "1"}
        subprocess.run([uv, "venv", "--quiet", "--seed", "--python", "3.11", str(folder)], check=True, env=environment)


def existing(folder: Path) -> Python | None:
    """The Python of an environment that was made before; None where none runs that pybullet can come into."""
    python = inspect(str((folder / "bin" / "python").absolute()))
    if python is None or python.version not in SUPPORTED:
        return None
    has = has_wheel(python.version) or _imports(python, "pybullet") or (python.headers and compiler() is not None)
    return python if has else None


def install(python: Python) -> None:
    """Installs the project and all that it needs into an environment.

    Raises:
        SystemExit: pip failed.
    """
    pip = [python.command, "-m", "pip", "--disable-pip-version-check", "install"]
    print("Installing PyTorch, OpenFlamingo, Lightning, pybullet, Panda3D (about 6 GB with PyTorch's GPU libraries,")
    print("3 minutes)", flush=True)
    try:
        subprocess.run([*pip, "--quiet", "--upgrade", "pip"], check=True)
        if not has_wheel(python.version) and not _imports(python, "pybullet"):
            print("pybullet has no wheel here: compiling it, which takes 3 to 10 minutes", flush=True)
            subprocess.run([*pip, "--quiet", "numpy>=1.26", "setuptools>=68", "wheel"], check=True)  # it uses NumPy
            environment = dict(os.environ)
            if sys.platform == "darwin":  # Bullet's old zlib defines fdopen away, over which new SDKs stumble
                environment["CFLAGS"] = "-Dfdopen=fdopen " + environment.get("CFLAGS", "")
            subprocess.run([*pip, "--no-build-isolation", PYBULLET], check=True, env=environment)
        subprocess.run([*pip, "--progress-bar", "on", "-e", ".[dev]"], check=True)
        # OpenFlamingo pins an old PyTorch that it does not need.
        subprocess.run([*pip, "--quiet", "--no-deps", OPEN_FLAMINGO], check=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(error.cmd)} failed; its own words are above") from None


def _imports(python: Python, module: str) -> bool:
    """Whether an interpreter has a module."""
    script = [python.command, "-c", f"import {module}"]
    return subprocess.run(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


if __name__ == "__main__":
    main()
