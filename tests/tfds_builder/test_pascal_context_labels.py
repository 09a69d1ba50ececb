"""Label maps and annotation files, by hand."""

import io
import pathlib

import cv2
import numpy as np
import PIL.Image
import pytest
import scipy.io

from mtlora_jax.errors import UserError
from tfds_pascal_context import files, labels, layout
from tfds_pascal_context.context import NORMALS_CLASSES
from tfds_pascal_context.layout import Annotated

SMALL = (3, 4)


def mask(*pixels, size=SMALL):
    result = np.zeros(size, bool)
    for row, column in pixels:
        result[row, column] = True
    return result


def person(**parts):
    return Annotated(15, np.ones(SMALL, bool), parts)


def test_later_parts_and_people_are_painted_over_earlier_ones():
    first = person(head=mask((0, 0), (0, 1)), luarm=mask((0, 1), (1, 1)), rhand=mask((1, 1), (2, 1)))
    second = person(rfoot=mask((0, 0)), neck=mask((2, 3)))
    dog = Annotated(12, np.ones(SMALL, bool), {"head": mask((2, 2)), "muzzle": mask((2, 0))})
    expected = [[6, 3, 0, 0], [0, 4, 0, 0], [0, 4, 0, 2]]
    np.testing.assert_array_equal(labels.human_parts([first, dog, second], (9, 9)), expected)


@pytest.mark.parametrize(
    ("index", "names"),
    [
        (1, "hair head lear rear lebrow rebrow leye reye mouth nose"),
        (2, "neck torso"),
        (3, "luarm ruarm"),
        (4, "llarm rlarm lhand rhand"),
        (5, "luleg ruleg"),
        (6, "llleg rlleg lfoot rfoot"),
    ],
)
def test_every_part_has_its_place_among_the_six(index, names):
    for name in names.split():
        assert labels.human_parts([person(**{name: mask((1, 2))})], SMALL)[1, 2] == index
    assert sum(value == index for value in labels.PARTS.values()) == len(names.split())


def test_without_peoples_parts_the_map_is_empty_and_has_the_size_of_the_image():
    nobody = [Annotated(15, mask((0, 0)), {}), Annotated(12, mask((1, 1)), {"head": mask((1, 1))})]
    for objects in ([], nobody):
        label = labels.human_parts(objects, (5, 7))
        assert (label.shape, label.dtype, label.max()) == ((5, 7), np.uint8, 0)


def test_people_are_persons_with_a_mask_with_or_without_parts():
    assert labels.has_people([Annotated(15, mask((0, 0)), {})])
    assert not labels.has_people([Annotated(15, mask(), {}), Annotated(12, mask((0, 0)), {})])


def test_unknown_part_and_masks_of_two_sizes_are_refused():
    with pytest.raises(UserError, match="unknown part 'tail' of a person; expected one of hair"):
        labels.human_parts([person(tail=mask((0, 0)))], SMALL)
    with pytest.raises(UserError, match="'head' is 5x5, others are 4x3"):
        labels.human_parts([person(head=mask((0, 0), size=(5, 5)))], SMALL)


def test_edges_by_hand():
    # A step between two flat halves: its Laplacian is not zero on both sides, and thinning leaves one line.
    context = np.repeat([[7, 7, 7, 400, 400, 400]], 5, axis=0)
    edge = labels.edges(context.astype(np.uint16))
    np.testing.assert_array_equal(np.unique(edge), [0, 255])
    (column,) = np.flatnonzero(edge.any(axis=0))
    assert column in (2, 3)
    assert edge[1:, column].all()  # thinning may take the end of a line
    np.testing.assert_array_equal(labels.edges(np.full((4, 4), 9)), np.zeros((4, 4)))


def test_normals_classes():
    assert len(NORMALS_CLASSES) == len(set(NORMALS_CLASSES.values())) == 170
    # Spot checks: names that both lists have, the one added by hand, and what NYU does not know.
    assert {"wall": 440, "floor": 158, "person": 284, "tvmonitor": 427}.items() <= NORMALS_CLASSES.items()
    assert not {"sky", "tree", "unknown"} & NORMALS_CLASSES.keys()


def test_normals_stay_as_they_are_on_trusted_classes_and_vanish_elsewhere():
    encoded = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) + 100
    context = np.array([[440, 360, 440], [0, 158, 427]])
    kept = labels.valid_normals(encoded, context)
    np.testing.assert_array_equal(kept[0, 0], [100, 101, 102])
    np.testing.assert_array_equal(kept.any(axis=-1), [[True, False, True], [False, True, True]])


def test_normals_are_encoded_to_the_nearest_of_256_steps():
    vectors = np.array([[[0, 0, 2.0], [-1, 0, 0], [0.6, 0, 0.8], [0, 0, 0], [np.nan, 0, 1]]])
    expected = [[[128, 128, 255], [0, 128, 128], [204, 128, 230], [0, 0, 0], [0, 0, 0]]]
    np.testing.assert_array_equal(labels.encode_normals(vectors), expected)


def test_resized_normals_are_unit_vectors_and_unknown_ones_bend_no_others():
    encoded = np.zeros((6, 8, 3), np.uint8)
    encoded[:, :4] = [128, 128, 255]
    resized = labels.fit_normals(encoded, (12, 16))
    np.testing.assert_array_equal(resized.any(axis=-1), np.repeat([[True] * 8 + [False] * 8], 12, axis=0))
    np.testing.assert_array_equal(resized[:, :8].reshape(-1, 3), np.broadcast_to([128, 128, 255], (96, 3)))
    assert labels.fit_normals(encoded, (6, 8)) is encoded


def test_labels_are_resized_to_the_nearest_pixel():
    np.testing.assert_array_equal(labels.fit(np.array([[1, 255]], np.uint8), (2, 4)), [[1, 1, 255, 255]] * 2)


def test_what_is_written_is_read_again(tmp_path):
    rng = np.random.default_rng(0)
    size = (16, 20)
    objects = [
        Annotated(15, rng.random(size) > 0.5, {"head": rng.random(size) > 0.5, "lfoot": rng.random(size) > 0.9}),
        Annotated(3, rng.random(size) > 0.5, {}),
    ]
    context = rng.integers(0, 460, size)
    normals = rng.normal(size=(*size, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    semseg = rng.choice([0, 20, 255], size).astype(np.uint8)
    layout.write_raw(
        tmp_path,
        "a",
        image=rng.integers(0, 256, (*size, 3)).astype(np.uint8),
        semseg=semseg,
        objects=objects,
        context=context,
        normals=normals,
        sal=semseg > 0,
    )
    read = layout.read_objects(tmp_path / "human_parts/a.mat")
    assert [(found.category, list(found.parts)) for found in read] == [(15, ["head", "lfoot"]), (3, [])]
    for found, written in zip(read, objects, strict=True):
        np.testing.assert_array_equal(found.mask, written.mask)
        for name in written.parts:
            np.testing.assert_array_equal(found.parts[name], written.parts[name])
    np.testing.assert_array_equal(layout.read_context(tmp_path / "pascal-context/trainval/a.mat"), context)
    encoded = cv2.imread(str(tmp_path / "normals_distill/a.png"))[..., ::-1].astype(float)
    np.testing.assert_allclose(2 * encoded / 255 - 1, normals, atol=1.001 / 255)  # half a step of the file
    salient = cv2.imread(str(tmp_path / "sal_distill/a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(salient, np.where(semseg, 255, 0))


def test_part_files_are_nested_as_the_genuine_ones(tmp_path):
    """Shapes, names and types are those that scipy finds in files of PASCAL-Part."""
    layout.write_raw(
        tmp_path,
        "2008_000001",
        image=np.zeros((*SMALL, 3), np.uint8),
        semseg=np.zeros(SMALL, np.uint8),
        objects=[person(head=mask((0, 0))), Annotated(12, mask((1, 1)), {})],
        context=np.zeros(SMALL),
        normals=np.ones((*SMALL, 3)),
        sal=mask(),
    )
    anno = scipy.io.loadmat(pathlib.Path(tmp_path, "human_parts/2008_000001.mat"))["anno"]
    assert (anno.shape, anno.dtype.names) == ((1, 1), ("imname", "objects"))
    assert anno["imname"].item().item() == "2008_000001"
    objects = anno[0][0][1]
    assert (objects.shape, objects.dtype.names) == ((1, 2), ("class", "class_ind", "mask", "parts"))
    someone, dog = objects[0]
    assert (someone["class"].item(), someone["class_ind"].item(), someone["mask"].dtype) == ("person", 15, np.uint8)
    assert (someone["parts"].shape, someone["parts"].dtype.names) == ((1, 1), ("part_name", "mask"))
    assert someone["parts"][0, 0]["part_name"].item() == "head"
    assert dog["parts"].shape == (0, 0)


@pytest.mark.parametrize(
    "content",
    [{"anno": np.zeros((2, 2))}, {"LabelMap": np.ones((3, 3))}, {"anno": np.array([[({"objects": 1},)]], object)}],
)
def test_a_file_that_is_no_annotation_is_named(tmp_path, content):
    scipy.io.savemat(tmp_path / "x.mat", content)
    with pytest.raises(UserError, match=r"x\.mat: .*expected a PASCAL-Part annotation"):
        layout.read_objects(tmp_path / "x.mat")


@pytest.mark.parametrize(("shape", "dtype"), [((30, 41), np.uint8), ((30, 41), np.uint16), ((30, 41, 3), np.uint8)])
def test_stored_and_compressed_files_hold_the_pixels(shape, dtype):
    pixels = (np.random.default_rng(0).integers(0, 2, shape) * [[9] if len(shape) == 2 else [9, 200, 77]]).astype(dtype)
    stored = files.png(pixels)
    packed = files.compressed(stored)
    assert len(stored) > pixels.nbytes > len(packed)
    for content in (stored, packed):
        np.testing.assert_array_equal(np.array(PIL.Image.open(io.BytesIO(content))), pixels)
        read = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read[..., ::-1] if pixels.ndim == 3 else read, pixels)
