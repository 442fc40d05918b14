"""Ablations, whole and as small as can be: data, trainings, evaluations, table, plot, paragraph."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from calvin_eval.benchmark.instructions import NUMBERS, sentences
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.system.errors import UserError
from roboflamingo.cli.ablate import write_section
from roboflamingo.cli.ablations import expected as time
from roboflamingo.cli.ablations import running
from roboflamingo.cli.ablations.planning import make_plan
from roboflamingo.cli.ablations.reading import listed, read_grid
from roboflamingo.cli.main import main
from roboflamingo.policy.config import PolicyConfig

GRIDS = listed()
NAMES = ["chunk", "data", "execution", "fusion", "head", "language", "pretraining", "state", "window"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ablations that share data and trainings."""
    return tmp_path_factory.mktemp("ablations")


def smoke(name: str, out: Path, *words: str) -> dict[str, Any]:
    """Runs the smallest version of an ablation, and returns what it came to."""
    main(["ablate", name, "--smoke", "--out", str(out), *(words or ("--workers", "1"))])
    folder = out / f"{Path(name).stem}_smoke"
    result: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return result


def test_the_nine_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(GRIDS) == NAMES
    main(["ablate", "--list"])
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == NAMES and all(len(line.split()) > 3 for line in said)


@pytest.mark.parametrize("name", NAMES)
def test_a_smoke_version_ends_in_table_plot_and_paragraph(name: str, out: Path) -> None:
    summary = smoke(name, out)
    grid = read_grid(GRIDS[name], smoke=True)
    assert [member["name"] for member in summary["members"]] == [member.name for member in grid.members]
    assert len(summary["members"]) >= 3
    assert summary["paragraph"].startswith(f"Claimed: {grid.claim.text.rstrip('.')}")
    assert summary["verdict"] in summary["paragraph"] and summary["command"] == f"roboflamingo ablate {name}"
    assert {each["first"] for each in summary["comparisons"]} <= {member.name for member in grid.members}
    folder = out / f"{name}_smoke"
    text = (folder / "table.md").read_text()
    assert all(f"| {member.name} | 0 % " in text or f"| {member.name} | " in text for member in grid.members)
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    for member in summary["members"]:
        assert member["steps"] == 2 and member["held_out"] and member["results"]["jerk"] is not None
        assert member["trained_with"]["git"]


def test_calls_fall_with_the_actions_that_are_executed(out: Path) -> None:
    members = {member["name"]: member["results"] for member in smoke("execution", out)["members"]}
    calls = [members[name]["calls_per_second"] for name in ("E = 1 (closed loop)", "E = 4", "E = 8 (open loop)")]
    assert calls[0] == 30 > calls[1] > calls[2] and members["temporal ensemble"]["calls_per_second"] == 30


def test_what_is_finished_is_not_repeated(out: Path) -> None:
    smoke("state", out)
    files = [path for path in (out / "policies").rglob("*") if path.is_file() and path.name != ".lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = smoke("state", out)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    (evaluation,) = {Path(member["evaluation"]) for member in again["members"] if member["name"] == "no state"}
    (evaluation / "results.json").unlink()
    smoke("state", out)
    changed = {path for path in files if path.stat().st_mtime_ns != before[path]}
    evaluated = {path for path in changed if path.name != "config.yaml"}  # which a complete training writes as it was
    assert evaluated == {evaluation / "results.json"}


def test_the_plot_goes_beside_the_document(out: Path, tmp_path: Path) -> None:
    summary, document = smoke("state", out), tmp_path / "results.md"
    document.write_text("# Figures\n")
    write_section(summary, out / "state_smoke" / "plot.png", document)
    picture = re.search(r"!\[.*\]\((.*)\)", document.read_text())
    assert picture and (tmp_path / picture[1]).read_bytes() == (out / "state_smoke" / "plot.png").read_bytes()
    assert "<!-- ablation state: " in document.read_text() and summary["paragraph"] in document.read_text()


def test_members_side_by_side_come_to_the_same(out: Path, tmp_path: Path) -> None:
    here = smoke("state", out)
    (tmp_path / "data").symlink_to(out / "data")
    there = smoke("state", tmp_path, "--workers", "2")
    for one, other in zip(here["members"], there["members"], strict=True):
        assert one["held_out"] == other["held_out"] and one["results"]["jerk"] == other["results"]["jerk"]
        assert Path(one["training"]).parts[-2:] == Path(other["training"]).parts[-2:]
        assert "trained" in (Path(other["training"]).parent / "log.txt").read_text()


def test_members_with_the_same_training_share_it_across_grids(tmp_path: Path) -> None:
    plans = {name: make_plan(read_grid(GRIDS[name]), tmp_path) for name in ("execution", "head", "window", "language")}
    assert len(plans["execution"].units) == 1 and len(plans["execution"].units[0].evaluations) == 9
    base = plans["execution"].units[0].folder
    assert plans["head"].unit_of("LSTM").folder == plans["window"].unit_of("T = 8").folder == base
    language = plans["language"]
    assert language.unit_of("validation").folder == language.unit_of("enriched").folder == base
    others = [plans["head"].unit_of("GPT"), plans["window"].unit_of("T = 4"), language.unit_of("task's number")]
    assert len({unit.folder for unit in others} | {base}) == 4
    folders = {unit.config.data.folders.keys() <= {str(plans["head"].data)} for unit in plans["head"].units}
    assert folders == {True} and str(base / "train") == plans["head"].unit_of("LSTM").config.run


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pretraining"])
def test_every_member_of_a_grid_can_be_trained_and_evaluated_as_it_says(name: str, tmp_path: Path) -> None:
    grid = read_grid(GRIDS[name])
    plan = make_plan(grid, tmp_path)
    settings = [config.settings for unit in plan.units for config in unit.evaluations.values()]
    assert {(each.set, each.chains, each.leash) for each in settings} == {("choosing", 200, 0.05)}
    assert len({unit.config.max_steps for unit in plan.units}) == 1
    distinct = {
        json.dumps([plan.unit_of(m.name).folder.name, plan.unit_of(m.name).evaluations[m.name].out])
        for m in grid.members
    }
    assert len(distinct) == len(grid.members)
    assert grid.claim.source and all(isinstance(unit.config.policy, PolicyConfig) for unit in plan.units)


def test_the_numbers_that_training_says_are_those_of_the_benchmark() -> None:
    path = GRIDS["language"].parent / "common" / "task_numbers.yaml"
    assert yaml.safe_load(path.read_text()) == {task: list(sentences(task, NUMBERS)) for task in TASKS}


def test_a_policy_that_gets_numbers_knows_no_other_word(out: Path) -> None:
    summary = smoke("language", out)
    (blind,) = (member for member in summary["members"] if member["name"] == "task's number")
    config = yaml.safe_load((Path(blind["training"]) / "config.yaml").read_text())
    words = config["policy"]["backbone"]["language"]["words"]
    assert "task" in words and all(word == "task" or word.isdigit() for word in words)
    assert blind["results"]["settings"]["sentences"] == NUMBERS


def test_a_vocabulary_without_the_numbers_is_refused(tmp_path: Path) -> None:
    plan = make_plan(read_grid(GRIDS["language"]), tmp_path)
    blind, told = plan.unit_of("task's number"), plan.unit_of("validation")
    fixed = PolicyConfig().with_words(["open the drawer", "task 0"])
    with pytest.raises(UserError, match=r"task's number: the policy's vocabulary lacks 1, 10, .* \(33 such\)"):
        running.check_numbers(blind, fixed)
    running.check_numbers(told, fixed)
    running.check_numbers(blind, PolicyConfig())
    running.check_numbers(blind, PolicyConfig().with_words(["task 3", "task 5"]))  # of data with two tasks


def test_the_grid_of_pretraining_names_keys_that_there_are(tmp_path: Path) -> None:
    typed = {"train": {"policy.backbone.preset": "scratch"}}  # whatever weights there are
    plan = make_plan(read_grid(GRIDS["pretraining"], typed=typed), tmp_path)
    assert len(plan.grid.members) == 6 and len(plan.units) == 4 and plan.grid.curves


# --- room and time -------------------------------------------------------------------------------


def test_members_stand_side_by_side_where_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, memory, members, wanted, expected in (
        (8, 100, 5, None, 5), (4, 100, 5, None, 4), (8, 7, 5, None, 2), (8, 1, 5, None, 1), (2, 100, 5, 3, 3),
        (8, None, 9, None, 8), (2, 100, 0, None, 1),
    ):  # fmt: skip
        monkeypatch.setattr(running, "cores", lambda cores=cores: cores)
        monkeypatch.setattr(running, "available_memory", lambda memory=memory: None if memory is None else memory << 30)
        assert running.room(members, wanted) == expected


def test_the_estimate_counts_what_is_left(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "measure", lambda *given, **more: time.Speeds(1.0, 0.01, 0.01, 0.5))
    monkeypatch.setattr(time, "cores", lambda: 1)
    grid = read_grid(GRIDS["state"], typed={"train": {"max_steps": 600}, "collect": {"settings.episodes": 500}})
    left = time.expected(make_plan(grid, tmp_path))
    assert left.training == pytest.approx(3 * (600 * 0.5 + 12) / 60)
    assert left.collecting == pytest.approx((530 * 1.2 + 12) / 60)
    assert left.evaluating > 3 * 200 * 480 * 0.01 / 60
    smoke("state", out)
    assert time.expected(make_plan(read_grid(GRIDS["state"], smoke=True), out)).minutes == 0


# --- what is typed -------------------------------------------------------------------------------


def test_typed_keys_win_over_members(tmp_path: Path) -> None:
    typed = {"train": {"policy.window": 3}, "evaluate": {"settings.chains": 7}, "collect": {"settings.seed": 5}}
    plan = make_plan(read_grid(GRIDS["window"], only=["T = 4"], typed=typed), tmp_path)
    (unit,) = plan.units
    assert unit.config.policy.window == 3 and unit.evaluations["T = 4"].settings.chains == 7
    assert plan.collect is not None and plan.collect[0].seed == 5
    own = make_plan(read_grid(GRIDS["window"], only=["T = 4"]), tmp_path)
    assert own.data != plan.data and own.units[0].folder != unit.folder


def test_a_section_names_the_command_that_makes_it_again(out: Path) -> None:
    words = ["--evaluate.settings.max_steps", "8", "--only", "pose", "--workers", "1"]
    summary = smoke("state", out, *words)
    assert summary["command"] == "roboflamingo ablate state --evaluate.settings.max_steps 8"
    assert f"`{summary['command']}`, commit" in (out / "state_smoke" / "table.md").read_text()


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        ([], "name an ablation: chunk, data", 2),
        (["heads"], "there is no ablation 'heads'; known are chunk, data", 1),
        (["head", "--only", "LSTN"], "has no member 'LSTN'; it has LSTM, GPT", 1),
        (["head", "--train.run", "x"], "member LSTM: train.run is up to the ablation itself", 1),
        (["head", "--train.polcy.window", "4"], "member LSTM: .*polcy", 1),
        (["head", "--train.devices", "2"], "trains each member on one device", 1),
        (["head", "--evaluate.execute", "9"], r"execute=9 is not in 1\.\.8", 1),
        (["head", "--train.max_steps"], "--train.max_steps takes a value", 2),
        (["head", "--workers", "0"], "--workers is 0", 2),
        (["head", "--smoke", "--write", "x.md"], "leave --smoke and --only out", 2),
        (["head", "--smoke", "--data", "x"], "--smoke collects its own data", 2),
        (["head", "--data", "x", "--collect.settings.seed", "1"], "takes the place of what is collected", 2),
    ],
)
def test_what_cannot_be_is_said_at_once(
    words: list[str], message: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ablate", *words, "--out", str(tmp_path / "out")])
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert not (tmp_path / "out").exists()


def test_a_grid_that_needs_weights_says_what_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = GRIDS["pretraining"].resolve()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["ablate", str(path)])
    said = capsys.readouterr().err
    assert "needs checkpoints/tiny_vlm, which is not there" in said and "`roboflamingo pretrain` makes it" in said
