"""Varied worlds: buildable, workable, recognisable, and never like scene D."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from calvin_eval.calvin import BLOCKS
from calvin_eval.demonstrations.episodes import NO_NOISE, EpisodeSettings, demonstrate_episode
from calvin_eval.demonstrations.starts import random_scene_obs
from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable import shapes
from calvin_eval.worlds.playtable.appearance import Appearance, Lighting, Views, appearance_of
from calvin_eval.worlds.playtable.bullet import pybullet
from calvin_eval.worlds.playtable.cameras import CameraSizes
from calvin_eval.worlds.playtable.looks import LOOKS
from calvin_eval.worlds.playtable.scenes import SLIDE_WIDTH, scene_geometry
from calvin_eval.worlds.playtable.variations import like_d, random_variation
from calvin_eval.worlds.playtable.world import PlayTable

SIZES = CameraSizes(64, 32)
VARIATIONS = [random_variation(np.random.default_rng(seed)) for seed in range(300)]


def fixtures(geometry):
    return np.array([geometry.button[0], geometry.switch[0], geometry.slide[0], geometry.drawer_x])


def test_no_variation_comes_near_scene_d():
    unseen = scene_geometry("D")
    for variation in VARIATIONS:
        near = np.abs(fixtures(variation.geometry) - fixtures(unseen)) < 0.04
        alike = variation.geometry.block_lengths == unseen.block_lengths
        assert near.sum() < 3 or (near.sum() == 3 and not alike)
        assert variation.geometry.name in "ABC"


def test_scene_d_itself_is_like_d_and_the_others_are_not():
    assert [like_d(scene_geometry(scene)) for scene in "ABCD"] == [False, False, False, True]


@pytest.mark.parametrize("scenes", [("D",), ("A", "D"), ()])
def test_variations_do_not_start_from_scene_d(scenes):
    with pytest.raises(UserError, match="A, B or C"):
        random_variation(np.random.default_rng(0), scenes)


def test_fixtures_keep_clear_of_each_other_and_of_the_tables_edges():
    for geometry in (variation.geometry for variation in VARIATIONS):
        door = geometry.slide_span(geometry.slide_limit)[0], geometry.slide_span(0.0)[1]
        switch = geometry.switch[0] - 0.0603, geometry.switch[0] + 0.0603
        assert switch[0] > door[1] + 0.02 or switch[1] < door[0] - 0.02
        assert min(door[0], switch[0], *geometry.drawer_bay) > -0.44 and max(door[1], switch[1]) < 0.44
        assert geometry.drawer_bay[1] < 0.40
        assert geometry.slide_limit > 0.17 and door[1] - door[0] > SLIDE_WIDTH  # room to push the door as a task asks
        assert abs(geometry.bulb[0] - geometry.led[0]) > 0.028 + 0.08
        (left, _), (right, _) = geometry.surfaces["table"]
        assert right - left > 0.25 and not left - 0.09 < geometry.button[0] < right + 0.09
        for side in ("slider_left", "slider_right"):
            assert (geometry.surfaces[side][:, 0] > geometry.cabinet_opening[0]).all()
            assert (geometry.surfaces[side][:, 0] < geometry.cabinet_opening[1]).all()


def test_layouts_and_lengths_are_of_many_kinds():
    geometries = [variation.geometry for variation in VARIATIONS]
    assert len({tuple(geometry.block_lengths[name] for name in BLOCKS) for geometry in geometries}) == 6
    assert 0.35 < np.mean([geometry.switch[0] > 0 for geometry in geometries]) < 0.65
    assert fixtures(geometries[0]).tolist() != fixtures(geometries[1]).tolist()


def test_blocks_keep_colours_that_have_their_names():
    names = {"block_red": (-0.06, 0.06), "block_blue": (0.58, 0.72), "block_pink": (0.82, 0.92)}
    for variation in VARIATIONS:
        for name, (low, high) in names.items():
            hue, saturation, value = colorsys.rgb_to_hsv(*variation.appearance.look.blocks[name])
            hue -= hue > 0.97
            assert low < hue < high and saturation > 0.6 and value > 0.6, name


def test_the_same_seed_gives_the_same_variation():
    one, two = (random_variation(np.random.default_rng(5)) for _ in range(2))
    assert one.appearance == two.appearance and fixtures(one.geometry).tolist() == fixtures(two.geometry).tolist()


def test_a_scene_named_or_given_is_the_same_world():
    state = random_scene_obs("B", np.random.default_rng(0))
    with (
        PlayTable("B", sizes=SIZES) as named,
        PlayTable(scene_geometry("B"), sizes=SIZES, appearance=appearance_of("B")) as given,
    ):
        images, same = named.reset(None, state).images, given.reset(None, state).images
        for name, image in images.items():
            np.testing.assert_array_equal(image, same[name])


@pytest.mark.parametrize("renderer", ["panda3d", "tinyrenderer"])
def test_appearance_changes_pictures_and_not_the_physics(renderer):
    look = random_variation(np.random.default_rng(1)).appearance.look
    appearances = [
        appearance_of("A"),
        Appearance(look),
        Appearance(LOOKS["A"], views=Views(static_fov=10.5, gripper_fov=77.0)),
        Appearance(LOOKS["A"], Lighting(ambient=(0.3, 0.3, 0.3))),
    ]
    state, pictures, physics = random_scene_obs("A", np.random.default_rng(0)), [], []
    for appearance in appearances:
        with PlayTable("A", renderer, SIZES, appearance=appearance) as world:
            observation = world.reset(None, state)
            pictures.append({name: image.tobytes() for name, image in observation.images.items()})
            physics.append(world.step(np.array([1, 0, 0, 0, 0, 0, 1.0]), render=False))
    for name in pictures[0]:
        assert len({picture[name] for picture in pictures[:3]}) == 3
        assert (pictures[3][name] != pictures[0][name]) == (renderer == "panda3d")  # TinyRenderer has its own lights
    for other in physics[1:]:
        np.testing.assert_array_equal(other.privileged["scene_obs"], physics[0].privileged["scene_obs"])


def test_meshes_that_worlds_share_cannot_be_written_to():
    box = shapes._kept_mesh(pybullet.GEOM_BOX, (0.1, 0.2, 0.3), "")
    assert shapes._kept_mesh(pybullet.GEOM_BOX, (0.1, 0.2, 0.3), "") is box
    assert not any(array.flags.writeable for array in box)


@pytest.mark.parametrize("seed", range(4))
def test_scripted_experts_work_in_varied_worlds(seed):
    rng = np.random.default_rng(seed)
    settings = EpisodeSettings(tasks=2, noise=NO_NOISE, render=False)
    with PlayTable(random_variation(rng).geometry, renderer="none") as world:
        for wish in ("move_slider_left", "open_drawer", "turn_on_lightbulb", "turn_on_led"):
            segments = demonstrate_episode(world, wish, settings, rng)
            assert segments[0].solved, (wish, world.geometry)
