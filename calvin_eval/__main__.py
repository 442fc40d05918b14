"""Checks of the play table.

`python -m calvin_eval check ROLLOUTS.npz`: how far our physics is from recorded rollouts of the original.
`python -m calvin_eval silhouettes`: how far the fast renderer's pictures are from its judge's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calvin_eval.calvin import SCENES
from calvin_eval.demonstrations.silhouettes import silhouette_overlap
from calvin_eval.worlds.playtable.rollouts import LIMIT_MM, tcp_errors

LEAST_OVERLAP = 0.95


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 if what it checks is not good enough."""
    parser = argparse.ArgumentParser(prog="python -m calvin_eval", description="The embedded play table.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("check", help="replay recorded rollouts of the original and print the tool's error")
    verb.add_argument("rollouts", type=Path, help="npz file of rollouts")
    verb.add_argument("--scene", default="D", help="scene they were recorded in (default: D)")
    verb = verbs.add_parser("silhouettes", help="compare what the fast renderer and TinyRenderer see of each body")
    verb.add_argument("--states", type=int, default=50, help="random states (default: 50)")
    verb.add_argument("--scene", default="D", choices=SCENES, help="default: D")
    options = parser.parse_args(arguments)
    if options.verb == "silhouettes":
        return _compare_silhouettes(options.scene, options.states)
    if not options.rollouts.is_file():
        parser.error(f"{options.rollouts} does not exist")
    try:
        return _check(options.rollouts, options.scene)
    except ValueError as error:
        parser.error(str(error))


def _check(rollouts: Path, scene: str) -> int:
    """Prints a line a rollout; 1 if fewer than eleven in twelve stay within a tenth of a millimetre."""
    results = tcp_errors(rollouts, scene)
    for index, (steps, error_mm) in enumerate(results):
        print(f"rollout {index:3d}: {steps:3d} steps before contact, tool error at most {error_mm:.4f} mm")
    within = sum(error_mm <= LIMIT_MM for _, error_mm in results)
    print(f"max_tcp_error_mm={max(e for _, e in results):.4f} within_0.1mm={within}/{len(results)}")
    return int(within < len(results) * 11 / 12)


def _compare_silhouettes(scene: str, states: int) -> int:
    """Prints intersection over union by camera and body; 1 if any is below 0.95."""
    overlap = silhouette_overlap(scene, states)
    for (camera, body), value in overlap.items():
        print(f"{camera:8s} {body:6s} {value:.3f}")
    print(f"least_overlap={min(overlap.values()):.3f} states={states} scene={scene}")
    return int(min(overlap.values()) < LEAST_OVERLAP)


if __name__ == "__main__":
    sys.exit(main())
