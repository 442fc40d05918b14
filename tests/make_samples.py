"""Makes the samples in tests/data: rollouts of this project's own world, its oracle's answers about them, and more.

`python tests/make_samples.py` proves first that world, oracle, initial states and configuration equal the original's
recorded ones (reference data, which lies beside the project and not in it), and only then writes. It takes half a
minute. tests/data/README.md says what each file holds.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from calvin_eval.benchmark.chains import CHAINS, InitialCondition, chains, initial_state
from calvin_eval.benchmark.tasks import TASKS, check, read_snapshot, solved
from calvin_eval.calvin import BLOCKS, SCENES, Contact, Info
from calvin_eval.demonstrations.experts import demonstrate
from calvin_eval.demonstrations.scene_config import merged_config
from calvin_eval.demonstrations.starts import random_scene_obs, start_for
from calvin_eval.system.files import write_atomic, write_json, write_text
from calvin_eval.system.provenance import code_version, provenance
from calvin_eval.worlds.leash import TargetLeash
from calvin_eval.worlds.playtable.rollouts import LIMIT_MM, tcp_errors
from calvin_eval.worlds.playtable.scenes import RESTING_ROBOT_OBS, scene_geometry
from calvin_eval.worlds.playtable.world import PlayTable

DATA = Path(__file__).parent / "data"
REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "calvin"
STEPS = 50
SHOWN_CHAINS = 3
CONFIGURED = ("cameras", "env", "scene", "robot", "seed", "use_vr", "data_path")
"""Sections of a data set's configuration that CALVIN's own tools read."""
MAX_STEPS = 150
"""Of a demonstration."""


def prove() -> dict[str, str]:
    """What was compared with the original, and what came of it.

    Raises:
        SystemExit: the reference data is not there, or something differs.
    """
    if not REFERENCE.is_dir():
        raise SystemExit(f"samples are only made where they can be proven; there is no reference data at {REFERENCE}")
    agree, total, wrong = check(REFERENCE / "oracle_cases.json.gz")
    errors = [error for _, error in tcp_errors(REFERENCE / "reference_rollouts_D.npz", "D")]
    states = json.loads((REFERENCE / "initial_states.json").read_text())
    equal = 0
    for state in states:
        robot_obs, scene_obs = initial_state(InitialCondition(**state["initial_condition"]))
        equal += robot_obs.tolist() == state["robot_obs"] and scene_obs.tolist() == state["scene_obs"]
    theirs = yaml.safe_load((REFERENCE / "merged_config_like_D.yaml").read_text())
    other = [key for key in CONFIGURED if digest(theirs[key]) != digest(merged_config("D")[key])]
    if agree != total or max(errors) > LIMIT_MM or equal != len(states) or other:
        raise SystemExit(
            f"not equal to the original: oracle {wrong}, tool errors {errors} mm, {equal} initial states, "
            f"configuration {other}"
        )
    return {
        "oracle": f"{agree} of {total} recorded answers of the original agree",
        "world": f"{len(errors)} of {len(errors)} rollouts of the original, tool error at most {max(errors):.3f} mm",
        "initial_states": f"{equal} of {len(states)} equal to the bit",
        "configuration": f"{len(CONFIGURED)} of {len(CONFIGURED)} sections equal",
    }


def rollouts(scene: str) -> dict[str, np.ndarray]:
    """Four rollouts, from random starts: hold still; move; move, turn and use the gripper; push down.

    Actions are multiples of 1/64, so that a file holds them exactly.
    """
    seed = SCENES.index(scene)
    rng, records = np.random.default_rng([11, seed]), list[dict[str, Any]]()
    with PlayTable(scene, renderer="none") as world:
        for kind in range(4):
            phase, speed = rng.uniform(0, 2 * np.pi, 6), rng.uniform(0.05, 0.2, 6)
            waves = 0.7 * np.sin(phase + np.arange(STEPS)[:, None] * speed)
            actions = np.concatenate([waves, np.ones((STEPS, 1))], axis=1)
            actions[:, :6] *= [0, [1, 1, 1, 0, 0, 0], 1, [0.5, 0.5, 0, 0, 0, 0]][kind]
            if kind == 2:
                actions[STEPS // 2 :, 6] = -1
            if kind == 3:
                actions[:, 2] = -0.75
            actions[:, :6] = np.round(actions[:, :6] * 64) / 64
            scene_obs = np.round(random_scene_obs(scene, rng), 6)
            world.reset(RESTING_ROBOT_OBS, scene_obs, render=False)
            robot_obs, contacts = [], []
            for action in actions:
                observation = world.step(action, render=False)
                robot_obs.append(observation.state["robot_obs"])
                contacts.append(len(world.info().robot_contacts))
            records.append(
                {
                    "actions": actions,
                    "robot_obs": np.array(robot_obs),
                    "reset_robot_obs": RESTING_ROBOT_OBS,
                    "reset_scene_obs": scene_obs,
                    "last_scene_obs": observation.privileged["scene_obs"],
                    "robot_contacts": np.array(contacts),
                }
            )
    return {key: np.stack([record[key] for record in records]) for key in records[0]}


def oracle_cases() -> dict[str, Any]:
    """Demonstrations of every task in two scenes, and the oracle's answers about pairs of their moments."""
    found: dict[str, Any] = {"scenes": {}, "snapshots": [], "cases": []}
    for position, scene in enumerate(SCENES):
        with PlayTable(scene, renderer="none") as world:
            numbers = _numbers(world)
            found["scenes"][scene] = numbers
            for index, task in enumerate(TASKS):
                if (index - position) % 4 < 2:
                    moments = _demonstration(world, task, np.random.default_rng([13, position, index]))
                    _add_cases(found, moments, scene, numbers)
    return found


def initial_states() -> dict[str, Any]:
    """A checksum of the initial states of all 1000 chains by scene, and the first few themselves."""
    states = {scene: [initial_state(chain.condition, scene) for chain in chains(CHAINS)] for scene in SCENES}
    return {
        "sha256": {scene: states_digest(states[scene]) for scene in SCENES},
        "first": {
            scene: [{"robot_obs": r.tolist(), "scene_obs": s.tolist()} for r, s in states[scene][:SHOWN_CHAINS]]
            for scene in SCENES
        },
    }


def states_digest(states: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """SHA-256 of states (15,) and (24,), as little-endian float64 one after the other."""
    return hashlib.sha256(b"".join(part.astype("<f8").tobytes() for state in states for part in state)).hexdigest()


def geometry() -> dict[str, Any]:
    """Where things are in each scene (m): what `scene_geometry` says."""
    return {
        scene: {
            "block_order": list(facts.block_order),
            "block_sizes": {block: facts.block_size(block).tolist() for block in BLOCKS},
            "button": np.asarray(facts.button).tolist(),
            "switch": np.asarray(facts.switch).tolist(),
            "slide": np.asarray(facts.slide).tolist(),
            "slide_limit": facts.slide_limit,
            "drawer_bay": list(facts.drawer_bay),
            "cabinet_opening": list(facts.cabinet_opening),
        }
        for scene, facts in ((scene, scene_geometry(scene)) for scene in SCENES)
    }


def digest(value: Any) -> str:
    """SHA-256 of a value as sorted JSON, in which 1 is 1.0."""
    return hashlib.sha256(json.dumps(_with_floats(value), sort_keys=True).encode()).hexdigest()


def _with_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_floats(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_floats(each) for each in value]
    return float(value) if type(value) is int else value


def sentence_digest(sentence: str) -> str:
    """Ten hexadecimal digits of a sentence, whatever its capitals and full stop."""
    return hashlib.sha256(sentence.lower().strip(" .").encode()).hexdigest()[:10]


def _others_sentences() -> list[str]:
    """Digests of the sentences of CALVIN's and RoboFlamingo's lists."""
    lists = [
        *json.loads((REFERENCE / "enrich_lang_annotations.json").read_text()).values(),
        *json.loads((REFERENCE / "lang_annotation_cache.json").read_text()),
    ]
    return sorted({sentence_digest(sentence) for some in lists for sentence in some})


def _demonstration(world: PlayTable, task: str, rng: np.random.Generator) -> list[Info]:
    """Moments of a demonstration: the start, and of each of its tasks the last step before success, and success."""
    env = TargetLeash(world, 0.05)
    for _ in range(20):
        scene_obs, before = start_for(task, world.scene, rng)
        observation, moments = env.reset(None, scene_obs, render=False), [env.info()]
        for each in (*before, task):
            start = previous = moments[-1]
            for _ in range(MAX_STEPS):
                observation = env.step(demonstrate(each, observation, world.scene), render=False)
                info = env.info()
                if TASKS[each](start, info):
                    moments += [previous, info]
                    break
                previous = info
            else:
                break
        else:
            return moments
    raise RuntimeError(f"no demonstration of {task} in {world.scene} succeeded")


def _add_cases(found: dict[str, Any], moments: list[Info], scene: str, numbers: dict[str, Any]) -> None:
    """Adds moments and the oracle's answers about every ordered pair of them."""
    first = len(found["snapshots"])
    kept = [_snapshot(info, numbers) for info in moments]
    found["snapshots"] += kept
    for i, start in enumerate(kept):
        for j, end in enumerate(kept):
            answer = solved(read_snapshot(start, numbers), read_snapshot(end, numbers))
            assert answer == solved(moments[i], moments[j]), (scene, i, j)  # rounding changes no answer
            found["cases"].append([first + i, first + j, sorted(answer)])


def _numbers(world: PlayTable) -> dict[str, Any]:
    """The scene's entry of a cases file: numbers of bodies and links."""
    return {
        "robot_uid": world.robot.uid,
        "table_uid": world.table.uid,
        "links": {name: index for index, name in world.table.links.items()},
        "uids": dict(world.blocks),
    }


def _snapshot(info: Info, numbers: dict[str, Any]) -> dict[str, Any]:
    """A moment as a cases file has it; numbers to 9 digits."""
    bodies = {"robot": numbers["robot_uid"], "table": numbers["table_uid"], **numbers["uids"]}

    def points(contacts: frozenset[Contact]) -> list[list[int]]:
        found = []
        for body, link in sorted(contacts):
            number = numbers["links"].get(link) if body == "table" else None
            if number is None:
                number = -1 if link == "base_link" else int(link.removeprefix("link_"))
            found.append([-1, bodies.get(body, 99), -1, number, 0])
        return found

    def rounded(values: Any) -> Any:
        return [float(f"{value:.9g}") for value in values]

    return {
        "scene": info.scene,
        "lights": dict(info.lights),
        "doors": {door: float(f"{value:.9g}") for door, value in info.doors.items()},
        "robot_contacts": points(info.robot_contacts),
        "movable": {
            block: {
                "pos": rounded(state.position),
                "orn": rounded(state.orientation),
                "lin_vel": rounded(state.linear_velocity),
                "ang_vel": rounded(state.angular_velocity),
                "contacts": points(state.contacts),
            }
            for block, state in info.blocks.items()
        },
    }


def main() -> int:
    """Proves, then writes."""
    proven = prove()
    for scene in SCENES:
        arrays = rollouts(scene)
        for key in ("robot_obs", "last_scene_obs"):
            arrays[key] = arrays[key].astype(np.float32)
        write_atomic(DATA / f"rollouts_{scene}.npz", lambda file, arrays=arrays: np.savez_compressed(file, **arrays))
    text = json.dumps(oracle_cases(), separators=(",", ":")).encode()
    write_atomic(DATA / "oracle_cases.json.gz", lambda file: file.write(gzip.compress(text, mtime=0)))
    write_json(DATA / "initial_states.json", initial_states())
    write_json(DATA / "geometry.json", geometry())
    write_json(DATA / "configuration.json", {key: digest(merged_config("D")[key]) for key in CONFIGURED})
    write_text(DATA / "sentence_digests.txt", "".join(f"{each}\n" for each in _others_sentences()))
    versions = {
        key: value for key, value in provenance().items() if key in ("python", "numpy", "pybullet", "processor")
    }
    write_json(DATA / "made_with.json", {"proven": proven, "code": code_version(), **versions})
    size = sum(path.stat().st_size for path in DATA.iterdir())
    print(f"{DATA}: {size / 1000:.0f} kB; {proven}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
