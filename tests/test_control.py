"""Control: chunks executed as asked, memory that equals the full window, commands that an environment accepts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from calvin_eval.calvin import calvin_observation
from calvin_eval.system.errors import UserError
from policies import SENTENCES, head_config, small_config, small_policy
from roboflamingo.backbone.config import BackboneConfig, ResamplerConfig
from roboflamingo.heads import HEADS, HeadConfig
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.control import PolicyController
from roboflamingo.policy.roboflamingo import RoboFlamingo


def observations(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        calvin_observation(
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
        commands.append(command_of_window(policy, window, sentence))
    return commands


def command_of_window(policy, window, sentence=SENTENCES[0]):
    """The poses (K, 6) that the head predicts at the end of a window that is shown to it whole."""
    batch = PolicyController(policy)._batch([[frame] for frame in window])
    with torch.inference_mode():
        prediction = policy.predict(
            {name: x.transpose(0, 1) for name, x in batch.items()} | {"instruction": [sentence]}
        )
    return policy.head.actions.likeliest(prediction)[0, -1, :, :6].double().numpy()


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
    policy = small_policy(window=1)
    actions = run(PolicyController(policy, execute), observations(2))
    assert actions[0].shape == (execute, 7)
    np.testing.assert_allclose(actions[0], run(PolicyController(policy, 4), observations(2))[0][:execute])


def test_episodes_that_share_a_forward_pass_do_not_mix():
    policy = small_policy(stride=2)
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
    for actions in run(PolicyController(small_policy(window=1), 4), observations(3)):
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
    with pytest.raises(UserError, match=message):
        PolicyController(small_policy(), execute, ensemble)


def run_every_step(controller, every):
    """An episode of which every observation is there; `act` at each E-th, and what is between as the policy asks."""
    memory, actions = controller.start(SENTENCES[0]), {}
    for step, observation in enumerate(every):
        if step % controller.execute == 0:
            chunk, (memory,) = controller.act([observation], [memory])
            actions[step] = chunk[0]
        elif controller.watches:
            memory = controller.watch(observation, memory)
    return actions


@pytest.mark.parametrize(
    ("stride", "execute", "watches"),
    [
        (1, 1, False),
        (2, 1, False),
        (2, 2, False),
        (4, 2, False),
        (3, 1, False),
        (1, 2, True),
        (2, 4, True),
        (3, 2, True),
    ],
)
@pytest.mark.parametrize("change", [{}, {"last_step_only": True}, {"fusion": "vit_concat"}])
def test_windows_hold_frames_as_far_apart_as_training_showed_them(stride, execute, watches, change):
    fusion, last_step_only = change.get("fusion", "post"), change.get("last_step_only", False)
    policy = small_policy(
        window=3, stride=stride, head=HeadConfig(hidden=16, last_step_only=last_step_only),
        backbone=replace(small_config().backbone, fusion=fusion),
    )  # fmt: skip
    controller, every = PolicyController(policy, execute), observations(12)  # an observation at each control step
    assert controller.watches == watches
    for step, action in run_every_step(controller, every).items():
        window = [every[step - stride * back] for back in (2, 1, 0) if step >= stride * back]
        if change:  # trained on full windows, with the segment's first frame before
            window = [every[0]] * (3 - len(window)) + window
        expected = command_of_window(policy, window)
        np.testing.assert_allclose(action[:, :6], expected[:execute], atol=1e-6)


def test_a_caller_that_keeps_back_what_a_policy_must_see_is_told():
    controller, frames = PolicyController(small_policy(window=3), execute=2), observations(2)
    _, memories = controller.act(frames[:1], [controller.start(SENTENCES[0])])
    with pytest.raises(UserError, match=r"execute=2 and frames 1 apart .* call its `watch`"):
        controller.act(frames[1:], memories)
    assert not PolicyController(small_policy(window=1), execute=2).watches  # one frame is no distance from any other


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((48, 48, 3)), r"\(H, W, 3\) uint8 of rgb_static; the observation's is \(48, 48, 3\) float64"),
        (np.zeros((3, 48, 48), np.uint8), r"the observation's is \(3, 48, 48\) uint8"),
        (np.zeros((48, 48), np.uint8), r"the observation's is \(48, 48\) uint8"),
    ],
)
def test_images_of_another_kind_are_named(image, said):
    controller = PolicyController(small_policy())
    seen = calvin_observation(image, np.zeros((32, 32, 3), np.uint8), np.zeros(15))
    with pytest.raises(UserError, match=said):
        controller.act([seen], [controller.start(SENTENCES[0])])


def test_a_policy_that_sees_refuses_to_be_blind():
    controller = PolicyController(small_policy())
    blind = calvin_observation(None, None, np.zeros(15))
    with pytest.raises(
        UserError, match="reads rgb_static, rgb_gripper; of images the observation has none: choose a renderer"
    ):
        controller.act([blind], [controller.start(SENTENCES[0])])


def assert_same_bits_in_any_company(policy, rows):
    """Whoever shares a pass, in whichever place, with sentences of other lengths and windows of other ages."""
    frames, controller = observations(4), PolicyController(policy, rows=rows)
    alone = run(controller, frames)
    rng, others = np.random.default_rng(0), observations(7, seed=1)
    sentences = [*SENTENCES, "open the drawer " * 3, "light", *SENTENCES[:2]]
    memories, mine = [controller.start(sentence) for sentence in sentences], controller.start(SENTENCES[0])
    for frame, expected in zip(frames, alone, strict=True):
        count = int(rng.integers(1, 8))
        order = rng.permutation(count + 1).tolist()
        present, past = [*others[:count], frame], [*memories[:count], mine]
        actions, after = controller.act([present[i] for i in order], [past[i] for i in order])
        np.testing.assert_array_equal(actions[order.index(count)], expected)
        mine = after[order.index(count)]
        memories[:count] = [after[order.index(i)] for i in range(count)]


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("fusion", ["post", "two_way", "vit_concat"])
def test_passes_of_a_fixed_size_give_the_same_bits_whatever_is_beside(head, fusion):
    backbone = replace(small_config().backbone, fusion=fusion)
    policy = small_policy(window=3, backbone=backbone, head=head_config(head, hidden=16, sample_steps=2))
    assert_same_bits_in_any_company(policy, rows=12)


def test_so_do_passes_of_the_demo_s_policy_in_an_evaluation_of_the_usual_batch():
    backbone = BackboneConfig(resampler=ResamplerConfig(latents=16))
    torch.manual_seed(0)
    config = PolicyConfig(backbone=backbone, head=HeadConfig(kind="mlp", hidden=512)).with_words(SENTENCES)
    assert_same_bits_in_any_company(RoboFlamingo(config), rows=8)


def test_more_episodes_than_rows_take_several_passes():
    controller, frames = PolicyController(small_policy(), rows=12), observations(13)
    actions, memories = controller.act(frames, [controller.start(SENTENCES[0]) for _ in frames])
    assert actions.shape == (13, 1, 7) and len(memories) == 13
    for frame, action in zip(frames, actions, strict=True):
        np.testing.assert_array_equal(run(controller, [frame])[0], action)


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
