"""The report: one page with numbers, plots, videos and the recipe."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from calvin_eval.metrics import ChainResult, summarize
from calvin_eval.report import print_table, read_metrics, write_report

TASKS = ("open_drawer", "turn_on_led", "close_drawer", "turn_off_led", "move_slider_left")


def results(solved, execute):
    chains = [ChainResult(i, TASKS, n, tuple([30] * min(5, n + 1))) for i, n in enumerate(solved)]
    facts = {
        "settings": {"seed": 0},
        "renderer": "panda3d-tinydisplay",
        "made_with": {"git": "abc"},
        "execute": execute,
    }
    return {**summarize(chains), **facts}


@pytest.fixture
def evaluations():
    return {"closed loop": results([5, 3, 0, 1], 1), "open loop": results([2, 2, 0, 1], 8)}


def test_the_page_holds_numbers_plots_videos_and_recipe(tmp_path, evaluations):
    metrics = tmp_path / "metrics.jsonl"
    lines = [{"elapsed_s": 6.0 * i, "loss": 1 / (i + 1), "pose": 1 / (i + 1), "gripper": 0.5} for i in range(80)]
    lines.append({"elapsed_s": 480.0, "val_pose": 0.2, "val_translation_error": 0.1, "val_rotation_error": 0.1})
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = tmp_path / "out" / "report.html"
    write_report(
        page,
        "A title",
        evaluations,
        metrics=metrics,
        recipe="policy: {window: 1}",
        videos=[tmp_path / "out/v/a.mp4"],
    )
    text = page.read_text()
    assert text.count("<svg") == 4  # curves, rates, length against E, tasks
    assert "A title" in text and "policy: {window: 1}" in text and 'src="v/a.mp4"' in text
    assert {p.name for p in (tmp_path / "out/plots").iterdir()} == {
        "curves.svg",
        "rates.svg",
        "execute.svg",
        "tasks.svg",
    }
    assert "2.25" in text and "panda3d-tinydisplay" in text and "abc" in text


def test_a_page_without_training_and_with_one_evaluation_leaves_those_plots_out(tmp_path, evaluations):
    page = tmp_path / "report.html"
    write_report(page, "t", {"closed loop": evaluations["closed loop"]})
    assert page.read_text().count("<svg") == 2


def test_text_from_outside_is_escaped(tmp_path, evaluations):
    page = tmp_path / "report.html"
    write_report(page, "<script>alert(1)</script>", evaluations)
    assert "<script>" not in page.read_text()


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one evaluation"):
        write_report(tmp_path / "report.html", "t", {})


def test_the_table_fits_a_terminal(evaluations):
    console = Console(width=80, record=True)
    print_table(evaluations, console)
    text = console.export_text()
    assert "closed loop" in text and "2.25" in text
    assert max(map(len, text.splitlines())) <= 80


def test_missing_metrics_are_no_error(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []
