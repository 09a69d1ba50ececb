"""Pre-training of the demo's Swin."""

import numpy as np
import pytest

from mtlora_jax.demo import pretrain
from mtlora_jax.demo.pretrain import Scenes
from mtlora_jax.io import weights
from mtlora_jax.model_io import model_folder


def test_cells_by_hand():
    pixels = np.arange(4 * 6).reshape(1, 4, 6)
    cells = np.asarray(pretrain.split_into_cells(pixels, 2))
    assert cells.shape == (1, 2, 3, 4)
    assert cells[0, 0, 0].tolist() == [0, 1, 6, 7]
    assert cells[0, 1, 2].tolist() == [16, 17, 22, 23]


def test_tags_of_a_cell_by_hand():
    classes = np.zeros((1, 8, 16), np.uint8)
    classes[0, :2, :4] = 3  # 8 of 64 pixels of the left cell
    classes[0, :2, 8:11] = 5  # 6 of 64 of the right one: less than a tenth
    classes[0, 4:, 8:] = 20
    classes[0, 0, 0] = 255
    found = np.argwhere(np.asarray(pretrain.tag_cells(classes, 8)))
    assert found.tolist() == [[0, 0, 0, 2], [0, 0, 1, 19]]


def test_loss_is_small_only_if_all_three_predictions_are_right():
    rng = np.random.default_rng(0)
    side, shape = 8, (1, 16, 16)
    classes = np.repeat(np.repeat(rng.integers(0, 21, (1, 2, 2)), side, 1), side, 2).astype(np.uint8)
    outlines = np.repeat(np.repeat(rng.integers(0, 2, (1, 8, 8)), 2, 1), 2, 2).astype(np.uint8)
    nearness = np.repeat(np.repeat(rng.random((1, 8, 8)), 2, 1), 2, 2).astype(np.float32)
    batch = Scenes(np.zeros((*shape, 3), np.uint8), classes, outlines, nearness)
    tags = np.float32(40) * np.asarray(pretrain.tag_cells(classes, side)) - 20
    small = [
        part[:, ::2, ::2].reshape(1, 2, 4, 2, 4).swapaxes(2, 3).reshape(1, 2, 2, 16).astype(np.float32)
        for part in (outlines, nearness)
    ]
    right = [tags, np.float32(40) * small[0] - 20, small[1]]
    assert pretrain.stage_loss(np.concatenate(right, -1), batch, side) < 1e-6
    for wrong in range(3):
        parts = [1 - part if number == wrong else part for number, part in enumerate(right)]
        assert pretrain.stage_loss(np.concatenate(parts, -1), batch, side) > 0.5


def test_crop_moves_everything_alike():
    ramp = np.tile(np.arange(pretrain.RENDERED_SIDE, dtype=np.uint8), (pretrain.RENDERED_SIDE, 1))
    scene = Scenes(np.repeat(ramp[..., None], 3, -1), ramp, ramp, ramp.astype(np.float16))
    mirrored = set()
    for seed in range(8):
        cut = pretrain.crop(scene, np.random.default_rng(seed))
        assert cut.image.shape == (pretrain.IMAGE_SIDE, pretrain.IMAGE_SIDE, 3)
        assert np.abs(cut.classes - cut.nearness).max() < 1.5  # the nearest column, and the place between two
        np.testing.assert_array_equal(cut.classes, cut.outlines)
        gain = cut.image[:, :, 0].sum() / cut.nearness.sum()
        assert np.abs(cut.image[:, :, 0] - gain * cut.nearness).max() < 2.5  # rounded twice
        mirrored.add(bool(cut.classes[0, 0] > cut.classes[0, -1]))
    assert mirrored == {True, False}


def test_precision_of_a_perfect_and_of_a_useless_classifier():
    shape = (4, pretrain.RENDERED_SIDE, pretrain.RENDERED_SIDE)
    classes = np.zeros(shape, np.uint8)
    classes[:2] = 1
    classes[2:, :, :96] = 2
    images = np.repeat(classes[..., None], 3, -1) * 100
    scenes = Scenes(images, classes, np.zeros(shape, np.uint8), np.zeros(shape, np.float16))
    assert pretrain.mean_average_precision(_brightness, scenes, 2) == pytest.approx(100)
    assert pretrain.mean_average_precision(lambda images: -_brightness(images), scenes, 2) < 60


def _brightness(images):
    """Logits of classes 1 and 2, shown as 100 and 200: the fraction of each cell of the last stage that they fill."""
    cells = np.asarray(pretrain.split_into_cells(images[..., 0], pretrain.CELL_SIDES[-1]))
    logits = np.zeros((*cells.shape[:3], pretrain.CLASSES))
    logits[..., 0] = np.mean((cells > 50) & (cells <= 147), -1)
    logits[..., 1] = np.mean(cells > 147, -1)
    return logits


def test_command_writes_a_backbone(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "map_on_all_cores", lambda function, seeds, title: map(function, seeds))
    monkeypatch.setattr(pretrain, "RENDERED_SIDE", 72)
    monkeypatch.setattr(pretrain, "IMAGE_SIDE", 64)
    tiny = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    monkeypatch.setitem(pretrain.Swin.VARIANTS, "micro", tiny)
    pretrain.main([f"--output={tmp_path / 'swin'}", "--scenes=3", "--steps=2", "--batch_size=2"])
    config = model_folder.read_config(tmp_path / "swin")
    assert config["architecture"]["tasks"] == {}
    assert config["pretraining"].startswith("3 rendered scenes, 2 steps of 2")
    arrays = weights.read_tensors(tmp_path / "swin" / model_folder.WEIGHTS)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
    features = model_folder.load(tmp_path / "swin").features(np.zeros((1, 64, 64, 3), np.float32))
    assert [f.shared.shape for f in features] == [(1, 8, 8, 16), (1, 4, 4, 32), (1, 2, 2, 64), (1, 2, 2, 64)]
