"""Rendered scenes: labels computed by hand for simple solids, then properties of every scene."""

import functools

import numpy as np
import pytest

from mtlora_jax.demo.scenes import EVENING, Scene, render
from mtlora_jax.demo.scenes.camera import Camera, look_at
from mtlora_jax.demo.scenes.class_names import CONTEXT, VOC
from mtlora_jax.demo.scenes.compose import MAKERS, compose
from mtlora_jax.demo.scenes.lighting import Light
from mtlora_jax.demo.scenes.people import POSES, person
from mtlora_jax.demo.scenes.render import VOID, photograph
from mtlora_jax.demo.scenes.shapes import Ball, Frustum, Ring, RoundCone
from mtlora_jax.demo.scenes.solids import Solid, Thing, ball, box, half_space, hull, ring, rod, tube
from mtlora_jax.demo.scenes.textures import PATTERNS, Material

GREY = Material((0.5, 0.5, 0.5))
SKY = Material((0.2, 0.4, 0.8))
LIGHT = Light(np.array([0.0, 0.6, 0.8]), np.ones(3), 0.5 * np.ones(3), 0.3 * np.ones(3), 0.01, SKY)
SIZE = (96, 128)
SEEDS = range(12)


def level_camera(size: tuple[int, int] = (41, 61)) -> Camera:
    """A camera at y = 1 and z = 4 metres that looks along -z; its focal length is 50 pixels."""
    return look_at(np.array([0, 1, 0]), 4.0, 0.0, 0.0, 0.0, 50.0, size)


def scene_of(*solids: Solid, camera: Camera | None = None, backdrop: tuple[Solid, ...] = ()) -> Scene:
    """A scene in which each solid is a car of its own."""
    things = [Thing("", backdrop), *(Thing("car", (solid,)) for solid in solids)]
    return photograph(things, camera or level_camera(), LIGHT, np.random.default_rng(0))


@functools.cache
def scene(seed: int) -> Scene:
    return render(seed, SIZE)


def ray(origin: tuple[float, float, float], direction: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(origin, float)[:, None], np.array(direction, float)[:, None]


@pytest.mark.parametrize(
    ("shape", "origin", "direction", "distance", "normal"),
    [
        (Ball(), (0, 0, 3), (0, 0, -1), 2, (0, 0, 1)),
        (Ball(), (0, 0, 3), (0, 0, -0.5), 4, (0, 0, 1)),
        (Ball(0.5, 2.0), (0, 5, 0), (0, -1, 0), 2.5, (0, 1, 0)),
        (Frustum(1, 1), (3, 0.5, 0), (-1, 0, 0), 2, (1, 0, 0)),
        (Frustum(1, 1), (0.3, 4, 0), (0, -1, 0), 3, (0, 1, 0)),
        (Frustum(1, 1), (0.3, -4, 0), (0, 1, 0), 4, (0, -1, 0)),
        (Frustum(1, 0), (3, 0.5, 0), (-1, 0, 0), 2.5, (np.sqrt(0.5), np.sqrt(0.5), 0)),
        (RoundCone(1, 1, 2), (0, 1, 5), (0, 0, -1), 4, (0, 0, 1)),
        (RoundCone(1, 0.5, 2), (0, 5, 0), (0, -1, 0), 2.5, (0, 1, 0)),
        (RoundCone(1, 0.5, 2), (0, -5, 0), (0, 1, 0), 4, (0, -1, 0)),
        (Ring(1, 2, 0.5), (5, 0, 0), (-1, 0, 0), 3, (1, 0, 0)),
        (Ring(1, 2, 0.5), (0, 0, 0), (1, 0, 0), 1, (-1, 0, 0)),
        (Ring(1, 2, 0.5), (1.5, 3, 0), (0, -1, 0), 2.5, (0, 1, 0)),
    ],
)
def test_ray_meets_shape(shape, origin, direction, distance, normal):
    start, heading = ray(origin, direction)
    found, face = shape.hit(start, heading)
    assert found[0] == pytest.approx(distance, abs=1e-12)
    outward = shape.normal(start + found * heading, face)[:, 0]
    np.testing.assert_allclose(outward / np.linalg.norm(outward), normal, atol=1e-12)


@pytest.mark.parametrize(
    "shape", [Ball(), Frustum(1, 0.5), RoundCone(1, 0.5, 2), Ring(1, 2, 0.5)], ids=lambda shape: type(shape).__name__
)
def test_ray_misses_shape(shape):
    assert np.isinf(shape.hit(*ray((0, 9, 5), (0, 0, -1)))[0][0])
    assert np.isinf(shape.hit(*ray((0, 9, 5), (0, 1, 0)))[0][0])


def test_ray_passes_through_the_hole_of_a_ring():
    assert np.isinf(Ring(1, 2, 0.5).hit(*ray((0.5, 3, 0), (0, -1, 0)))[0][0])


def test_wall_faces_the_viewer_and_floor_points_up():
    floor, wall = half_space(GREY, (0, 1, 0), 0, "floor"), half_space(GREY, (0, 0, 1), -2, "wall")
    seen = scene_of(backdrop=(floor, wall))
    # The ray of row r drops (r - 20) / 50 per metre: the wall, 6 m away, ends where it has dropped 1 m, at row 28.3.
    assert np.all(seen.context[:29] == CONTEXT["wall"])
    assert np.all(seen.context[29:] == CONTEXT["floor"])
    np.testing.assert_array_equal(seen.normals[:29], np.broadcast_to([0, 0, 1], (29, 61, 3)))
    np.testing.assert_array_equal(seen.normals[29:], np.broadcast_to([0, -1, 0], (12, 61, 3)))
    np.testing.assert_allclose(seen.depth[:29], 6, rtol=1e-6)
    np.testing.assert_allclose(seen.depth[40], 1 / (20 / 50), rtol=1e-6)
    assert not seen.sal.any()
    assert seen.objects == []


def test_floor_seen_from_above_is_turned_into_the_camera():
    pitch = 0.5
    camera = look_at(np.zeros(3), 4.0, 0.3, pitch, 0.0, 50.0, (41, 61))
    seen = scene_of(camera=camera, backdrop=(half_space(GREY, (0, 1, 0), 0, "floor"),))
    np.testing.assert_allclose(seen.normals[30, 20], [0, -np.cos(pitch), np.sin(pitch)], atol=1e-6)
    assert seen.depth[20, 30] == pytest.approx(4.0, rel=1e-6)


def test_ball_has_the_normals_of_a_ball():
    seen = scene_of(ball(GREY, (0, 1, 0), 1.0))
    np.testing.assert_allclose(seen.normals[20, 30], [0, 0, 1], atol=1e-6)
    assert seen.depth[20, 30] == pytest.approx(3.0)
    # The ray through column 40 is (0.2, 0, -1): |(0.2 t, 0, 4 - t)| = 1 at t = (4 - sqrt(16 - 1.04 * 15)) / 1.04.
    t = (4 - np.sqrt(0.4)) / 1.04
    assert seen.depth[20, 40] == pytest.approx(t)
    np.testing.assert_allclose(seen.normals[20, 40], [0.2 * t, 0, 4 - t], atol=1e-6)
    np.testing.assert_allclose(seen.normals[30, 30], [0, 0.2 * t, 4 - t], atol=1e-6)  # lower half: y points down


@pytest.mark.parametrize(
    "make", [box, lambda material, centre, size: hull(material, _corners(centre, size))], ids=["box", "hull"]
)
def test_box_has_the_normals_of_its_faces(make):
    seen = scene_of(make(GREY, (0, 0.4, 0), (1.0, 0.4, 1.0)))
    # The front face, at depth 3.5, spans y in 0.2..0.6: rows 20.5 + 50 * (0.4..0.8) / 3.5 = 26.2..31.9.
    # The upper one starts at depth 4.5, row 24.9.
    np.testing.assert_allclose(seen.normals[28, 30], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(seen.normals[25, 30], [0, -1, 0], atol=1e-6)
    assert seen.depth[28, 30] == pytest.approx(3.5)
    assert np.flatnonzero(seen.instance[:, 30]).tolist() == [25, 26, 27, 28, 29, 30, 31]


def _corners(centre, size):
    signs = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    return np.array(centre) + np.array(signs) * np.array(size) / 2


def test_stretched_ball_keeps_exact_normals():
    seen = scene_of(ball(GREY, (0, 1, 0), (0.5, 1.0, 2.0)))
    # A point of the ellipsoid has the gradient (x / a^2, y / b^2, z / c^2).
    t = seen.depth[22, 33].astype(float)
    x, y, z = 3 / 50 * t, -2 / 50 * t, 4 - t
    assert (x / 0.5) ** 2 + y**2 + (z / 2) ** 2 == pytest.approx(1, abs=1e-5)
    gradient = np.array([x / 0.25, -y, z / 4])
    np.testing.assert_allclose(seen.normals[22, 33], gradient / np.linalg.norm(gradient), atol=1e-5)


def test_the_nearer_solid_hides_the_farther_one():
    near, far = ball(GREY, (0, 1, 1), 0.3), ball(GREY, (0.2, 1, -1), 0.8)
    for solids, number in (((near, far), 1), ((far, near), 2)):
        seen = scene_of(*solids)
        assert seen.instance[20, 30] == number
        assert seen.depth[20, 30] == pytest.approx(2.7)
        (_, first, _), (_, second, _) = seen.objects
        assert not np.any(first & second)


def test_a_hidden_thing_is_no_object():
    seen = scene_of(ball(GREY, (0, 1, -3), 0.1), ball(GREY, (0, 1, 0), 0.9))
    assert len(seen.objects) == 1
    assert set(np.unique(seen.instance)) == {0, 1}


def test_void_is_a_line_one_pixel_wide_between_instances():
    seen = scene_of(box(GREY, (0, 1, 0), (1, 1, 1)))
    inside = seen.instance[20] > 0
    first, last = np.flatnonzero(inside)[[0, -1]]
    assert np.flatnonzero(seen.semseg[20] == VOID).tolist() == [first - 1, last]
    assert np.all(seen.semseg[20, first:last] == VOC["car"])


def test_the_salient_object_is_large_and_central():
    large, small = ball(GREY, (0, 1, 0), 0.5), ball(GREY, (0, 1.9, 0), 0.2)
    aside = ball(GREY, (1.9, 1, 0), 0.5)
    assert np.array_equal(scene_of(small, large).sal, scene_of(small, large).instance == 2)
    assert np.array_equal(scene_of(large, aside).sal, scene_of(large, aside).instance == 1)


def test_a_shadow_falls_away_from_the_light():
    floor = half_space(GREY, (0, 1, 0), 0, "floor")
    camera = look_at(np.zeros(3), 4.0, 0.0, 1.2, 0.0, 60.0, (61, 61))
    light = Light(np.array([0.8, 0.6, 0]), np.ones(3), 0.3 * np.ones(3), 0.3 * np.ones(3), 0.01, GREY)
    things = [Thing("", (floor,)), Thing("car", (ball(GREY, (0, 0.5, 0), 0.25),))]
    seen = photograph(things, camera, light, np.random.default_rng(0))
    image = seen.image.mean(axis=-1)
    # The light comes from the right at 37 degrees: the shadow's middle lies 0.5 * 0.8 / 0.6 to the left.
    u, v, _ = camera.project(np.array([[-0.667], [0], [0]]))
    shadow, mirrored = image[int(v[0]), int(u[0])], image[int(v[0]), 60 - int(u[0])]
    assert shadow < 0.7 * mirrored


def test_a_seed_always_gives_the_same_bytes():
    first, second = render(3, (48, 64)), render(3, (48, 64))
    for name in ("image", "instance", "semseg", "context", "normals", "sal", "depth"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name
    assert not np.array_equal(first.image, render(4, (48, 64)).image)


@pytest.mark.parametrize("seed", [1, 5])  # one in a room, one under the sky
def test_the_hour_changes_the_picture_and_nothing_else(seed):
    day, evening = render(seed, (48, 64)), render(seed, (48, 64), EVENING)
    for name in ("instance", "semseg", "context", "normals", "sal", "depth"):
        np.testing.assert_array_equal(getattr(day, name), getattr(evening, name), err_msg=name)
    red, _, blue = (evening.image.mean((0, 1)) / day.image.mean((0, 1))).tolist()
    assert blue < red < 0.9  # darker, and what light there is is warm


@pytest.mark.parametrize("size", [(48, 64), (64, 64), (61, 43)])
def test_shapes_and_types(size):
    seen = render(5, size)
    assert (seen.image.shape, seen.image.dtype) == ((*size, 3), np.uint8)
    assert (seen.normals.shape, seen.normals.dtype) == ((*size, 3), np.float32)
    kinds = {"instance": np.uint8, "semseg": np.uint8, "context": np.uint16, "sal": np.bool_, "depth": np.float32}
    assert {name: getattr(seen, name).dtype for name in kinds} == kinds
    assert {getattr(seen, name).shape for name in kinds} == {size}


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_are_unit_and_face_the_viewer(seed):
    things, camera, light = compose(np.random.default_rng(seed), SIZE)
    seen = photograph(things, camera, light, np.random.default_rng(0))
    normals = seen.normals.astype(float)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-6)
    v, u = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    sight = np.stack([(u - SIZE[1] / 2) / camera.focal, (v - SIZE[0] / 2) / camera.focal, np.full(SIZE, -1.0)], axis=-1)
    assert np.all((normals * sight).sum(axis=-1) < 1e-6)  # the rounding of float32
    assert np.all(normals[seen.context == CONTEXT["floor"]][:, 1] < -0.85)


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_agree_with_each_other(seed):
    seen = scene(seed)
    assert seen.objects
    for number, (category, mask, parts) in enumerate(seen.objects, start=1):
        np.testing.assert_array_equal(mask, seen.instance == number)
        assert mask.any()
        assert set(np.unique(seen.semseg[mask])) <= {category, VOID}
        assert bool(parts) == (category == VOC["person"])
        if parts:
            np.testing.assert_array_equal(np.sum([part.astype(int) for part in parts.values()], axis=0), mask)
    assert set(np.unique(seen.semseg[seen.instance == 0])) <= {0, VOID}
    assert np.any([np.array_equal(seen.sal, mask) for _, mask, _ in seen.objects])
    assert set(np.unique(seen.context)) <= set(CONTEXT.values())
    assert np.all((seen.depth > 0) == (seen.context != CONTEXT["sky"]))


def test_every_class_can_be_drawn_and_occurs():
    drawn = {thing.category for seed in range(80) for thing in compose(np.random.default_rng(seed), SIZE)[0]}
    assert drawn == {"", *MAKERS}
    assert {VOC[name] for name in MAKERS} == set(range(1, 21))
    for name, make in MAKERS.items():
        things = [Thing("", ()), make(np.random.default_rng(7))]
        seen = photograph(things, level_camera(), LIGHT, np.random.default_rng(0))
        assert [category for category, _, _ in seen.objects] == [VOC[name]]
        assert np.all(seen.context[seen.sal] == CONTEXT[name])


@pytest.mark.parametrize("name", MAKERS)
def test_things_stand_on_the_ground(name):
    low, high = MAKERS[name](np.random.default_rng(1)).extent
    assert low[1] == pytest.approx(0, abs=0.06)
    assert 0.3 < high[1] < 2.6
    assert np.all(high - low < 4.8)


def test_a_person_shows_all_six_parts():
    names = {solid.part for solid in person(np.random.default_rng(0)).solids}
    limbs = {side + part for side in "lr" for part in ("uarm", "larm", "hand", "uleg", "lleg", "foot")}
    assert {"head", "torso"} | limbs <= names


def test_the_left_arm_of_who_faces_us_is_on_the_right():
    solids = person(np.random.default_rng(0)).solids
    left, right = ([s.frame.offset[0] for s in solids if s.part == name] for name in ("luarm", "ruarm"))
    assert left > right


def test_poses_differ():
    assert len({(pose.arms, pose.legs) for pose in POSES.values()}) == len(POSES) >= 8


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_mix_between_nothing_and_all(name):
    points = np.random.default_rng(0).uniform(-5, 5, (3, 500))
    for width in (1e-3, 0.3, 3.0):
        mix = PATTERNS[name](points, np.full(500, width))
        assert mix.shape == (500,)
        assert np.all((mix >= 0) & (mix <= 1))


@pytest.mark.parametrize("make", [rod, tube])
def test_limbs_reach_from_end_to_end(make):
    low, high = Thing("", (make(GREY, (0, 1, 0), (0, 3, 0), 0.1),)).extent
    assert low[1] == pytest.approx(0.9 if make is rod else 1.0)
    assert high[1] == pytest.approx(3.1 if make is rod else 3.0)


def test_a_ring_stands_upright_about_the_axis_given():
    low, high = Thing("", (ring(GREY, (0, 1, 0), (0, 0, 1), 0.3, 0.5, 0.1),)).extent
    np.testing.assert_allclose(high - low, [1.0, 1.0, 0.1], atol=1e-12)
