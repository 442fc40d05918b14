"""Who may import whom: no circles, nobody reaches upward, and only the command line joins the two packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRACT = ("protocol", "specs", "calvin", "system")
"""What `roboflamingo` may take from `calvin_eval` outside its command line."""
FLOORS = {
    "calvin_eval": [
        "system",
        "specs",
        "protocol",
        "calvin",
        "worlds",
        "benchmark",
        "demonstrations",
        "captions",
        "evaluation",
    ],
    "roboflamingo": ["heads", "backbone", "policy", "weights", "training", "cli"],
}
"""Each may import those before it."""


def modules() -> dict[str, Path]:
    found = {}
    for package in FLOORS:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """The project's modules that a file names in imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from [inner] if inner in MODULES else [node.module] if node.module in MODULES else []


GRAPH = {name: set(imported(path)) - {name} for name, path in MODULES.items()}


def test_there_is_no_circle():
    assert len(list(TopologicalSorter(GRAPH).static_order())) >= len(GRAPH)  # a circle raises CycleError


@pytest.mark.parametrize("package", FLOORS)
def test_nobody_reaches_upward(package):
    floors = FLOORS[package]
    for name, others in GRAPH.items():
        if name.split(".")[0] != package or name.split(".")[1:2] == []:
            continue
        floor = name.split(".")[1]
        above = floors[floors.index(floor) + 1 :] if floor in floors else []
        bad = (
            [other for other in others if other.startswith(tuple(f"{package}.{room}" for room in above))]
            if above
            else []
        )
        assert not bad, f"{name} reaches up to {bad}"


def test_the_benchmark_knows_neither_torch_nor_policies():
    for name, path in MODULES.items():
        if name.startswith("calvin_eval"):
            text = path.read_text(encoding="utf-8")
            assert "import torch" not in text and "import roboflamingo" not in text and "from roboflamingo" not in text


def test_only_the_command_line_joins_the_packages():
    for name, others in GRAPH.items():
        if name.startswith("roboflamingo") and not name.startswith("roboflamingo.cli"):
            foreign = [other for other in others if other.startswith("calvin_eval")]
            assert all(other.split(".")[1] in CONTRACT for other in foreign), f"{name} takes {foreign}"


def test_heads_know_no_backbone_and_data_knows_no_model():
    for name, others in GRAPH.items():
        if name.startswith("roboflamingo.heads"):
            assert not [o for o in others if o.startswith(("roboflamingo.backbone", "roboflamingo.policy"))], name
        if name.startswith("roboflamingo.data"):
            rooms = ("backbone", "heads", "policy", "weights", "training")
            assert not [o for o in others if o.startswith(tuple(f"roboflamingo.{room}" for room in rooms))], name
