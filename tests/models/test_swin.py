"""The encoder against Hugging Face's Swin, and the geometry of windows."""

import jax
import micro
import numpy as np
import pytest

from mtlora_jax.convert import hf
from mtlora_jax.convert.key_mapping import apply
from mtlora_jax.model_factory import build
from mtlora_jax.models import parameters
from mtlora_jax.models.backbones.swin_windows import (
    MASK_VALUE,
    attention_mask,
    effective_window,
    relative_position_index,
    window_partition,
    window_reverse,
)

BACKBONE = {
    "name": "swin",
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 3],
    "window_size": 7,
    "patch_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.1,
}
BARE = {"backbone": BACKBONE, "tasks": {}, "decoder": None, "method": {"name": "full"}, "image_size": [56, 56]}


def features_of(arrays, images):
    """The shared stream after each stage."""
    model = build(BARE)
    parameters.assign(model, arrays, "arrays")
    graph, *parts = parameters.partition(model, lambda path, variable: True)
    features = micro.jit(lambda parts, images: parameters.bind(graph, *parts).backbone(images))(parts, images)
    assert all(f.tasks is None for f in features)
    return [np.asarray(f.shared) for f in features]


@pytest.fixture(scope="module")
def hugging_face():
    """(their library, PyTorch, weights in their format)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(0)
    shapes = {key: value.shape for key, value in their_swin(transformers, (56, 56)).state_dict().items()}
    # biases and tables too, which are initialised to zero
    return (
        transformers,
        torch,
        {key: torch.normal(0.0, 0.3, shape, generator=generator) for key, shape in shapes.items()},
    )


def their_swin(transformers, image_size):
    """Made for one size: their layers switch the shift off for good if a grid is not larger than the window."""
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"), 0.0)
    sizes = {
        key: BACKBONE[key] for key in ("embed_dim", "depths", "num_heads", "window_size", "patch_size", "mlp_ratio")
    }
    config = transformers.SwinConfig(image_size=image_size, **sizes, **rates)
    return transformers.SwinModel(config).eval()


@pytest.mark.parametrize(
    ("height", "width"),
    [
        pytest.param(56, 56, id="windows fit; second grid equals the window"),
        pytest.param(56, 84, id="not square; a side of the second grid equals the window, the other needs padding"),
        pytest.param(62, 81, id="image needs padding to patches, both grids to windows, one to merging"),
    ],
)
def test_features_equal_hugging_face(hugging_face, height, width):
    transformers, torch, state = hugging_face
    model = their_swin(transformers, (height, width))
    model.load_state_dict(state)
    images = micro.random_images(2, height, width)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2)), output_hidden_states=True).hidden_states[1:]
    tensors = {key: value.numpy() for key, value in state.items()}
    ours = features_of(apply(hf.table(tensors), tensors, {key: key for key in tensors}).arrays, images)
    assert len(ours) == len(expected) == 2
    for stage, theirs in zip(ours, expected, strict=True):
        theirs = theirs.numpy()
        np.testing.assert_allclose(stage.reshape(theirs.shape), theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_a_grid_smaller_than_the_window():
    arrays = parameters.host_arrays(micro.fresh(BARE))
    finest, coarsest = features_of(arrays, micro.random_images(2, 20, 48))  # grid 5 x 12, then 3 x 6
    assert finest.shape == coarsest.shape == (2, 3, 6, 24)
    assert np.isfinite(finest).all()
    assert np.isfinite(coarsest).all()
    assert np.abs(finest - coarsest).max() > 1e-3  # the last stage does something


def test_declared_widths_are_those_of_the_features():
    features = jax.eval_shape(build_features, jax.ShapeDtypeStruct((1, 64, 96, 3), np.float32))
    assert [f.shared.shape for f in features] == [(1, 8, 12, 24), (1, 4, 6, 48), (1, 2, 3, 96), (1, 2, 3, 96)]
    assert build(FOUR_STAGES).backbone.out_channels == (24, 48, 96, 96)


FOUR_STAGES = BARE | {"backbone": BACKBONE | {"depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4]}}


def build_features(images):
    return micro.fresh(FOUR_STAGES).backbone(images)


def test_partition_reads_windows_in_order():
    x = np.arange(24).reshape(1, 4, 6, 1)
    windows = window_partition(x, (2, 3))[0, :, :, 0]
    np.testing.assert_array_equal(windows[0], [0, 1, 2, 6, 7, 8])
    np.testing.assert_array_equal(windows[1], [3, 4, 5, 9, 10, 11])
    np.testing.assert_array_equal(windows[2], [12, 13, 14, 18, 19, 20])


def test_unpartition_is_the_inverse_on_any_leading_axes():
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3))
    windows = window_partition(x, (3, 2))
    assert windows.shape == (2, 8, 6, 3)
    np.testing.assert_array_equal(window_reverse(windows, (6, 8), (3, 2)), x)
    np.testing.assert_array_equal(window_reverse(np.stack([windows, -windows]), (6, 8), (3, 2)), np.stack([x, -x]))


def test_mask_of_a_small_grid():
    """4 x 4, windows of 2, shift 1: after the roll the last row and column hold what was first."""
    no, m = 0.0, MASK_VALUE
    columns_apart = [[no, m, no, m], [m, no, m, no], [no, m, no, m], [m, no, m, no]]
    rows_apart = [[no, no, m, m], [no, no, m, m], [m, m, no, no], [m, m, no, no]]
    all_apart = [[no, m, m, m], [m, no, m, m], [m, m, no, m], [m, m, m, no]]
    expected = [np.zeros((4, 4)), columns_apart, rows_apart, all_apart]
    mask = attention_mask((4, 4), (2, 2), 1)
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("grid", "shifted", "expected"),
    [
        ((14, 14), False, ((7, 7), 0)),
        ((14, 14), True, ((7, 7), 3)),
        ((7, 7), True, ((7, 7), 0)),
        ((7, 14), True, ((7, 7), 0)),
        ((8, 30), True, ((7, 7), 3)),
        ((4, 14), True, ((4, 7), 0)),
    ],
)
def test_window_and_shift_of_a_grid(grid, shifted, expected):
    assert effective_window(grid, 7, shifted) == expected


def test_relative_position_index():
    index = relative_position_index((7, 7), 7)
    np.testing.assert_array_equal(np.diag(index), 84)  # no offset: the middle of the 13 x 13 table
    np.testing.assert_array_equal(index + index.T, 168)  # opposite offsets lie opposite
    assert set(index.ravel()) == set(range(169))
    assert index[0, 48] == 0  # the first token attends to the last: offset (-6, -6)
    assert index[1, 0] == 84 + 1  # one column to the right of the other token
    assert index[7, 0] == 84 + 13  # one row below


def test_smaller_windows_use_the_centre_of_the_table():
    tokens = [7 * row + column for row in range(3) for column in range(5)]
    np.testing.assert_array_equal(
        relative_position_index((3, 5), 7), relative_position_index((7, 7), 7)[np.ix_(tokens, tokens)]
    )
