"""`roboflamingo report`: what it is given, what it calls it, where the page goes, and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from calvin_eval.benchmark.calvin import summarize_chains
from calvin_eval.evaluation.report.reading import find, read_results, short_names
from calvin_eval.protocol import EpisodeResult
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import write_json
from calvin_eval.system.sealing import sealed
from mutations import damaged
from roboflamingo.cli.main import main

TASKS = ("open_drawer", "turn_on_led", "close_drawer", "turn_off_led", "move_slider_left")


def write_evaluation(folder: Path, solved=(5, 3, 0, 1), execute=1, *, known=True, results=True) -> Path:
    """A folder as `roboflamingo evaluate` leaves it; `known` results hold each chain's length, older ones do not."""
    chains = [EpisodeResult(i, TASKS, n, tuple([30] * min(5, n + 1))) for i, n in enumerate(solved)]
    facts = {
        "settings": {"chains": len(solved), "max_steps": 360, "sentences": "validation", "leash": 0.05, "seed": 0},
        "policy": "runs/x/policy",
        "scene": "D",
        "renderer": "panda3d-tinydisplay",
        "made_with": {"git": "abc", "numpy": "2"},
        "execute": execute,
    }
    summary = {**summarize_chains(chains), **facts}
    if not known:
        del summary["lengths"]
    folder.mkdir(parents=True)
    (folder / "chains.jsonl").write_text("".join(json.dumps(asdict(chain)) + "\n" for chain in chains))
    if results:
        write_json(folder / "results.json", {"0": summary})
    return folder


def write_demo(folder: Path) -> Path:
    """A run of `roboflamingo demo` in two rounds."""
    write_evaluation(folder / "closed_loop", execute=1)
    write_evaluation(folder / "open_loop", (2, 2, 0, 1), execute=16)
    write_evaluation(folder / "E4", (2, 2, 2, 1), execute=4, known=False)
    (folder / "closed_loop/videos").mkdir()
    (folder / "closed_loop/videos/chain_000.mp4").write_bytes(b"film")
    for number in (1, 2):
        run = folder / f"train{number}"
        run.mkdir()
        lines = [{"step": i, "elapsed_s": 60.0 * i, "pose": 1 / i} for i in range(1, 11)]
        lines.append({"step": 10, "elapsed_s": 600.0, "val_pose_m": 0.1})
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "config.yaml").write_text(f"run: train{number}\npolicy: {{actions: relative}}\n")
    write_json(folder / "results.json", {"closed_loop": {}, "open_loop": {}, "execute": {"1": 2.25}})
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 1) -> str:
    """The one line that the command prints instead of a page."""
    with pytest.raises(SystemExit) as end:
        main(["report", *map(str, arguments)])
    assert end.value.code == code
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.startswith("roboflamingo report: error: ")
    return error


def labels_of(page: Path) -> list[str]:
    table = page.read_text().split("<h2>Results</h2>")[1].split("</table>")[0]
    return re.findall(r"<tr><td>([^<]+?)\s*<", table)


def test_a_demos_folder_gives_the_page_of_all_its_evaluations_with_its_training(tmp_path, capsys):
    demo = write_demo(tmp_path / "demo")
    main(["report", str(demo)])
    text = (demo / "report.html").read_text()
    assert labels_of(demo / "report.html") == ["closed_loop", "E4", "open_loop"]  # by E: 1, 4, 16
    assert text.count("<svg") == 4 and "closed_loop, chain 0" in text
    assert "pose, mm" in text and "run: train2" in text
    assert "E4 minus closed_loop" in text  # from chains.jsonl, which older results need
    assert f"report in {demo / 'report.html'}" in capsys.readouterr().out
    main(["report", str(demo)])  # again: its own page is replaced


def test_one_evaluations_page_lies_in_its_folder_and_not_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.html").write_text("mine")
    write_evaluation(tmp_path / "runs/chains")
    main(["report", "runs/chains"])
    assert (tmp_path / "runs/chains/report.html").is_file()
    assert (tmp_path / "report.html").read_text() == "mine"


def test_folders_of_one_name_keep_their_evaluations(tmp_path):
    a, b = write_evaluation(tmp_path / "a/chains"), write_evaluation(tmp_path / "b/chains", (1, 1))
    page = tmp_path / "ab.html"
    main(["report", str(a), str(b), "--out", str(page)])
    assert labels_of(page) == ["a", "b"]


def test_names_can_be_given(tmp_path):
    a, b = write_evaluation(tmp_path / "a/chains"), write_evaluation(tmp_path / "x=y", (1, 1))
    demo, page = write_demo(tmp_path / "demo"), tmp_path / "ab.html"
    main(["report", f"small={a}", str(b), f"mine={demo}", "--out", str(page)])
    assert set(labels_of(page)) == {"small", "x=y", "mine closed_loop", "mine E4", "mine open_loop"}


def test_a_training_run_gives_the_evaluations_in_it(tmp_path):
    run = tmp_path / "tiny"
    write_evaluation(run / "chains")
    (run / "metrics.jsonl").write_text('{"elapsed_s": 1.0, "pose": 1.0}\n')
    (run / "config.yaml").write_text("policy: {actions: absolute}\n")
    main(["report", str(run)])
    text = (run / "report.html").read_text()
    assert "held-out action error" in text and "<h2>Training</h2>" in text


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["r/a/chains", "r/b/chains"], ["a", "b"]),
        (["r/a/chains", "r/b/chains", "r/demo/E4"], ["a/chains", "b/chains", "E4"]),
        (["x/a/chains/last", "y/a/chains/last"], ["x", "y"]),
        (["a/one", "a/two"], ["one", "two"]),
        (["chains", "a/chains", "b/chains"], None),
    ],
)
def test_labels_are_the_shortest_parts_that_tell_folders_apart(tmp_path, paths, names):
    found = short_names([tmp_path / path for path in paths])
    assert len(set(found)) == len(paths)
    if names is not None:
        assert found == names


def test_what_was_not_finished_is_left_out_and_named(tmp_path, capsys):
    demo = write_demo(tmp_path / "demo")
    write_evaluation(demo / "E2", results=False)
    main(["report", str(demo)])
    assert f"{demo / 'E2'} is not finished and left out" in capsys.readouterr().out


def test_folders_without_an_evaluation_say_what_to_give(tmp_path, capsys):
    assert "does not exist; give a folder that" in refusal(capsys, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no evaluation; give folders that" in refusal(capsys, tmp_path / "empty")
    (tmp_path / "run/policy").mkdir(parents=True)
    (tmp_path / "run/policy/model.safetensors").write_bytes(b"")
    message = refusal(capsys, tmp_path / "run")
    assert f"roboflamingo evaluate --policy {tmp_path}/run/policy --out {tmp_path}/run/chains" in message
    folder = write_evaluation(tmp_path / "half", results=False)
    assert "is not finished (4 chains so far)" in refusal(capsys, folder)
    done = write_evaluation(tmp_path / "done")
    assert f"is a file; give the folder of an evaluation, as {done}" in refusal(capsys, done / "results.json")


def test_what_contradicts_itself_on_the_command_line_is_refused(tmp_path, capsys):
    a, b = write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b")
    page = tmp_path / "page.html"
    assert "say where a page of several folders goes, as --out report.html" in refusal(capsys, a, b, code=2)
    assert "given twice" in refusal(capsys, a, a, "--out", page, code=2)
    assert "both called 'x'; name one" in refusal(capsys, f"x={a}", f"x={b}", "--out", page, code=2)
    assert "both called 'b'; name one" in refusal(capsys, f"b={a}", b, "--out", page, code=2)
    assert "x= names no folder" in refusal(capsys, "x=", "--out", page, code=2)
    assert "there is no such file" in refusal(capsys, a, "--metrics", tmp_path / "none.jsonl")
    (tmp_path / "thesis.html").write_text("<html>mine</html>")
    assert "is no report of ours" in refusal(capsys, a, "--out", tmp_path / "thesis.html")
    assert "is a folder" in refusal(capsys, a, "--out", tmp_path)


def test_no_argument_and_help_show_what_to_type(capsys):
    with pytest.raises(SystemExit) as end:
        main(["report"])
    assert end.value.code == 2 and "folders" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["report", "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "roboflamingo report runs/demo " in text and "[NAME=]FOLDER" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chains", 0), ("chains", True), ("chains", None), ("chain_sr", {}), ("avg_seq_len", 4.0), ("task_info", []),
        ("avg_seq_len", float("nan")), ("settings", None), ("made_with", "me"), ("execute", 0), ("lengths", {"0": 6}),
        ("chain_sr", {str(k): 0.3 for k in range(1, 6)}), ("lengths", {"0": 5}),
    ],
)  # fmt: skip
def test_results_that_lack_or_contradict_something_are_named(tmp_path, capsys, key, value):
    folder = write_evaluation(tmp_path / "a")
    summary = json.loads((folder / "results.json").read_text())["0"]
    write_json(folder / "results.json", {"0": {**summary, key: value}})
    message = refusal(capsys, folder)
    assert f"{folder / 'results.json'}" in message and "evaluate again" in message


def test_results_that_were_edited_do_not_fit_their_checksum(tmp_path):
    folder = write_evaluation(tmp_path / "a")
    summary = json.loads((folder / "results.json").read_text())["0"]
    write_json(folder / "results.json", {"0": sealed(summary)})
    assert read_results(folder)["policy"] == "runs/x/policy"
    text = (folder / "results.json").read_text()
    (folder / "results.json").write_text(text.replace("runs/x/policy", "runs/y/policy"))
    with pytest.raises(UserError, match=r"results\.json does not fit its checksum"):
        read_results(folder)


def test_results_and_chains_that_contradict_each_other_are_refused(tmp_path):
    folder = write_evaluation(tmp_path / "a", known=False)
    text = (folder / "chains.jsonl").read_text()
    (folder / "chains.jsonl").write_text(text.replace('"solved": 3', '"solved": 4'))
    with pytest.raises(UserError, match="contradict each other"):
        read_results(folder)


@pytest.mark.parametrize("name", ["results.json", "chains.jsonl"])
def test_damaged_files_are_errors_of_the_file_or_give_the_same_figures(tmp_path, name):
    folder = write_evaluation(tmp_path / "a", known=False)
    good, figures = (folder / name).read_bytes(), read_results(folder)
    for content in damaged(good, 200, seed=0):
        (folder / name).write_bytes(content)
        try:
            found = [read_results(evaluation) for evaluation in find(folder).evaluations]
        except (UserError, OSError) as error:
            assert str(tmp_path) in str(error)
            continue
        for results in found:
            for key in ("avg_seq_len", "chain_sr", "chains", "lengths"):
                assert results[key] == figures[key]
