"""Control: chunks executed as asked, memory that equals the full window, commands that an environment accepts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calvin_eval.protocol import Observation
from policies import SENTENCES, small_policy
from roboflamingo.control import PolicyController
from roboflamingo.heads import HeadConfig


def observations(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Observation(
            rng.integers(0, 256, (48, 48, 3), np.uint8),
            rng.integers(0, 256, (32, 32, 3), np.uint8),
            rng.normal(size=15),
        )
        for _ in range(count)
    ]


def run(controller, frames, instruction=SENTENCES[0]):
    memory, actions = controller.start(instruction), []
    for frame in frames:
        chunk, (memory,) = controller.act([frame], [memory])
        actions.append(chunk[0])
    return actions


def commands_of_whole_windows(policy, frames, sentence=SENTENCES[0]):
    """Each step's chunk of poses (K, 6), its window of at most T frames computed whole, without memory."""
    length, commands = policy.config.window, []
    for last in range(len(frames)):
        window = frames[max(0, last - length + 1) : last + 1]
        if policy.config.head.last_step_only:
            window = [window[0]] * (length - len(window)) + window
        batch = PolicyController(policy)._batch(window)
        with torch.inference_mode():
            prediction = policy.predict(
                {name: x.transpose(0, 1) for name, x in batch.items()} | {"instruction": [sentence]}
            )
        commands.append(prediction.pose[0, -1].double().numpy())
    return commands


@pytest.mark.parametrize("head", ["lstm", "gpt", "mlp_history", "bins"])
@pytest.mark.parametrize("last_step_only", [False, True])
def test_one_new_frame_a_step_gives_what_the_whole_window_gives(head, last_step_only):
    policy = small_policy(window=3, head=HeadConfig(kind=head, hidden=16, last_step_only=last_step_only))
    frames = observations(6)
    whole = commands_of_whole_windows(policy, frames)
    for action, command in zip(run(PolicyController(policy), frames), whole, strict=True):
        np.testing.assert_allclose(action[0, :6], command[0], atol=1e-6)


def test_windows_that_have_just_begun_share_a_pass_with_full_ones():
    policy = small_policy(window=3)
    controller, frames = PolicyController(policy), observations(5)
    old = controller.start(SENTENCES[0])
    for frame in frames[:3]:
        _, (old,) = controller.act([frame], [old])
    together, _ = controller.act([frames[3], frames[4]], [old, controller.start(SENTENCES[1])])
    np.testing.assert_allclose(together[0], run(controller, frames[:4])[-1], atol=1e-5)
    np.testing.assert_allclose(together[1], run(controller, frames[4:], SENTENCES[1])[0], atol=1e-5)


@pytest.mark.parametrize("execute", [1, 2, 4])
def test_as_many_actions_of_a_chunk_are_given_away_as_asked(execute):
    policy = small_policy()
    actions = run(PolicyController(policy, execute), observations(2))
    assert actions[0].shape == (execute, 7)
    np.testing.assert_allclose(actions[0], run(PolicyController(policy, 4), observations(2))[0][:execute])


def test_episodes_that_share_a_forward_pass_do_not_mix():
    policy = small_policy()
    controller = PolicyController(policy, 2)
    frames, others = observations(4, 1), observations(4, 2)
    memories, together = [controller.start(SENTENCES[0]), controller.start(SENTENCES[1])], []
    for pair in zip(frames, others, strict=True):
        actions, memories = controller.act(list(pair), memories)
        together.append(actions)
    for index, (own, sentence) in enumerate(((frames, SENTENCES[0]), (others, SENTENCES[1]))):
        for step, alone in enumerate(run(controller, own, sentence)):
            np.testing.assert_allclose(together[step][index], alone, atol=1e-5)


def test_commands_are_ones_that_an_environment_accepts():
    for actions in run(PolicyController(small_policy(), 4), observations(3)):
        assert actions.dtype == np.float64 and np.abs(actions).max() <= 1
        assert set(np.unique(actions[:, 6])) <= {-1.0, 1.0}


def test_the_ensemble_is_the_weighted_mean_of_what_past_chunks_say():
    policy, frames = small_policy(window=1), observations(5)
    chunks, decay = commands_of_whole_windows(policy, frames), 0.5
    for step, action in enumerate(run(PolicyController(policy, ensemble=decay), frames)):
        said = [chunks[step - age][age] for age in range(min(step + 1, 4))]  # newest first
        weights = np.exp(-decay * np.arange(len(said))[::-1])
        expected = sum(w * s for w, s in zip(weights, said, strict=True)) / weights.sum()
        np.testing.assert_allclose(action[0, :6], expected, atol=1e-6)


def test_an_ensemble_of_chunks_of_one_is_the_closed_loop():
    policy, frames = small_policy(chunk=1), observations(3)
    np.testing.assert_allclose(
        run(PolicyController(policy, ensemble=0.1), frames), run(PolicyController(policy), frames)
    )


def test_memory_is_a_value_that_can_be_kept_and_used_again():
    controller = PolicyController(small_policy())
    first, second = observations(2)
    _, (memory,) = controller.act([first], [controller.start(SENTENCES[0])])
    once = controller.act([second], [memory])[0]
    controller.act([first], [memory])
    np.testing.assert_array_equal(controller.act([second], [memory])[0], once)


@pytest.mark.parametrize(
    ("execute", "ensemble", "message"), [(0, None, "1..4"), (5, None, "1..4"), (2, 0.1, "execute=1")]
)
def test_impossible_executions_are_refused(execute, ensemble, message):
    with pytest.raises(ValueError, match=message):
        PolicyController(small_policy(), execute, ensemble)


@pytest.mark.parametrize("head", ["lstm", "diffusion", "flow"])
def test_an_episode_repeats_itself_alone_or_among_others(head):
    policy = small_policy(head=HeadConfig(kind=head, hidden=32))
    frames = observations(3)
    alone = run(PolicyController(policy, seed=5), frames)
    controller = PolicyController(policy, seed=5)
    memories = [controller.start(SENTENCES[0]), controller.start(SENTENCES[1])]
    for frame, expected in zip(frames, alone, strict=True):
        chunks, memories = controller.act([frame, observations(1, seed=9)[0]], memories)
        np.testing.assert_allclose(chunks[0], expected, atol=1e-6)
    other = run(PolicyController(policy, seed=6), frames)
    assert np.allclose(np.array(alone), np.array(other)) == (head == "lstm")
