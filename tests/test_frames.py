"""What a frame and its annotations may be: each value that no policy could learn from is refused with file and key."""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import Frame, SourceOptions
from roboflamingo.data.sources.calvin.annotations import read_segments
from roboflamingo.data.sources.calvin.frames import VECTORS, CalvinReader
from roboflamingo.data.sources.calvin.plain import load_plain_dict
from synthetic import source_of, write_frame, write_split

WHOLE = ("rgb_static", "rgb_gripper", "robot_obs", "scene_obs", "actions")
ACTION = np.array([0.5, -1.0, 0.25, 0, 0, 1.0, -1])


def read_only(path: Path, names: tuple[str, ...], options: SourceOptions | None = None) -> Frame:
    """A frame, as far as these arrays are asked for."""
    options, lengths = options or SourceOptions(), VECTORS | {"force": 2}
    order = np.arange(3)[None]
    reader = CalvinReader(path.parent, (path.name,), order, lengths, options.actions, options.out_of_range, {})
    (frame,) = reader.frames(names)
    if isinstance(frame, DataError):
        raise frame
    return frame


def read(path: Path, options: SourceOptions | None = None, **replaced: Any) -> Frame:
    write_frame(path, np.random.default_rng(0), **replaced)
    return read_only(path, (*WHOLE, *(name for name in replaced if name == "force")), options)


# --- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("robot_obs", np.full(15, 1e39), r"robot_obs .* finite numbers in float32: \[0\] is 1e\+39"),
        ("scene_obs", np.append(np.zeros(23), -1e300), r"scene_obs .* in float32: \[23\] is -1e\+300"),
        ("robot_obs", np.append(np.zeros(14), 2e3), r"robot_obs holds 2000, which is no length \(m\) and no angle"),
        ("robot_obs", np.array(["a"] * 15), r"robot_obs of shape \(15,\) and type <U1 is not 15 finite numbers"),
        ("robot_obs", np.zeros(15, bool), "robot_obs .* type bool is not 15 finite numbers"),
        ("robot_obs", np.zeros(15, complex), "robot_obs .* type complex128 is not 15 finite numbers"),
        ("rgb_static", np.zeros((0, 40, 3), np.uint8), r"rgb_static is uint8 \(0, 40, 3\)"),
        ("rgb_gripper", np.zeros((24, 0, 3), np.uint8), r"rgb_gripper is uint8 \(24, 0, 3\)"),
        ("rel_actions", ACTION * [1, 1, 1, 1, 50, 50, 1], r"rel_actions\[5\] is 50; .* set data.out_of_range to clip"),
        ("rel_actions", ACTION * [1, 1.00001, 1, 1, 1, 1, 1], r"rel_actions\[1\] is -1.00001; .*\[-1, 1\]"),
        ("rel_actions", ACTION * [1, 1, 1, 1, 1, 1, 0.5], r"rel_actions\[6\] is -0.5"),
    ],
)
def test_values_that_no_policy_could_learn_from_are_named(
    tmp_path: Path, key: str, value: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=rf"episode_0000000\.npz: {message}"):
        read(tmp_path / "episode_0000000.npz", **{key: value})


def test_vectors_too_are_checked_in_float32(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"force .* in float32: \[1\] is 1e\+39"):
        read(tmp_path / "frame.npz", force=np.array([0, 1e39]))


def test_rounding_beyond_one_is_no_fault(tmp_path: Path) -> None:
    action = np.array([1 + 1e-7, -1 - 1e-7, 0, 0, 0, np.nextafter(1, 2), 1])
    frame = read(tmp_path / "frame.npz", rel_actions=action)
    assert frame.beyond == 0
    assert np.abs(frame.arrays["actions"]).max() <= 1 + 1e-6


def test_actions_beyond_one_are_clipped_where_asked(tmp_path: Path) -> None:
    options = SourceOptions(out_of_range="clip")
    frame = read(tmp_path / "frame.npz", options, rel_actions=np.array([50, -3, 0.5, 0, 0, 1, -1]))
    assert frame.arrays["actions"].tolist() == [1, -1, 0.5, 0, 0, 1, -1]
    assert frame.beyond == 50


@pytest.mark.parametrize("pose", [[300, 0, 400, 0, 0, 0], [0.1, 0, 0.4, 180, 0, 90], [1e39, 0, 0, 0, 0, 0]])
def test_absolute_actions_are_poses_in_metres_and_rad(tmp_path: Path, pose: list[float]) -> None:
    options = SourceOptions(actions="absolute")
    with pytest.raises(DataError, match=r"frame\.npz: actions .*(is no pose: it should be metres, then rad|float32)"):
        read(tmp_path / "frame.npz", options, actions=np.array([*pose, 1]))
    read(tmp_path / "frame.npz", options, actions=np.array([0.1, -0.2, 0.5, 3.1, 0, -3.1, 1]))


def test_a_frame_needs_only_what_the_policy_reads(tmp_path: Path) -> None:
    path = tmp_path / "frame.npz"
    write_frame(path, np.random.default_rng(0))
    with np.load(path) as whole:
        bare = {key: whole[key] for key in ("rgb_static", "robot_obs", "rel_actions")}
    np.savez_compressed(path, **bare)  # type: ignore[arg-type]
    frame = read_only(path, ("rgb_static", "robot_obs", "actions"))
    assert sorted(frame.arrays) == ["actions", "rgb_static", "robot_obs"]
    with pytest.raises(DataError, match=r"has no scene_obs; it holds rgb_static, robot_obs, rel_actions"):
        read_only(path, ("rgb_static", "robot_obs", "scene_obs"))


# --- annotations -----------------------------------------------------------------------------------------


def annotated(folder: Path, sentences: Any, tasks: Any = ("open_drawer", "close_drawer"), bounds: Any = None) -> Path:
    content = {
        "language": {"ann": sentences, "task": tasks, "emb": np.zeros((2, 1, 4), np.float32)},
        "info": {"episodes": [], "indx": [(0, 3), (3, 5)] if bounds is None else bounds},
    }
    (folder / "lang_annotations").mkdir(parents=True, exist_ok=True)
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", content, allow_pickle=True)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize(
    ("sentences", "tasks"),
    [
        (["open it", "schließe es"], ["open_drawer", "close_drawer"]),
        ([b"open it", "schließe es".encode()], [b"open_drawer", b"close_drawer"]),
        ([["open it"], ("schließe es",)], [["open_drawer"], [b"close_drawer"]]),
        (np.array([["open it"], ["schließe es"]]), np.array(["open_drawer", "close_drawer"])),
        (np.array(["open it", "schließe es"], object), (np.str_("open_drawer"), np.bytes_(b"close_drawer"))),
        ([np.array(["open it"]), np.array("schließe es")], [np.array([b"open_drawer"]), np.array(["close_drawer"])]),
    ],
)
def test_sentences_and_tasks_become_text_whatever_they_are_wrapped_in(
    tmp_path: Path, sentences: Any, tasks: Any
) -> None:
    segments = read_segments(annotated(tmp_path, sentences, tasks))
    assert [s.instruction for s in segments] == ["open it", "schließe es"]
    assert [s.task for s in segments] == ["open_drawer", "close_drawer"]
    assert {type(s.instruction) for s in segments} | {type(s.task) for s in segments} == {str}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (None, "None is no text"),
        ([], r"\[\] is no text"),
        (["two", "wordings"], r"\['two', 'wordings'\] is no text"),
        (7, "7 is no text"),
        (b"\xff\xfe", "can't decode byte 0xff"),
        ("  ", "'  ' has no words"),
        ("op\x00n", "is damaged text"),
    ],
)
def test_rows_that_are_no_text_are_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"auto_lang_ann\.npy: language\.ann of segment 1: .*{message}"):
        read_segments(annotated(tmp_path, ["open it", row]))
    with pytest.raises(DataError, match=rf"auto_lang_ann\.npy: language\.task of segment 1: .*{message}"):
        read_segments(annotated(tmp_path, ["open it", "close it"], ["open_drawer", row]))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([(0, 3), (3.5, 5)], r"info\.indx of segment 1: 3\.5 is no whole number"),
        ([(0, 3), (3, None)], r"info\.indx of segment 1: None is no number"),
        ([(0, 3), (3, 4, 5)], r"info\.indx of segment 1: too many values"),
        ([(0, 3), 5], r"info\.indx of segment 1: .*int"),
        ([(0, 3), (3, 2**60)], r"segment 1 has 1152921504606846973 frames, .* that cannot be right"),
        (5, r"info\.indx is a int; a list"),
    ],
)
def test_bounds_that_are_no_frames_are_named(tmp_path: Path, bounds: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"auto_lang_ann\.npy: {message}"):
        read_segments(annotated(tmp_path, ["open it", "close it"], bounds=bounds))


PLAIN = {
    "dict": OrderedDict(a=[1, 2.5, "three", None, True]),
    "bytes": b"\x00\xff",
    "empty": b"",
    "scalar": np.float32(2),
    "word": np.str_("open"),
    "words": np.array(["open", "schließe"]),
    "bytes words": np.array([b"open"]),
    "array": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "strided": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "objects": np.array([[1, "x"]], object),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_read_in_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    array = np.empty((), object)
    array[()] = PLAIN
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    for content in (array, PLAIN):
        for numpy in (b"numpy._core", b"numpy.core"):
            pickled = pickle.dumps(content, protocol).replace(b"numpy._core", numpy) if protocol < 4 else b""
            path = tmp_path / "plain.npy"
            path.write_bytes(header.getvalue() + (pickled or pickle.dumps(content, protocol)))
            assert pickle.dumps(load_plain_dict(path)) == pickle.dumps(PLAIN)


def test_npy_version_3_is_read(tmp_path: Path) -> None:
    array = np.array({"a": 1}, object)
    with (tmp_path / "v3.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=(3, 0))
    assert load_plain_dict(tmp_path / "v3.npy") == {"a": 1}


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = (function, arguments)

    def __reduce__(self) -> Any:
        return self.what


def _copyreg_reconstructor() -> Any:
    import copyreg

    return copyreg._reconstructor  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "hostile",
    [
        Calls(eval, "1"),
        Calls(getattr, "a", "upper"),
        Calls(_copyreg_reconstructor(), dict, dict, {}),
        Calls(np.load, "x"),
        Calls(np.fromfile, "x"),
        Calls(io.open, "/tmp/x", "w"),
    ],
)
def test_nothing_else_is_ever_called(tmp_path: Path, hostile: Calls, protocol: int) -> None:
    path = tmp_path / "hostile.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump({"language": hostile}, file, protocol)
    with pytest.raises(DataError, match=r"hostile\.npy cannot be read: .* which is not plain data"):
        load_plain_dict(path)


def test_a_file_cannot_change_what_it_is_given(tmp_path: Path) -> None:
    """BUILD sets attributes: on a function of ours, its defaults for whoever calls it next."""
    build = b"\x80\x02c_codecs\nencode\n}X\x0c\x00\x00\x00__defaults__NsNq\x00\x86b."
    with (tmp_path / "build.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(build)
    with pytest.raises(DataError, match=r"build\.npy"):
        load_plain_dict(tmp_path / "build.npy")


# --- folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["episode_{:06d}.npz", "episode_{}.npz", "frame{:09d}.npz"])
def test_frames_have_any_prefix_and_number_of_digits(tmp_path: Path, pattern: str) -> None:
    write_split(tmp_path, lengths=[3])
    for file in tmp_path.glob("episode_*.npz"):
        file.rename(file.with_name(pattern.format(int(file.stem.removeprefix("episode_")))))
    source = source_of(tmp_path)
    rows = np.searchsorted(source.ids, [100, 101, 102])
    assert [source.name(row) for row in rows] == [str(tmp_path / pattern.format(frame)) for frame in (100, 101, 102)]
    (tmp_path / pattern.format(101)).unlink()
    source = source_of(tmp_path)
    (problem,) = source.reader(source.missing).frames(WHOLE)
    assert re.search(rf"{pattern.format(101)} is missing, but segment 0", str(problem))


def test_a_frame_that_is_there_twice_and_a_folder_without_frames_are_named(tmp_path: Path) -> None:
    write_split(tmp_path, lengths=[3])
    (tmp_path / "episode_101.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds frame 101 twice, as episode_\w+\.npz and episode_\w+\.npz"):
        len(source_of(tmp_path))
    for file in tmp_path.glob("episode_*.npz"):
        file.unlink()
    with pytest.raises(DataError, match="holds no frames; CALVIN's are episode_0000000"):
        len(source_of(tmp_path))


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        ({"calvin_scene_A": [100]}, "should be the first and the last"),
        ({"calvin_scene_A": None}, "should be the first and the last"),
        ({"calvin_scene_A": [103, 100]}, "calvin_scene_A has no frames: 103 to 100"),
        ({"calvin_scene_E": [0, 9]}, "names the scene 'calvin_scene_E'; known are A, B, C, D"),
        ({7: [0, 9]}, "names the scene 7"),
    ],
)
def test_damaged_scene_ranges_are_named(tmp_path: Path, scenes: Any, message: str) -> None:
    write_split(tmp_path, lengths=[3])
    np.save(tmp_path / "scene_info.npy", scenes, allow_pickle=True)
    with pytest.raises(DataError, match=rf"scene_info\.npy.*{message}"):
        source = source_of(tmp_path)
        source.block_order(np.arange(len(source)))
