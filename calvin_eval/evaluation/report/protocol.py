"""Under which rules an evaluation was made, where evaluations differ, and where they are not the benchmark's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from calvin_eval.benchmark.chains import CHAINS

Results = Mapping[str, Any]

PLAY_TABLE = "play table (this project's)"
OWN_RENDERERS = ("panda3d", "none")
"""How renderers begin that only this project's play table has. CALVIN's simulator draws with TinyRenderer too."""
UNKNOWN = "not recorded"
SESSIONS = "sessions (versions and machines that ran chains)"
SPEED = "matrix products, fp32, all cores"
INSTRUCTIONS = "instruction set"
ACTING_FROM = "who chose E and leash"
HIDDEN = ("git", "processor", "machine")
"""Facts of `made_with` that the first table shows, or that say nothing more."""


@dataclass(frozen=True)
class Item:
    """One line of the protocol.

    Attributes:
        name: what it is.
        read: its value, from results.
        official: the benchmark's own value; None where the benchmark leaves it open.
    """

    name: str
    read: Callable[[Results], str]
    official: str | None = None


def _setting(key: str) -> Callable[[Results], str]:
    return lambda results: str(results["settings"].get(key, UNKNOWN))


def _fact(*keys: str) -> Callable[[Results], str]:
    """The first of these keys that results have."""
    return lambda results: next((_short(results[key]) for key in keys if results.get(key) is not None), UNKNOWN)


def _made_with(*keys: str) -> Callable[[Results], str]:
    return lambda results: next(
        (str(results["made_with"][key]) for key in keys if key in results["made_with"]), UNKNOWN
    )


def _world(results: Results) -> str:
    if results.get("world") is not None:
        return str(results["world"])
    return PLAY_TABLE if str(results.get("renderer", "")).startswith(OWN_RENDERERS) else UNKNOWN


def _policy(results: Results) -> str:
    fingerprint = results.get("policy_fingerprint") or results.get("fingerprint")
    name = str(results.get("policy", UNKNOWN))
    return f"{name} ({_short(fingerprint)})" if fingerprint and fingerprint != name else name


def _history(results: Results) -> str:
    window, stride = results.get("window"), results.get("stride")
    if window is None:
        return UNKNOWN
    return f"{window} frame{'s' if window != 1 else ''}" + (
        f", {stride} steps apart" if stride not in (None, 1) else ""
    )


def _sessions(results: Results) -> str:
    return str(1 + len(results.get("earlier_sessions", [])))


def _leash(results: Results) -> str:
    leash = results["settings"].get("leash")
    return "none" if leash is None else f"{leash} m"


def _chain_set(results: Results) -> str:
    return str(results["settings"].get("set", "reporting"))  # earlier versions knew no other


def _acting_from(results: Results) -> str:
    origins = results.get("acting_from")
    return UNKNOWN if not isinstance(origins, Mapping) else ", ".join(f"{key} {who}" for key, who in origins.items())


def _speed(results: Results) -> str:
    speed = _of_hardware(results, "matmul_gflops")
    return UNKNOWN if speed is None else f"{speed:g} GFLOP/s"


def _instructions(results: Results) -> str:
    """What torch used, where it was asked, else what the processor has; and what keeps them down."""
    words = [_of_hardware(results, "torch_instructions") or " ".join(_of_hardware(results, "instructions") or ())]
    words += _of_hardware(results, "limits") or ()
    return ", ".join(word for word in words if word) or UNKNOWN


def _of_hardware(results: Results, key: str) -> Any:
    facts = results.get("hardware")
    return facts.get(key) if isinstance(facts, Mapping) else None


def _ensemble(results: Results) -> str:
    ensemble = results.get("ensemble")
    return "none" if ensemble is None else f"decay {ensemble}"


def _short(value: Any) -> str:
    """A fact as a table shows it; of a fingerprint the beginning is enough."""
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 and " " not in text and "/" not in text else text


ITEMS = (
    Item("world", _world, "CALVIN"),
    Item("scene", _fact("scene"), "D"),
    Item("set of chains", _chain_set, "reporting"),
    Item("chains", lambda results: str(results["chains"]), str(CHAINS)),
    Item("steps a task", _setting("max_steps"), "360"),
    Item("instructions", _setting("sentences"), "validation"),
    Item("leash (clamp on target minus measured pose)", _leash, "none"),
    Item("policy", _policy),
    Item("history", _history),
    Item("E (actions executed per prediction)", _fact("execute")),
    Item("temporal ensemble", _ensemble),
    Item(ACTING_FROM, _acting_from),
    Item("seed", _setting("seed")),
    Item("renderer", _fact("renderer")),
    Item("device", _fact("device")),
    Item("batch", _fact("batch")),
    Item("processor", _made_with("processor", "machine")),
    Item(SPEED, _speed),
    Item(INSTRUCTIONS, _instructions),
    Item("commit", _made_with("git")),
    Item("code of benchmark", _fact("code")),
    Item("code of policy", _fact("policy_code")),
    Item(SESSIONS, _sessions),
)
SAME_FOR_PAIRS = ("world", "scene", "set of chains")
"""What makes a chain of a number the one that it is."""
OFFICIAL = (
    f"the benchmark's own protocol: CALVIN's world, scene D, its own {CHAINS} chains (reporting), 360 steps a task, "
    "validation instructions, no leash"
)


@dataclass(frozen=True)
class Cell:
    """A value in the table: whether it is what the benchmark asks, and None where it asks nothing."""

    value: str
    official: bool | None


@dataclass(frozen=True)
class Line:
    """A line of the table: one item, a cell for each evaluation, and whether they differ."""

    name: str
    cells: list[Cell]
    differs: bool


def protocol_table(evaluations: Mapping[str, Results]) -> list[Line]:
    """Rules and circumstances, a line for each, in the evaluations' order."""
    lines = []
    for item in ITEMS:
        values = [item.read(results) for results in evaluations.values()]
        cells = [Cell(value, None if item.official is None else value == item.official) for value in values]
        lines.append(Line(item.name, cells, len(set(values)) > 1))
    return lines


def versions_table(evaluations: Mapping[str, Results]) -> list[Line]:
    """Versions of what computed the results."""
    names = dict.fromkeys(
        name for results in evaluations.values() for name in results["made_with"] if name not in HIDDEN
    )
    lines = []
    for name in names:
        values = [str(results["made_with"].get(name, UNKNOWN)) for results in evaluations.values()]
        lines.append(Line(name, [Cell(value, None) for value in values], len(set(values)) > 1))
    return lines


def departures(results: Results) -> list[str]:
    """Where an evaluation is not the benchmark's own, as "chains 100 (not 1000)"; [] where it is."""
    values = [(item, item.read(results)) for item in ITEMS if item.official is not None]
    return [
        f"{item.name.split(' (')[0]} {value} (not {item.official})" for item, value in values if value != item.official
    ]


def by_horizon(evaluations: Mapping[str, Results]) -> dict[str, Results]:
    """The evaluations in the order given, but those of one policy side by side and by E."""
    first: dict[str, int] = {}
    for position, results in enumerate(evaluations.values()):
        first.setdefault(_policy(results), position)
    order = sorted(evaluations.items(), key=lambda entry: (first[_policy(entry[1])], entry[1].get("execute") or 0))
    return dict(order)


def same_but_for_horizon(results: Results) -> tuple[str, ...]:
    """What two evaluations must share so that their lengths show the effect of E."""
    free = ("E (actions executed per prediction)", "seed", "processor", "commit", "batch", "device", SESSIONS)
    free_too = (ACTING_FROM, SPEED, INSTRUCTIONS)
    return tuple(item.read(results) for item in ITEMS if item.name not in (*free, *free_too))


def other_chains(first: Results, second: Results) -> list[str]:
    """Why equal numbers mean other chains, as "set of chains reporting and choosing"; [] where they mean the same."""
    values = [(item.name, item.read(first), item.read(second)) for item in ITEMS if item.name in SAME_FOR_PAIRS]
    return [f"{name} {one} and {other}" for name, one, other in values if one != other]
