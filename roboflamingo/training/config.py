"""What a training run can be told. These fields are the command line's and the YAML file's keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from calvin_eval.system.ranges import ABOVE_ZERO, AMOUNT, COUNT, SEED, check_ranges
from roboflamingo.policy.base_config import BasePolicyConfig
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.training.config_parts import ConfigError, DataConfig, OptimizerConfig, TrainableConfig, WandbConfig


@dataclass
class TrainConfig:
    """One training run.

    Attributes:
        run: the folder for everything the run leaves. Where it holds an unfinished run, that is continued.
        data: which demonstrations are trained on.
        policy: what is trained; its `kind` says which keys there are.
        trainable: which of its weights.
        optimizer: how it is trained.
        start_from: a policy folder; training starts with its weights and sizes instead of `policy`.
        max_steps: optimizer steps to train for. Exactly one of max_steps, max_epochs and max_minutes is set.
        max_epochs: the same, as times that as many windows are drawn as there are.
        max_minutes: minutes to train for, validation and saving included, packing and the keeping of vision tokens
            not.
        batch_size: windows that a process draws at once.
        accumulate: batches whose gradients make one optimizer step.
        precision: fp32, or bf16 (mixed: weights stay fp32); auto is bf16 where the processor computes in it.
        frozen_precision: of the stored matrices that are not trained; bf16 halves their memory and needs
            precision bf16, which computes with them rounded so anyway.
        checkpoint_activations: keeps only the inputs of decoder and cross-attention layers for the backward
            pass and computes the rest again: less memory for about a third more time.
        compile: compiles the same layers with torch.compile; worth its minutes on a GPU only.
        seed: of initial weights, order of windows, augmentation and dropout.
        accelerator: cpu or cuda; auto takes what is there.
        devices: processes on each machine, one a device.
        nodes: machines.
        strategy: of several processes: ddp, each with the whole policy; fsdp, each with a share of all weights,
            gradients and optimizer state; auto is ddp.
        loggers: what metrics go to: jsonl (metrics.jsonl, always written), tensorboard, wandb.
        wandb: where Weights & Biases files the run.
        log_every_steps: optimizer steps that a line of metrics.jsonl averages over.
        validate_every_steps: optimizer steps between validations; one always comes at the end.
        validate_every_minutes: minutes between validations, where no steps are set.
        validation_windows: held-out windows that a validation looks at; 0 for no validation.
        patience: validations in a row without a lower val_loss after which training ends; None for no limit.
        min_delta: by how much val_loss must fall to count as lower for `patience`.
        save_every_steps: optimizer steps between saves of last.ckpt.
        save_every_minutes: minutes between saves of last.ckpt, where no steps are set; None for 2, or for as many as
            keep saving below 2 % of the time, as large policies need.
        snapshot_every_epochs: epochs (times that as many windows are drawn as there are) after which the policy of
            that moment is kept as epochs/N; None for never.
    """

    ALTERNATIVES: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("max_steps", "max_epochs", "max_minutes"),
        ("validate_every_steps", "validate_every_minutes"),
        ("save_every_steps", "save_every_minutes"),
    )
    """Keys that stand in for each other: one on the command line replaces the others of a file."""

    run: str
    data: DataConfig
    policy: BasePolicyConfig = field(default_factory=PolicyConfig)
    trainable: TrainableConfig = field(default_factory=TrainableConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    start_from: str | None = None
    max_steps: int | None = None
    max_epochs: float | None = None
    max_minutes: float | None = None
    batch_size: int = 32
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    frozen_precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_activations: bool = False
    compile: bool = False
    seed: int = 0
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    loggers: list[Literal["jsonl", "tensorboard", "wandb"]] = field(default_factory=lambda: ["jsonl", "tensorboard"])
    wandb: WandbConfig = field(default_factory=WandbConfig)
    log_every_steps: int = 10
    validate_every_steps: int | None = None
    validate_every_minutes: float | None = None
    validation_windows: int = 512
    patience: int | None = None
    min_delta: float = 0.0
    save_every_steps: int | None = None
    save_every_minutes: float | None = None
    snapshot_every_epochs: int | None = None

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "",
            ConfigError,
            max_steps=COUNT,
            max_epochs=ABOVE_ZERO,
            max_minutes=ABOVE_ZERO,
            batch_size=COUNT,
            accumulate=COUNT,
            seed=SEED,
            devices=COUNT,
            nodes=COUNT,
            log_every_steps=COUNT,
            validate_every_steps=COUNT,
            validate_every_minutes=ABOVE_ZERO,
            validation_windows=AMOUNT,
            patience=COUNT,
            min_delta=AMOUNT,
            save_every_steps=COUNT,
            snapshot_every_epochs=COUNT,
            save_every_minutes=ABOVE_ZERO,
        )
        limits = {name: getattr(self, name) for name in self.ALTERNATIVES[0] if getattr(self, name) is not None}
        if not limits:
            raise ConfigError("set one of max_steps, max_epochs and max_minutes, so that training knows when to end")
        if len(limits) > 1:
            first, *others = limits
            raise ConfigError(
                f"{' and '.join(f'{name} is {value}' for name, value in limits.items())}; set one of max_steps, "
                f"max_epochs and max_minutes and the others to null, as in --{first} {limits[first]} "
                f"{' '.join(f'--{name} null' for name in others)}"
            )
        if self.frozen_precision == "bf16" and self.precision == "fp32":
            raise ConfigError("frozen_precision bf16 needs precision bf16, as fp32 cannot compute with such weights")
        if self.strategy == "fsdp" and self.optimizer.kind == "adamw_8bit":
            raise ConfigError("optimizer.kind adamw_8bit cannot be sharded; use adamw with strategy fsdp, or ddp")
        if self.snapshot_every_epochs is not None and self.snapshot_every_epochs < 1:
            raise ConfigError(f"snapshot_every_epochs is {self.snapshot_every_epochs}; it must be at least 1")
        shortest = self.data.shortest_window
        if shortest is not None and shortest > self.policy.window:
            raise ConfigError(f"data.shortest_window is {shortest}, and policy.window {self.policy.window}")
        never = self.validate_every_steps is None and self.validate_every_minutes is None
        if self.patience is not None and (never or not self.validation_windows):
            raise ConfigError(
                f"patience {self.patience} counts validations; set validation_windows above 0 and "
                "validate_every_steps or validate_every_minutes"
            )

    @property
    def trains_everything(self) -> bool:
        """What `trainable.everything` comes to."""
        return not self.policy.pretrained if self.trainable.everything is None else self.trainable.everything

    @property
    def windows_a_step(self) -> int:
        """Windows of one optimizer step, all processes together."""
        return self.batch_size * self.accumulate * self.devices * self.nodes

    @property
    def scaled_learning_rate(self) -> float:
        """At the top of the schedule, after scaling."""
        optimizer = self.optimizer
        if optimizer.reference_batch is None:
            return optimizer.learning_rate
        return optimizer.learning_rate * self.windows_a_step / optimizer.reference_batch
