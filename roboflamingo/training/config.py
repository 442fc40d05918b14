"""What a training run can be told. These fields are the command line's and the YAML file's keys."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from roboflamingo.policy import PolicyConfig


class ConfigError(ValueError):
    """Values that contradict each other or the run they are to continue. The message says which."""


@dataclass
class DataConfig:
    """Which demonstrations are trained on.

    Attributes:
        folders: CALVIN data sets, each with `training/` and, for held-out windows, `validation/`; the
            number says how often a window of that folder is drawn relative to the others' (DAgger rounds
            are further folders).
        cache: where packed copies go; None for `packed/` in the first folder.
        stride: recorded frames (30 Hz) from one frame of a window to the next.
        actions: the recorded actions to imitate: relative ones, or absolute poses.
        language: the sub-folder of a split that holds `auto_lang_ann.npy`.
        balance_tasks: draws every task equally often instead of every window.
        workers: processes that read ahead; 0 reads between two steps, which takes about a millisecond.
        pack_processes: processes that pack; None for one per core.
    """

    folders: dict[str, float]
    cache: str | None = None
    stride: int = 1
    actions: Literal["rel_actions", "actions"] = "rel_actions"
    language: str = "lang_annotations"
    balance_tasks: bool = False
    workers: int = 0
    pack_processes: int | None = None


@dataclass
class OptimizerConfig:
    """AdamW, its learning rate over time, and what happens to gradients and weights around a step.

    Attributes:
        learning_rate: at the top of the schedule.
        schedule: `cosine` falls to zero at the end of training, by steps or minutes, whichever limits it.
        warmup_steps: optimizer steps over which the learning rate rises from zero.
        weight_decay: of matrices; biases, norms, gates, embeddings and latents never decay.
        beta1: memory of the gradient's mean.
        beta2: memory of the gradient's square.
        clip: largest norm of the accumulated gradient; None for no limit.
        ema: decay of the average of the weights, say 0.999, which is then what gets validated and saved as
            policy; None for the weights themselves.
    """

    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float | None = 1.0
    ema: float | None = None


@dataclass
class TrainConfig:
    """One training run.

    Attributes:
        run: the folder for everything the run leaves. Where it holds an unfinished run, that is continued.
        data: which demonstrations are trained on.
        policy: what is trained.
        optimizer: how it is trained.
        start_from: a policy folder; training starts with its weights and sizes instead of `policy`.
        max_steps: optimizer steps to train for. Exactly one of max_steps and max_minutes is set.
        max_minutes: minutes to train for, validation and saving included, packing not.
        batch_size: windows that a process draws at once.
        accumulate: batches whose gradients make one optimizer step.
        precision: fp32, or bf16 (mixed: weights stay fp32); auto is bf16 where the processor computes in it.
        seed: of initial weights, order of windows, augmentation and dropout.
        accelerator: cpu or cuda; auto takes what is there.
        devices: processes on each machine, one a device.
        nodes: machines.
        log_every_steps: optimizer steps that a line of metrics.jsonl averages over.
        validate_every_steps: optimizer steps between validations; one always comes at the end.
        validate_every_minutes: minutes between validations, where no steps are set.
        validation_windows: held-out windows that a validation looks at; 0 for no validation.
        save_every_steps: optimizer steps between saves of last.ckpt.
        save_every_minutes: minutes between saves of last.ckpt, where no steps are set.
    """

    run: str
    data: DataConfig
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    start_from: str | None = None
    max_steps: int | None = None
    max_minutes: float | None = None
    batch_size: int = 32
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    seed: int = 0
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1
    log_every_steps: int = 10
    validate_every_steps: int | None = None
    validate_every_minutes: float | None = None
    validation_windows: int = 512
    save_every_steps: int | None = None
    save_every_minutes: float | None = 2.0

    def __post_init__(self) -> None:
        if (self.max_steps is None) == (self.max_minutes is None):
            raise ConfigError("set either max_steps or max_minutes, so that training knows when to end")
        for name in ("max_steps", "max_minutes", "batch_size", "accumulate", "devices", "log_every_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; it must be positive")
        if not self.data.folders:
            raise ConfigError("data.folders is empty; name at least one CALVIN data set and its weight, 1.0")


FREE_TO_CHANGE = frozenset(
    {
        "run",
        "max_steps",
        "max_minutes",
        "data.cache",
        "data.workers",
        "data.pack_processes",
        "log_every_steps",
        "validate_every_steps",
        "validate_every_minutes",
        "validation_windows",
        "save_every_steps",
        "save_every_minutes",
    }
)
"""Keys that may differ when a run is continued; any other would make it neither the old run nor a new one."""


def write_config(config: TrainConfig, path: Path) -> None:
    """Writes the resolved configuration, which `--config` reads back."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(_plain(asdict(config)), sort_keys=False), encoding="utf-8")
    temporary.replace(path)


def check_same_config(config: TrainConfig, path: Path) -> None:
    """Refuses to continue a run with another configuration than it began with.

    Raises:
        ConfigError: a key of `config` differs from the file at `path`. Names key, values and file.
    """
    old = _flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    new = _flat(_plain(asdict(config)))
    for key in sorted((old.keys() | new.keys()) - FREE_TO_CHANGE):
        if old.get(key) != new.get(key):
            raise ConfigError(
                f"{path} began with {key} = {old.get(key)}, now it is {new.get(key)}; "
                "continue with the old value, choose another run folder, or delete this one"
            )


def _plain(value: Any) -> Any:
    """The same with what YAML knows: tuples as lists, paths as strings."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
