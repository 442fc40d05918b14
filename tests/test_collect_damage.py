"""Whatever a disk, a kill or a hand does to a recording: it is noticed, and what can be recorded again is."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recordings import record, three_episodes, tree

from calvin_eval.demonstrations.collection import Account, Claim
from calvin_eval.demonstrations.pieces import NOTES
from calvin_eval.demonstrations.recording import PLAN, Recorder
from calvin_eval.system.errors import UserError
from mutations import damaged

COPIES = 50
"""Damaged copies of each kind of file, of which there are four."""


class Killed(BaseException):
    """Ends a call from within, as a kill would."""


def kill(done: int, total: int) -> None:
    """Kills a numbering after its first episode."""
    raise Killed


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split whose episodes are all recorded and not numbered."""
    folder = tmp_path_factory.mktemp("pieces") / "training"
    record(folder, three_episodes())
    return folder


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split whose numbering was killed after the first episode."""
    folder = tmp_path_factory.mktemp("numbered") / "training"
    with pytest.raises(Killed):
        record(folder, three_episodes()).finish(kill)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole") / "training"
    record(folder, three_episodes()).finish()
    return tree(folder)


def copy(folder: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to / "training")
    return to / "training"


def alike(content: bytes, original: bytes) -> bool:
    """Whether two texts differ in white space at most, which says the same."""
    return b"".join(content.split()) == b"".join(original.split())


def test_a_damaged_piece_is_recorded_again(tmp_path: Path, pieces: Path, whole: dict[str, str]) -> None:
    recorder = Recorder(copy(pieces, tmp_path), "D")
    file = recorder.folder / ".pieces" / "000001" / NOTES
    original = file.read_bytes()
    for content in damaged(original, COPIES):
        if alike(content, original):
            continue
        file.write_bytes(content)
        assert [recorder.has(number) for number in range(3)] == [True, False, True]
        with pytest.raises(UserError, match="000001 is damaged"):
            recorder.finish()
    recorder.write(1, "D", three_episodes()[1])
    recorder.finish()
    assert tree(recorder.folder) == whole


def test_a_damaged_plan_is_made_anew_from_the_pieces(tmp_path: Path, numbered: Path, whole: dict[str, str]) -> None:
    recorder = Recorder(copy(numbered, tmp_path), "D")
    plan = (numbered / PLAN).read_bytes()
    for content in damaged(plan, COPIES):
        (recorder.folder / PLAN).write_bytes(content)
        with pytest.raises(Killed):
            recorder.finish(kill)
        assert (recorder.folder / PLAN).read_bytes() == plan
    recorder.finish()
    assert tree(recorder.folder) == whole


def test_a_damaged_claim_is_refused(tmp_path: Path) -> None:
    claim = Claim(tmp_path, {"seed": 3, "episode": {"tasks": 2}}, {"seed": 0, "episode": {"tasks": 5}}, {"policy": "a"})
    claim.write()
    whole = claim.path.read_bytes()
    claim.check(False)
    for content in damaged(whole, COPIES, seed=1):
        claim.path.write_bytes(content)
        if not alike(content, whole):
            with pytest.raises(UserError, match=r"settings\.json|other settings|another version"):
                claim.check(False)


def test_a_damaged_account_is_written_anew_and_its_seconds_are_unknown(tmp_path: Path) -> None:
    counts = {"training": {"frames": 10, "bytes": 5000}}
    Account(tmp_path).close(counts, {"seed": 3}, {})
    whole = (tmp_path / "collection.json").read_bytes()
    assert Account(tmp_path).complete
    for content in damaged(whole, COPIES, seed=2):
        (tmp_path / "collection.json").write_bytes(content)
        account = Account(tmp_path)
        if not alike(content, whole):
            assert not account.complete and account.seconds is None
    account.close(counts, {"seed": 3}, {})
    assert Account(tmp_path).complete


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_frame_that_is_missing_or_cut_short_stops_finishing_before_anything_is_written(
    tmp_path: Path, pieces: Path, change: object
) -> None:
    recorder = Recorder(copy(pieces, tmp_path), "D")
    change(recorder.folder / ".pieces" / "000001" / "00003.npz")  # type: ignore[operator]
    before = tree(recorder.folder)
    with pytest.raises(UserError, match=r"000001/00003\.npz is missing or damaged"):
        recorder.finish()
    assert tree(recorder.folder) == before
    assert not recorder.has(1)


def test_a_frame_that_is_missing_while_numbering_is_named(tmp_path: Path, numbered: Path) -> None:
    recorder = Recorder(copy(numbered, tmp_path), "D")
    (recorder.folder / "episode_0000066.npz").unlink()
    with pytest.raises(UserError, match=r"000000/00002\.npz is missing"):
        recorder.finish()


def test_frames_of_another_origin_are_not_taken_in(tmp_path: Path, pieces: Path) -> None:
    recorder = Recorder(copy(pieces, tmp_path), "D")
    (recorder.folder / "episode_0000121.npz").write_bytes(b"another's")
    with pytest.raises(UserError, match=r"episode_0000121\.npz is no frame of this data set, which has 57"):
        recorder.finish()
    assert not recorder.finished


def test_pieces_that_were_made_otherwise_do_not_count(tmp_path: Path, pieces: Path) -> None:
    recorder = Recorder(copy(pieces, tmp_path), "D", maker="other settings")
    assert not any(recorder.has(number) for number in range(3))
    with pytest.raises(UserError, match="nothing to finish"):
        recorder.finish()


def test_a_plan_and_pieces_that_are_both_lost_are_said(tmp_path: Path, numbered: Path) -> None:
    recorder = Recorder(copy(numbered, tmp_path), "D")
    shutil.rmtree(recorder.folder / ".pieces")
    (recorder.folder / PLAN).write_text("{")
    with pytest.raises(UserError, match=r"\.plan\.json is damaged; remove"):
        recorder.finish()


def test_nothing_temporary_is_left_and_all_files_have_one_mode(tmp_path: Path, pieces: Path) -> None:
    recorder = Recorder(copy(pieces, tmp_path), "D")
    (recorder.folder / ".pieces" / "000001.part").mkdir()  # what a kill leaves
    (recorder.folder / ".pieces" / "000001.part" / "00000.npz").write_bytes(b"half")
    recorder.finish()
    files = [path for path in recorder.folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.startswith(".")]
    assert len({path.stat().st_mode for path in files}) == 1


def test_a_full_disk_names_the_file_and_leaves_no_half_piece(tmp_path: Path, pieces: Path) -> None:
    least = min(file.stat().st_size for file in pieces.rglob("*.npz"))
    program = (
        "import resource, sys; from pathlib import Path; from recordings import record, three_episodes\n"
        f"made = three_episodes(); resource.setrlimit(resource.RLIMIT_FSIZE, ({least // 2}, {least // 2}))\n"
        f"record(Path({str(tmp_path)!r}), made)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert "OSError: [Errno 27] File too large: " in done.stderr
    assert "000000.part/00000.npz" in done.stderr
    assert not list((tmp_path / ".pieces").iterdir())
