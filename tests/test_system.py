"""Files, locks, processes, machine: what everything else relies on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calvin_eval.system import machine, processes
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import append_line, read_lines, replace_folder, write_atomic, write_json
from calvin_eval.system.locks import LOCK, folder_lock, hold_in_use, is_in_use
from calvin_eval.system.processes import WorkerError, WorkerKilledError, run_jobs, run_workers
from calvin_eval.system.provenance import fingerprint
from calvin_eval.system.signals import Stopped, stop_signals
from mutations import damaged

# --- files ------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})

    def fail(file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_atomic(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_full_disk_is_an_error_that_names_the_file() -> None:
    with pytest.raises(OSError, match=r"No space left.*/dev/full"):
        append_line(Path("/dev/full"), {"index": 0})


def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_a_line_that_a_kill_cut_short_is_left_out_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    path.write_bytes(path.read_bytes() + b'{"a": 2')
    assert read_lines(path) == [{"a": 1}]
    assert read_lines(path, mend=True) == [{"a": 1}]
    append_line(path, {"a": 3})
    assert read_lines(path) == [{"a": 1}, {"a": 3}]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(UserError, match=r"lines\.jsonl, line 2 is damaged"):
        read_lines(path)


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]


def test_a_fingerprint_is_of_content_and_not_of_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"123")
    first = fingerprint(tmp_path / "a")
    assert first == fingerprint(tmp_path / "b")
    (tmp_path / "b" / ".lock").touch()
    assert first == fingerprint(tmp_path / "b")
    (tmp_path / "b" / "weights").write_bytes(b"124")
    assert first != fingerprint(tmp_path / "b")


def test_damaged_copies_are_all_damaged() -> None:
    content = bytes(range(256)) * 4
    copies = list(damaged(content, 64))
    assert len(copies) == 64
    assert content not in copies
    assert copies == list(damaged(content, 64))


# --- locks ------------------------------------------------------------------------------------


def test_a_file_is_in_use_until_the_last_of_its_users_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    assert not is_in_use(path)
    first, second = hold_in_use(path), hold_in_use(path)
    os.close(first)
    assert is_in_use(path)
    os.close(second)
    assert not is_in_use(path)


HOLD = """
import sys, time
from pathlib import Path
from calvin_eval.system.locks import folder_lock
with folder_lock(Path(sys.argv[1]), "roboflamingo collect"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_and_a_kill_frees_the_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(UserError, match=f"in use by roboflamingo collect, process {holder.pid}"),
        folder_lock(tmp_path, "x"),
    ):
        pass
    holder.kill()
    holder.wait()
    with folder_lock(tmp_path, "x"):
        assert (tmp_path / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


# --- processes --------------------------------------------------------------------------------


def square(number: int) -> int:
    return number * number


def fail_by_user(number: int) -> int:
    raise UserError(f"episodes {number} is too many")


def fail_by_fault(number: int) -> int:
    return number // 0


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def variable(name: str) -> str | None:
    return os.environ.get(name)


def sleep_for_ever(number: int) -> int:
    time.sleep(1000)
    return number


def countdown(inbox: Any, number: int) -> Iterator[int]:
    yield from range(number)


def test_jobs_run_in_processes_and_all_come_back() -> None:
    assert sorted(run_jobs(square, range(20), 2)) == [n * n for n in range(20)]
    assert list(run_jobs(square, [], 2)) == []


def test_workers_yield_as_many_results_as_they_like() -> None:
    assert sorted(run_workers(countdown, [(2,), (3,)])) == [0, 0, 1, 1, 2]


def test_workers_get_variables_that_the_parent_does_not_keep() -> None:
    assert list(
        run_jobs(variable, ["OMP_NUM_THREADS_OF_A_TEST"], 1, environment={"OMP_NUM_THREADS_OF_A_TEST": "1"})
    ) == ["1"]
    assert "OMP_NUM_THREADS_OF_A_TEST" not in os.environ


def test_a_users_error_comes_out_of_a_worker_as_it_is() -> None:
    with pytest.raises(UserError, match=r"^episodes 7 is too many$"):
        list(run_jobs(fail_by_user, [7], 1))


def test_a_fault_comes_out_with_the_workers_traceback() -> None:
    with pytest.raises(WorkerError, match=r"(?s)Traceback.*fail_by_fault.*ZeroDivisionError"):
        list(run_jobs(fail_by_fault, [7], 1))


def test_a_killed_worker_is_an_error_that_says_so() -> None:
    with pytest.raises(WorkerKilledError, match=r"killed by SIGKILL.*lack of memory.*the same command continues it"):
        list(run_jobs(die, [1], 1))


def leave(number: int) -> int:
    os._exit(3)


def test_a_worker_that_ends_without_a_word_is_a_fault() -> None:
    with pytest.raises(WorkerError, match="ended with exit code 3") as raised:
        list(run_jobs(leave, [1], 1))
    assert not isinstance(raised.value, UserError)


class Holder:
    """Works for ever, or not at all, and notes in a file that it was closed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def close(self) -> None:
        with self._path.open("a") as file:
            file.write("closed\n")


def test_workers_close_what_they_hold_when_they_are_done_or_told_to_go(tmp_path: Path) -> None:
    list(run_jobs(Holder(tmp_path / "done"), [0.0, 0.0], 2))
    assert (tmp_path / "done").read_text() == "closed\n" * 2
    results = run_workers(processes._take_jobs, [(Holder(tmp_path / "told"),)] * 2, processes._Feed(iter([0, 9, 9]), 2))
    assert next(results) == 0
    time.sleep(0.3)
    results.close()
    assert (tmp_path / "told").read_text() == "closed\n" * 2


PARENT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_system import sleep_for_ever
from calvin_eval.system import processes
from calvin_eval.system.processes import run_jobs
from calvin_eval.system.signals import Stopped, stop_signals
end = processes._worker
if __name__ == "__main__":
    import multiprocessing, threading
    def tell():
        while len(multiprocessing.active_children()) < 2:
            pass
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    threading.Thread(target=tell).start()
    try:
        with stop_signals():
            list(run_jobs(sleep_for_ever, [1, 2], 2))
    except Stopped as stopped:
        sys.exit(128 + stopped.signal)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_worker_outlives_its_parent(tmp_path: Path, number: int, code: int) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(Path(__file__).parent)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    time.sleep(0.5)
    parent.send_signal(number)
    start = time.monotonic()
    _, errors = parent.communicate(timeout=20)
    assert parent.returncode == code
    assert b"Traceback" not in errors
    while any(Path(f"/proc/{worker}/exe").exists() for worker in workers):
        assert time.monotonic() - start < 10
        time.sleep(0.05)


def test_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), stop_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is before


# --- machine ----------------------------------------------------------------------------------


def test_cores_are_those_of_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_container_share", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert machine.cores() == 3
    monkeypatch.setattr(machine, "_container_share", lambda: 2)
    assert machine.cores() == 2


def test_the_processor_is_named_with_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine.processor().name
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in str(machine.processor())
    assert machine.matmul_gflops() > 0.1


def test_waiting_is_short() -> None:
    assert processes.POLL_S + processes.GRACE_S < 1
