"""How long an ablation will take: a little of each training is done and timed, as the demo does."""

from __future__ import annotations

from dataclasses import replace

from calvin_eval.demonstrations.collect import SPLITS
from calvin_eval.demonstrations.episodes import EpisodeSettings
from calvin_eval.demonstrations.recording import Recorder
from calvin_eval.system.machine import cores
from roboflamingo.cli.ablations.planning import Plan, Unit
from roboflamingo.cli.ablations.running import chains_run, finished, steps_made
from roboflamingo.cli.estimate import Estimate, Speeds, estimate, measure
from roboflamingo.training.precision import computes_in_bf16


def expected(plan: Plan) -> Estimate:
    """Minutes of what is left of a plan, on all cores. Takes some ten seconds for every training that is left.

    Trainings that are limited by epochs count as none, as the data may not be there yet.
    """
    total = Estimate(0.0, 0.0, 0.0)
    episodes = episodes_left(plan)
    for unit in [unit for unit in plan.units if not finished(unit)]:
        speeds = _speeds(plan, unit)
        shifts = unit.config.data.token_shifts
        part = estimate(speeds, episodes, _steps_left(unit), 0, [], cores(), shifts)
        for config in unit.evaluations.values():
            chains = max(0, config.settings.chains - chains_run(config))
            more = estimate(speeds, 0, 0, chains, [config.execute or 1] if chains else [], cores())
            part = _sum(part, more)
        minutes = unit.config.max_minutes or 0.0
        total, episodes = _sum(total, part, Estimate(0.0, minutes, 0.0)), 0
    return total


def episodes_left(plan: Plan) -> int:
    """Episodes of demonstrations that no earlier session has collected."""
    if plan.collect is None:
        return 0
    settings, _ = plan.collect
    if all(Recorder(plan.data / split, settings.scenes).finished for split in SPLITS):
        return 0
    return settings.episodes + settings.validation_episodes


def _steps_left(unit: Unit) -> int:
    return max(0, (unit.config.max_steps or 0) - steps_made(unit))


def _speeds(plan: Plan, unit: Unit) -> Speeds:
    config = unit.config
    episode = EpisodeSettings() if plan.collect is None else plan.collect[0].episode
    in_bf16 = config.precision == "bf16" or (config.precision == "auto" and computes_in_bf16("auto"))
    scene = next(iter(unit.evaluations.values())).scene
    whole = replace(config, batch_size=config.batch_size * config.accumulate, accumulate=1)
    return measure(scene, episode, whole, in_bf16=in_bf16)


def _sum(*parts: Estimate) -> Estimate:
    return Estimate(*(sum(getattr(part, name) for part in parts) for name in ("collecting", "training", "evaluating")))
