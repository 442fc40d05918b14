"""Parts of ablations: grids as files, the rule by which claims hold, sections of documents, a run that was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from calvin_eval.system.errors import UserError
from roboflamingo.cli.ablations.claims import Found, compare, outcome, verdict
from roboflamingo.cli.ablations.document import HEADING, put_section
from roboflamingo.cli.ablations.grid import Comparison
from roboflamingo.cli.ablations.planning import make_plan
from roboflamingo.cli.ablations.reading import listed, read_grid

# --- grids ---------------------------------------------------------------------------------------

WHOLE = """
about: a or b
config: {config}
data: some/data
train: {{max_steps: 5}}
members:
  a: {{train: {{policy: {{head: {{kind: mlp}}}}}}}}
  b: {{train.policy.head.kind: gpt, evaluate: {{execute: 2}}}}
claim: {{text: a is best., source: a paper., order: [a > b]}}
"""


def write_grid(folder: Path, text: str = WHOLE, name: str = "mine.yaml") -> Path:
    """A grid on the configuration that ships."""
    config = (listed()["head"].parent / "common" / "train.yaml").resolve()
    (folder / name).write_text(text.format(config=config))
    return folder / name


def test_nested_and_dotted_keys_are_the_same(tmp_path: Path) -> None:
    plan = make_plan(read_grid(write_grid(tmp_path)), tmp_path)
    assert plan.collect is None and [unit.members for unit in plan.units] == [("a",), ("b",)]
    heads = [unit.config.policy.head.kind for unit in plan.units]  # type: ignore[attr-defined]
    assert heads == ["mlp", "gpt"] and {unit.config.max_steps for unit in plan.units} == {5}
    assert plan.unit_of("b").evaluations["b"].execute == 2
    assert list(plan.units[0].config.data.folders) == ["some/data"]


def test_a_base_is_below_the_grid_and_its_paths_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    base = tmp_path / "deep" / "base.yaml"
    base.write_text("config: ./train.yaml\ntrain: {max_steps: 7, batch_size: 3}\nsmoke: {train: {max_steps: 1}}\n")
    (tmp_path / "deep" / "train.yaml").write_text("seed: 4\n")
    path = tmp_path / "grid.yaml"
    path.write_text(
        "base: ./deep/base.yaml\ntrain: {max_steps: 9}\nclaim: {text: t, source: s}\ndata: x\n"
        "members: {a: {}, b: {train.max_steps: 2}}\nsmoke: {members: [b]}\n"
    )
    plan = make_plan(read_grid(path), tmp_path)
    made = {name: plan.unit_of(name).config for name in ("a", "b")}
    assert (made["a"].max_steps, made["b"].max_steps) == (9, 2)
    assert (made["a"].batch_size, made["a"].seed) == (3, 4)
    small = make_plan(read_grid(path, smoke=True), tmp_path)
    assert [unit.members for unit in small.units] == [("b",)] and small.units[0].config.max_steps == 1
    assert small.folder.name == "grid_smoke"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("members:", "member:"), "has no key member; it has config, data"),
        (("  b: {{train.policy.head.kind: gpt, evaluate: {{execute: 2}}}}", "  b: {{policy.window: 2}}"),
         r"members\.b has policy\.window; its keys begin with train\. or evaluate\."),
        (("  b: {{", "  2: {{"), r"members\.2 is"),
        (("a > b", "a < b"), "claim.order has 'a < b'; write FIRST > SECOND"),
        (("a > b", "a > c"), "claim names c, which is no member; they are a, b"),
        ((", source: a paper.", ""), "claim needs text and source"),
        (("about: a or b", "about: [a]"), r"about is \['a'\]; it takes text"),
        (("config: {config}", "about2: x"), "has no key about2"),
        (("config: {config}\n", ""), "config is missing"),
        (("about: a or b", "base: ./mine.yaml"), "base leads back to the file itself"),
        (("about: a or b", "base: ./absent.yaml"), r"absent\.yaml does not exist; it should hold an ablation's grid"),
        (("about: a or b", "about: ["), "no YAML"),
        (("about: a or b", "smoke: {{colour: red}}"), "smoke has no key colour"),
    ],
)  # fmt: skip
def test_a_grid_that_cannot_be_names_file_and_key(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in WHOLE
    path = write_grid(tmp_path, WHOLE.replace(*change))
    with pytest.raises(UserError, match=message) as raised:
        read_grid(path, smoke="smoke" in change[1])
    assert str(tmp_path) in str(raised.value)


# --- claims --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "interval", "expected"),
    [
        (">", (0.1, 0.5), "holds"), (">", (0.0, 0.5), "within noise"), (">", (-0.1, 0.5), "within noise"),
        (">", (-0.5, -0.1), "reversed"), ("~", (-0.1, 0.5), "holds"), ("~", (0.1, 0.5), "differs"),
        ("~", (-0.5, -0.1), "differs"),
    ],
)  # fmt: skip
def test_a_claim_holds_by_the_interval_of_the_difference(
    relation: str, interval: tuple[float, float], expected: str
) -> None:
    assert outcome(relation, interval) == expected


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ([], "Nothing was published"),
        (["holds", "holds"], "holds, beyond the interval in every comparison"),
        (["within noise"], "all differences are within noise"),
        (["reversed", "reversed"], "the order is reversed"),
        (["holds", "within noise", "holds"], "holds in part: of 3 comparisons 2 holds, 1 within noise"),
        (
            ["within noise", "reversed"],
            "does not hold where it can be told: of 2 comparisons 1 within noise, 1 reversed",
        ),
    ],
)
def test_a_verdict_counts_comparisons(outcomes: list[str], message: str) -> None:
    found = [Found("a", ">", "b", 0.0, (0.0, 0.0), True, each) for each in outcomes]
    assert message in verdict(found)


def results(lengths: list[int], scene: str = "D", low: float = 0.0, high: float = 0.0) -> dict[str, Any]:
    """Of an evaluation, as far as they are compared."""
    mean = sum(lengths) / len(lengths)
    return {
        "avg_seq_len": mean, "lengths": {str(i): length for i, length in enumerate(lengths)}, "scene": scene,
        "benchmark": "CALVIN", "renderer": "none", "settings": {"seed": 0},
        "intervals": {"avg_seq_len": [mean - low, mean + high]},
    }  # fmt: skip


def test_the_same_chains_are_compared_pairwise_and_others_by_their_intervals() -> None:
    hard, easy = [0, 5] * 50, [1, 5] * 50
    same = compare({"a": results(easy), "b": results(hard)}, Comparison("a", ">", "b"))
    assert same.paired and same.difference == 0.5 and same.outcome == "holds" and same.interval[0] > 0.3
    assert str(same).startswith("a against b +0.50 [+0.")
    elsewhere = compare(
        {"a": results(easy, low=0.3, high=0.3), "b": results(hard, "A", low=0.4, high=0.4)}, Comparison("a", ">", "b")
    )
    assert not elsewhere.paired and elsewhere.interval == (pytest.approx(0.0), pytest.approx(1.0))
    assert "other chains" in str(elsewhere)


# --- documents -----------------------------------------------------------------------------------


def test_sections_are_put_in_once_and_replaced_where_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    path.write_text("# Figures\n\nText.\n")
    for name, text in (("head", "one"), ("window", "two"), ("head", "three")):
        put_section(path, name, text)
    written = path.read_text()
    assert written.startswith("# Figures\n\nText.\n") and written.count(HEADING) == 1
    assert "one" not in written.split(HEADING)[1] or "one of" in written
    assert written.index("three") < written.index("<!-- end of ablation head -->") < written.index("two")
    put_section(path, "window", "two")
    assert path.read_text() == written  # nothing moves


def test_sections_follow_their_heading_and_not_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    path.write_text(f"# Figures\n\n{HEADING}\n\nSaid before.\n\n## Scripted experts\n\nOther.\n")
    put_section(path, "head", "new")
    written = path.read_text()
    assert written.index("Said before") < written.index("new") < written.index("## Scripted experts")


def test_damaged_markers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    path.write_text("<!-- ablation head: written by -->\nno end\n")
    with pytest.raises(UserError, match="there must be one of each, in this order, or none"):
        put_section(path, "head", "new")
    with pytest.raises(UserError, match="--write takes a document"):
        put_section(tmp_path / "absent.md", "head", "new")


# --- a kill --------------------------------------------------------------------------------------


def test_a_killed_ablation_continues_its_training(tmp_path: Path) -> None:
    words = ["ablate", "state", "--smoke", "--workers", "1", "--only", "pose", "--out", str(tmp_path)]
    words += ["--train.save_every_steps", "5", "--train.validation_windows", "0"]
    command = [sys.executable, "-m", "roboflamingo.cli.main", *words, "--train.max_steps", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (found := list((tmp_path / "policies").glob("*/train/last.ckpt"))) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (saved,) = found
    before = steps(saved.parent)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while (steps(saved.parent) or [0])[-1] < before[-1] + 5 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    after = steps(saved.parent)
    assert after == list(range(1, after[-1] + 1)) and after[-1] >= before[-1] + 5


def steps(run: Path) -> list[int]:
    """The steps in a training's log, but for a line that is being written."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]
