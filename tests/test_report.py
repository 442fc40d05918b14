"""The report: one page with numbers, protocol, plots, videos and the recipe, which can be mailed alone."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from rich.console import Console

from calvin_eval.benchmark.calvin import summarize_chains
from calvin_eval.evaluation.report import print_table, read_metrics, write_report
from calvin_eval.evaluation.report.plots import learning_curves
from calvin_eval.evaluation.report.protocol import by_horizon, departures, protocol_table
from calvin_eval.evaluation.report.tables import paired
from calvin_eval.protocol import EpisodeResult
from calvin_eval.system.errors import UserError
from mutations import damaged

TASKS = ("open_drawer", "turn_on_led", "close_drawer", "turn_off_led", "move_slider_left")
FILM = b"not really a film, but bytes like one"


def results(solved, execute, **changes):
    chains = [EpisodeResult(i, TASKS, n, tuple([30] * min(5, n + 1))) for i, n in enumerate(solved)]
    facts = {
        "settings": {"chains": len(solved), "max_steps": 360, "sentences": "validation", "leash": 0.05, "seed": 0},
        "policy": "runs/x/policy",
        "scene": "D",
        "renderer": "panda3d-tinydisplay",
        "made_with": {"git": "abc", "processor": "some processor", "numpy": "2.4.6"},
        "execute": execute,
    }
    return {**summarize_chains(chains), **facts, **changes}


@pytest.fixture
def evaluations():
    return {"closed loop": results([5, 3, 0, 1], 1), "open loop": results([2, 2, 0, 1], 8)}


def write_metrics(path: Path) -> Path:
    lines = [{"elapsed_s": 6.0 * i, "loss": 1 / (i + 1), "pose": 1 / (i + 1), "gripper": 0.5} for i in range(80)]
    lines.append({"elapsed_s": 480.0, "val_pose": 0.2, "val_pose_m": 0.002, "val_pose_rad": 0.01})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line_of(table, name):
    return next(line for line in table if line.name.startswith(name))


def test_the_page_holds_numbers_plots_videos_and_recipe(tmp_path, evaluations):
    film = tmp_path / "chain_000.mp4"
    film.write_bytes(FILM)
    page = tmp_path / "out" / "report.html"
    write_report(
        page,
        "A title",
        evaluations,
        metrics=write_metrics(tmp_path / "metrics.jsonl"),
        recipe="policy: {window: 1}",
        videos=[film],
    )
    text = page.read_text()
    assert text.count("<svg") == 4  # curves, rates, length against E, tasks
    assert "A title" in text and "policy: {window: 1}" in text
    assert f'src="data:video/mp4;base64,{base64.b64encode(FILM).decode()}"' in text
    assert {p.name for p in (tmp_path / "out/report_files").iterdir()} == {
        *("curves.svg", "rates.svg", "execute.svg", "tasks.svg")
    }
    assert "2.25" in text and "panda3d-tinydisplay" in text and "abc" in text and "some processor" in text


def test_a_page_refers_to_nothing_outside_of_it_while_videos_are_small(tmp_path, evaluations):
    film = tmp_path / "chain_000.mp4"
    film.write_bytes(FILM)
    write_report(tmp_path / "report.html", "t", evaluations, videos=[film])
    text = (tmp_path / "report.html").read_text()
    assert "report_files" not in text and 'src="http' not in text and 'href="' not in text.replace('xlink:href="#', "")


def test_videos_beyond_the_limit_lie_beside_the_page_and_the_page_says_so(tmp_path, evaluations):
    folder = tmp_path / "closed_loop" / "videos"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"chain_{number:03d}.mp4").write_bytes(FILM)
    page = tmp_path / "elsewhere" / "my page.html"
    write_report(page, "t", evaluations, videos=sorted(folder.iterdir()), embed=len(FILM) + 5)
    text = page.read_text()
    copies = sorted((tmp_path / "elsewhere/my page_files").glob("*.mp4"))
    assert [copy.read_bytes() for copy in copies] == [FILM, FILM]
    assert text.count("data:video/mp4") == 1 and f'src="my%20page_files/{copies[0].name}"' in text
    assert "2 of 3 videos are not in this page" in text and "my page_files/" in text
    assert "closed_loop, chain 0" in text and "closed_loop, chain 2" in text


def test_a_page_without_training_and_with_one_evaluation_leaves_those_plots_out(tmp_path, evaluations):
    page = tmp_path / "report.html"
    write_report(page, "t", {"closed loop": evaluations["closed loop"]})
    assert page.read_text().count("<svg") == 2
    assert "chain by chain" not in page.read_text()


def test_text_from_outside_is_escaped(tmp_path, evaluations):
    page = tmp_path / "report.html"
    hostile = "<script>alert(1)</script>"
    write_report(page, hostile, {hostile: evaluations["closed loop"]}, recipe=hostile, notes=[hostile])
    assert "<script>" not in page.read_text()


def test_labels_are_drawn_as_they_are(tmp_path, evaluations):
    page = tmp_path / "report.html"
    write_report(page, "t", {"_a$b$": evaluations["closed loop"]})
    assert "_a$b$</text>" in page.read_text()


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least one evaluation"):
        write_report(tmp_path / "report.html", "t", {})


def test_a_page_replaces_pages_of_ours_and_nothing_else(tmp_path, evaluations):
    page = tmp_path / "report.html"
    write_report(page, "first", evaluations)
    write_report(page, "second", evaluations)
    assert "second" in page.read_text()
    page.write_text("<html><p>Chains of five tasks in a row, without reset in between.</p></html>")  # of before
    write_report(page, "third", evaluations)
    page.write_text("<html>my thesis</html>")
    with pytest.raises(UserError, match=r"report\.html is there and is no report of ours"):
        write_report(page, "fourth", evaluations)
    assert page.read_text() == "<html>my thesis</html>"
    with pytest.raises(UserError, match="is a folder; say which file"):
        write_report(tmp_path, "fifth", evaluations)


def test_few_chains_that_all_failed_claim_no_certainty_on_the_page(tmp_path):
    old = results([0, 0, 0], 1)
    old["intervals"]["avg_seq_len"] = [0.0, 0.0]  # as results before had it
    write_report(tmp_path / "report.html", "t", {"a": old})
    text = (tmp_path / "report.html").read_text()
    assert "[0.00, 0.00]" not in text and "0.00 <small>[0.00, 3.0" in text


def test_the_protocol_marks_what_is_not_the_benchmarks_own(evaluations):
    table = protocol_table(evaluations)
    assert [cell.official for cell in line_of(table, "leash (clamp on target minus measured pose)").cells] == [
        False
    ] * 2
    assert line_of(table, "scene").cells[0].official is True
    assert line_of(table, "processor").cells[0].value == "some processor"
    assert line_of(table, "E (").differs and not line_of(table, "commit").differs
    assert departures(evaluations["closed loop"]) == [
        "world play table (this project's) (not CALVIN)",
        "chains 4 (not 1000)",
        "leash 0.05 m (not none)",
    ]


def test_the_protocol_says_which_weights_and_history_were_evaluated():
    known = results([1, 2], 1, policy_fingerprint="ab" * 32, window=12, stride=2, batch=8, earlier_sessions=[{}])
    expert = results([1, 2], 1, policy="expert", policy_fingerprint="expert")
    table = protocol_table({"a": known, "b": expert})
    assert [cell.value for cell in line_of(table, "policy").cells] == ["runs/x/policy (abababababab...)", "expert"]
    assert [cell.value for cell in line_of(table, "history").cells] == ["12 frames, 2 steps apart", "not recorded"]
    assert [cell.value for cell in line_of(table, "batch").cells] == ["8", "not recorded"]
    assert [cell.value for cell in line_of(table, "sessions").cells] == ["2", "1"]


def test_an_official_evaluation_has_no_mark():
    official = results([1] * 1000, 1, world="CALVIN", renderer="egl")
    official["settings"]["leash"] = None
    assert departures(official) == []
    console = Console(width=80, record=True)
    print_table({"theirs": official}, console)
    assert "*" not in console.export_text()


@pytest.mark.parametrize(
    ("changes", "settings", "departure"),
    [
        ({"scene": "B"}, {}, "scene B (not D)"),
        ({}, {"max_steps": 480}, "steps a task 480 (not 360)"),
        ({}, {"sentences": "enriched"}, "instructions enriched (not validation)"),
        ({"world": "CALVIN"}, {"leash": 0.1}, "leash 0.1 m (not none)"),
    ],
)
def test_each_rule_that_is_another_is_named(changes, settings, departure):
    found = results([1, 2], 1, **changes)
    found["settings"].update(settings)
    assert departure in departures(found)


def test_evaluations_of_one_policy_are_sorted_by_e_as_a_number(tmp_path):
    given = {f"E{e}": results([1, 2], e) for e in (16, 4, 1, 8)} | {"other": results([1, 2], 2, policy="b")}
    assert list(by_horizon(given)) == ["E1", "E4", "E8", "E16", "other"]
    write_report(tmp_path / "report.html", "t", given)
    text = (tmp_path / "report.html").read_text()
    rows = [text.index(f"<tr><td>E{e}") for e in (1, 4, 8, 16)]
    assert rows == sorted(rows)


def test_a_line_against_e_joins_evaluations_of_one_policy_only(tmp_path):
    apart = {"a": results([1], 1), "b": results([1], 8, policy="another")}
    write_report(tmp_path / "report.html", "t", apart)
    assert "length of chains" not in (tmp_path / "report.html").read_text()


def test_evaluations_are_compared_chain_by_chain(tmp_path, evaluations):
    write_report(tmp_path / "report.html", "t", evaluations)
    text = (tmp_path / "report.html").read_text()
    assert "open loop minus closed loop" in text and "-1.00" in text
    elsewhere = {**evaluations, "open loop": results([2, 2, 0, 1], 8, scene="A")}
    write_report(tmp_path / "report.html", "t", elsewhere)
    assert "minus closed loop" not in (tmp_path / "report.html").read_text()  # chains start otherwise there


def test_chains_for_choosing_and_official_ones_are_not_compared_and_the_page_says_which_are_which(
    tmp_path, evaluations
):
    chosen_on = results([5, 5, 2, 1], 1)
    chosen_on["settings"]["set"] = "choosing"
    assert "set of chains choosing (not reporting)" in departures(chosen_on)
    with pytest.raises(UserError, match="set of chains choosing and reporting cannot be compared chain by chain"):
        paired(chosen_on, evaluations["closed loop"])
    write_report(tmp_path / "report.html", "t", {"best": chosen_on, **evaluations})
    text = (tmp_path / "report.html").read_text()
    assert "<li>best and closed loop: set of chains choosing and reporting</li>" in text
    assert "open loop minus closed loop" in text and "minus best" not in text and "<td>4 choosing</td>" in text
    console = Console(width=100, record=True)
    print_table({"best": chosen_on}, console)
    assert "choosing" in console.export_text()


def test_evaluations_are_paired_on_the_chains_that_both_ran(evaluations):
    found = paired(evaluations["closed loop"], results([2, 2], 8))
    assert found is not None and (found.mean, found.episodes) == (2.0, 2)


def test_errors_of_each_part_of_an_action_are_shown_in_its_units(tmp_path, evaluations):
    metrics = tmp_path / "metrics.jsonl"
    trained = {"loss": 1.0, "pose": 0.5, "fingers": 0.2, "gripper": 0.1, "lr": 0.1}
    errors = {"val_pose_m": 0.002, "val_pose_rad": 0.01, "val_fingers_error": 0.3, "val_gripper_accuracy": 0.9}
    lines = [{"elapsed_s": 60.0 * i, **values} for i in range(1, 4) for values in (trained, errors)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(tmp_path / "report.html", "t", evaluations, metrics=metrics)
    text = (tmp_path / "report.html").read_text()
    for label in ("held-out action error", "pose, mm", "pose, degrees", "fingers, its own unit"):
        assert f">{label}<" in text
    assert ">lr<" not in text and "accuracy" not in text


def test_the_table_fits_a_terminal(evaluations):
    console = Console(width=80, record=True)
    print_table(evaluations, console)
    text = console.export_text()
    assert "closed loop*" in text and "2.25" in text and "* not the official protocol: world play table" in text
    assert max(map(len, text.splitlines())) <= 80


def test_times_of_trainings_one_after_the_other_add_up(tmp_path):
    write_metrics(tmp_path / "a.jsonl")
    write_metrics(tmp_path / "b.jsonl")
    lines = read_metrics(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert [lines[i]["elapsed_s"] for i in (80, 81, -1)] == [480, 480, 960]


def test_missing_metrics_are_no_error_and_damaged_ones_are_named(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"elapsed_s": 1.0}\n[1]\n{"step": 3}\n{"elapsed_s": 2.0}\n{"elapsed')
    assert [line["elapsed_s"] for line in read_metrics(path)] == [1.0, 2.0]
    path.write_text("nonsense\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is damaged"):
        read_metrics(path)


def test_damaged_metrics_and_names_are_messages_or_drawn_as_far_as_they_go(tmp_path, evaluations):
    lines = [{"elapsed_s": 60.0 * i, "pose": 1 / i, "val_pose_m": 0.002} for i in range(1, 6)]
    good = "".join(json.dumps(line) + "\n" for line in lines).encode()
    for content in damaged(good, 8, seed=3):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        try:
            learning_curves(read_metrics(tmp_path / "metrics.jsonl"))
        except UserError as error:
            assert "metrics.jsonl, line" in str(error)
    odd = [
        {"elapsed_s": 1.0, "pose": "many"},
        {"elapsed_s": 2.0, "pose": float("nan")},
        {"elapsed_s": 3, "pose": 1e308},
    ]
    assert "<svg" in learning_curves(odd)
    write_report(tmp_path / "report.html", "half a character \ud800", evaluations)
    assert "half a character ?" in (tmp_path / "report.html").read_text()
