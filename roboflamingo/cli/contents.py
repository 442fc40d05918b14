"""What a file or folder is and holds, for `roboflamingo info`: everything that this project writes or reads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_json, read_lines

Rows = Iterator[tuple[str, str]]

SPLITS = ("training", "validation")


def describe(path: Path) -> Rows:
    """What a file or folder is, and what it holds.

    Raises:
        UserError: there is no such thing, it is of no kind that is known, or damaged. Names it.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file():
        yield from _file(path)
        return
    for is_one, tell in KINDS:
        if is_one(path):
            yield from tell(path)
            return
    inside = [(entry.name, kind) for entry in sorted(path.iterdir()) if entry.is_dir() and (kind := _kind(entry))]
    if not inside:
        raise UserError(
            f"{path} is nothing that is known here: no data set, packed data, run, demo, evaluation, policy or "
            "published model"
        )
    yield path.name, "a folder of:"
    yield from ((f"  {name}", kind) for name, kind in inside)


def _kind(folder: Path) -> str | None:
    """What a folder is, in a few words."""
    return next((NAMES[tell] for is_one, tell in KINDS if is_one(folder)), None)


def _file(path: Path) -> Rows:
    """A file of weights."""
    from roboflamingo.weights.files import read_tensors

    if path.name == "last.ckpt":
        yield path.name, f"what the run {path.parent} needs to go on; its policy is in {path.parent / 'policy'}"
        return
    if path.suffix in (".yaml", ".json", ".jsonl", ".npz", ".npy", ".html", ".mp4", ".md", ".txt", ".py"):
        raise UserError(
            f"{path} is a file; info tells of folders and of files of weights: try {path.absolute().parent}"
        )
    tensors = read_tensors(path)
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    numbers = sum(tensor.numel() for tensor in tensors.values())
    yield path.name, f"weights: {len(tensors)} tensors, {numbers:,} numbers ({', '.join(types)}), {_size(path)}"
    yield from _parts({name: tuple(tensor.shape) for name, tensor in tensors.items()})


def _parts(shapes: dict[str, tuple[int, ...]]) -> Rows:
    """Numbers in each part, by the first word of the tensors' names."""
    sizes: Counter[str] = Counter()
    for name, shape in shapes.items():
        sizes[name.split(".")[0]] += math.prod(shape)
    for part, size in list(sizes.items())[:20]:
        yield f"  {part}", f"{size:,}"
    if len(sizes) > 20:
        yield f"  and {len(sizes) - 20} more", ""


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float)


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _data_set(folder: Path) -> Rows:
    """The splits of a CALVIN data set, and how far its collection is if it is one of ours."""
    if (folder / "settings.json").is_file():
        yield from _collection(folder)
    for split in SPLITS:
        if (folder / split).is_dir():
            yield from (_packed if _holds("digests.npy")(folder / split) else _split)(folder / split)


def _collection(folder: Path) -> Rows:
    from calvin_eval.demonstrations.pieces import NOTES
    from calvin_eval.demonstrations.recording import PIECES

    held = read_json(folder / "settings.json", "the settings of a collection")
    settings = _mapping(_mapping(held).get("settings", held))
    wanted = {"training": settings.get("episodes"), "validation": settings.get("validation_episodes")}
    scenes = f"scenes {settings.get('scenes', '?')}, validation in {settings.get('validation_scene', '?')}"
    path = folder / "collection.json"
    made = _mapping(read_json(path, "the counts of a collection")) if path.is_file() else {}
    if "made_with" in made and not any((folder / split / PIECES).exists() for split in SPLITS):
        revision = _mapping(made["made_with"]).get("git", "unknown")
        yield "collection", f"finished; {scenes}; made by revision {revision}"
        return
    yield "collection", f"not finished; the same `roboflamingo collect` continues it; {scenes}"
    for split in SPLITS:
        pieces = len(list((folder / split / PIECES).glob(f"*/{NOTES}")))
        if pieces or not (folder / split / "ep_start_end_ids.npy").is_file():
            yield f"  {split}", f"{pieces} of {wanted[split]} episodes recorded"


def _split(folder: Path) -> Rows:
    """Frames and segments of a CALVIN split."""
    from roboflamingo.data.sources.calvin.annotations import read_segments

    files = list(folder.glob("episode_*.npz"))
    size = sum(file.stat().st_size for file in files)
    yield folder.name, f"{len(files)} frames in {size / 1e9:.2f} GB"
    digits = sorted({len(file.stem.removeprefix("episode_")) for file in files})
    if digits and digits != [7]:
        yield "  names", f"frame numbers of {' and '.join(map(str, digits))} digits, where CALVIN has 7"
    languages = sorted(path.parent.name for path in folder.glob("lang*/auto_lang_ann.npy"))
    if not languages:
        yield "  segments", "none: no lang_*/auto_lang_ann.npy, without which nothing can be trained from it"
        return
    segments = read_segments(folder, languages[0])
    tasks = Counter(segment.task for segment in segments)
    frames = {frame for segment in segments for frame in range(segment.start, segment.stop)}
    sentences = {segment.instruction for segment in segments}
    counts = f"{len(segments)} of {len(tasks)} tasks, {len(sentences)} sentences, {len(frames)} frames"
    yield "  segments", f"{counts} ({', '.join(languages)})"
    yield from ((f"    {task}", str(count)) for task, count in sorted(tasks.items()))


def _packed(folder: Path) -> Rows:
    """Arrays of a packed split."""
    unfinished = ", not finished; the next training continues it" if folder.name.endswith(".building") else ""
    yield folder.name, f"packed data{unfinished}"
    for path in sorted(folder.glob("*.npy")):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path} is damaged: {error}; delete {folder}, and it is packed anew") from error
        yield f"  {path.stem}", f"{' x '.join(map(str, array.shape))} {array.dtype}, {_size(path)}"


def _demo(folder: Path) -> Rows:
    """The parts of a demo."""
    yield folder.name, "a demo"
    if (folder / "results.json").is_file():
        results = read_json(folder / "results.json", "the results of a demo")
        for label, value in _mapping(results).items():
            if isinstance(value, dict) and _is_number(value.get("avg_seq_len")):
                yield f"  {label}", f"average length {value['avg_seq_len']:.2f}"
    if (folder / "report.html").is_file():
        yield "  report", str(folder / "report.html")
    parts = [folder, *sorted(folder.glob("data/*"))]
    for part in (entry for parent in parts for entry in sorted(parent.iterdir()) if entry.is_dir()):
        if kind := _kind(part):
            yield f"  {part.relative_to(folder)}", kind


def _evaluation(folder: Path) -> Rows:
    """How far an evaluation is, and what it came to."""
    held = read_json(folder / "settings.json", "the settings of an evaluation")
    settings = _mapping(_mapping(held).get("settings"))
    lines = read_lines(folder / "chains.jsonl")
    done = len({line.get("index") for line in lines if isinstance(line, dict)})
    finished = (folder / "results.json").is_file()
    rest = "" if finished else "; the same `roboflamingo evaluate` continues it"
    word = "chains" if "chains" in settings else "episodes"
    yield folder.name, f"an evaluation: {done} of {settings.get(word, '?')} {word}{rest}"
    if "set" in settings:
        yield "  set of chains", str(settings["set"])
    for key in ("policy", "execute", "leash"):
        if key in _mapping(held):
            yield f"  {key}", str(held[key])
    if finished:
        results = read_json(folder / "results.json", "the results of an evaluation")
        for summary in map(_mapping, _mapping(results).values()):
            if "avg_solved" in summary:  # a benchmark without a layout of its own
                yield f"  {summary.get('benchmark')}", f"{summary['avg_solved']} sub-tasks solved on average"
                continue
            length, rates = summary.get("avg_seq_len"), _mapping(summary.get("chain_sr"))
            yield "  average length", f"{length:.2f} of 5" if _is_number(length) else "not said"
            solved = (f"{count}: {rate:.1%}" for count, rate in rates.items() if _is_number(rate))
            yield "  solved in a row", ", ".join(solved)


def _run(folder: Path) -> Rows:
    """How far a run is."""
    lines = [line for line in read_lines(folder / "metrics.jsonl") if isinstance(line, dict)]
    trained = [line for line in lines if _is_number(line.get("loss"))]
    held_out = [line for line in lines if _is_number(line.get("val_loss"))]
    yield folder.name, "a training run" if trained else "a training run that has logged no step yet"
    if trained:
        last = trained[-1]
        seconds = last.get("elapsed_s")
        minutes = f", {seconds / 60:.1f} minutes" if _is_number(seconds) else ""
        yield "trained", f"{last.get('step')} steps, {last.get('epoch')} epochs{minutes}"
        yield "loss", f"{last['loss']:.4f}"
    if held_out:
        best = min(held_out, key=lambda line: line["val_loss"])
        yield "held-out loss", f"{held_out[-1]['val_loss']:.4f}, best {best['val_loss']:.4f} at step {best.get('step')}"
    for name in ("policy", "policy_best"):
        if (folder / name).is_dir():
            yield from _policy(folder / name)


def _policy(folder: Path) -> Rows:
    """What a policy is like, and the sizes of its parts."""
    from safetensors import SafetensorError, safe_open

    from roboflamingo.weights.checkpoint import CONFIG, WEIGHTS, check_policy, read_config

    check_policy(folder)
    config = read_config(folder / CONFIG)
    yield (
        folder.name,
        f"a policy: {config.described()}, window {config.window}, chunks of {config.chunk}, {config.actions} actions",
    )
    acting = {"E": config.acting.execute, "leash": config.acting.leash}
    chosen = ", ".join(f"{key} {value}" for key, value in acting.items() if value is not None)
    yield "  acts with", chosen or "E and leash not chosen: closed loop, none"
    path, shapes, types = folder / WEIGHTS, {}, set()
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                part = file.get_slice(name)
                shapes[name] = tuple(part.get_shape())
                types.add(part.get_dtype())
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error
    numbers = sum(map(math.prod, shapes.values()))
    yield f"  {WEIGHTS}", f"{numbers:,} numbers ({', '.join(sorted(types))}), {_size(path)}"
    yield from ((f"  {name}", value) for name, value in _parts(shapes))


def _published(folder: Path) -> Rows:
    """A language model in transformers' layout."""
    held = read_json(folder / "config.json", "the configuration of a model")
    kind = _mapping(held).get("model_type", "unknown")
    yield folder.name, f"a published model of type {kind}, for backbone.language.source"
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("tokenizer*.json")]):
        yield f"  {path.name}", _size(path)


def _holds(*names: str) -> Callable[[Path], bool]:
    """Whether a folder holds all of these."""
    return lambda folder: all((folder / name).exists() for name in names)


def _has(pattern: str) -> Callable[[Path], bool]:
    """Whether anything in a folder is named so."""
    return lambda folder: next(folder.glob(pattern), None) is not None


def _is_data_set(folder: Path) -> bool:
    unfinished = (folder / "settings.json").is_file() and folder.name.startswith("task_")
    return any((folder / split).is_dir() for split in SPLITS) or (unfinished and not _is_evaluation(folder))


def _is_evaluation(folder: Path) -> bool:
    beside = ("chains.jsonl", "environment.json", "results.json")
    return (folder / "settings.json").is_file() and any((folder / name).is_file() for name in beside)


KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Rows]], ...] = (
    (_is_data_set, _data_set),
    (_has("lang*/auto_lang_ann.npy"), _split),
    (_has("episode_*.npz"), _split),
    (_holds("digests.npy"), _packed),
    (_is_evaluation, _evaluation),
    (lambda folder: _holds("data", "config.yaml")(folder) and _has("train*")(folder), _demo),
    (_holds("config.yaml", "weights.safetensors"), _policy),
    (_holds("metrics.jsonl"), _run),
    (_holds("config.yaml", "last.ckpt"), _run),
    (_holds("config.json"), _published),
)
"""How each kind of folder is known, the surest sign first, and what is told of it."""

NAMES: dict[Callable[[Path], Rows], str] = {
    _data_set: "a data set",
    _split: "a split of a data set",
    _packed: "packed data",
    _evaluation: "an evaluation",
    _demo: "a demo",
    _policy: "a policy",
    _run: "a training run",
    _published: "a published model",
}
