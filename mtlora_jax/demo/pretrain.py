"""Pre-trains the small Swin that the demo adapts, on rendered scenes by day that the demo never sees.

    python -m mtlora_jax.demo.pretrain --output=weights/swin_micro

One linear map per stage predicts which VOC classes occur in each cell of its features (8 to 32 pixels), and for each
sixteenth of a cell its nearness and whether it has an outline. None of the demo's tasks is among these. The weights are
written as float16 in a model folder for `config.init_from`. The one in mtlora_jax/demo/swin_micro was made by this
command with its default values.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtlora_jax import cli, model_factory
from mtlora_jax.console import console
from mtlora_jax.demo.scenes import render as render_scene
from mtlora_jax.demo.scenes.parallel import map_on_all_cores
from mtlora_jax.io import files, locks
from mtlora_jax.io.files import user_path
from mtlora_jax.model_io import model_folder
from mtlora_jax.models import parameters
from mtlora_jax.models.backbones.swin import Swin
from mtlora_jax.models.inputs import normalise

FIRST_SEED = 1_000_000  # the demo's scenes have smaller seeds
IMAGE_SIDE = 160
RENDERED_SIDE = 192  # pixels of a rendered scene, from which crops are taken
CELL_SIDES = (8, 16, 32, 32)  # pixels of a cell of each stage's features
CLASSES = 20  # of VOC, without background
DETAIL = 4  # a cell is divided into 4x4 for outlines and nearness
PARTS = DETAIL**2


def main(argv: Sequence[str] | None = None) -> None:
    """Renders, trains and writes OUTPUT."""
    parser = cli.Parser("mtlora_jax.demo.pretrain", __doc__)
    parser.add_argument("--output", required=True, type=user_path, help="model folder to write")
    parser.add_argument("--scenes", type=int, default=6000, help="rendered scenes to learn from")
    parser.add_argument("--steps", type=int, default=8000, help="updates")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and crops")
    args = parser.parse(argv)
    files.check_writable(args.output)
    with locks.hold_lock_beside(args.output):
        pretrain(args)


def pretrain(args: argparse.Namespace) -> None:
    """Renders, trains and writes as given by the flags."""
    scenes = render(args.scenes)
    held_out = max(args.scenes // 20, 1)
    architecture, arrays, score = train(scenes.select(slice(held_out, None)), scenes.select(slice(held_out)), args)
    half = {path: array.astype(np.float16) for path, array in arrays.items()}
    amount = f"{args.scenes} rendered scenes, {args.steps} steps of {args.batch_size}, seed {args.seed}"
    about = {"pretraining": f"{amount}; classes, outlines, nearness", "mean_average_precision": round(score, 2)}
    model_folder.save(args.output, architecture, half, about)
    console.print(f"{args.output}: {sum(array.size for array in half.values()):,} parameters")


class Scenes(NamedTuple):
    """N images with their targets, each (N, H, W)."""

    image: np.ndarray  # uint8 (N, H, W, 3)
    classes: np.ndarray  # uint8, of VOC
    outlines: np.ndarray  # uint8, 1 where two things meet
    nearness: np.ndarray  # float16, 1 / (1 + distance in metres), 0 in the sky

    def select(self, index) -> "Scenes":
        """Indexes every array along N."""
        return Scenes(*(part[index] for part in self))


def render(count: int) -> Scenes:
    """Renders `count` scenes on all cores."""
    rendered = map_on_all_cores(render_one, range(FIRST_SEED, FIRST_SEED + count), "rendering scenes")
    return Scenes(*(np.stack(part) for part in zip(*rendered, strict=True)))


def render_one(seed: int) -> Scenes:
    """Renders one scene with its targets."""
    scene = render_scene(seed, (RENDERED_SIDE, RENDERED_SIDE))
    outlines = cv2.morphologyEx(scene.instance.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    nearness = np.where(scene.depth > 0, 1 / (1 + scene.depth), 0)
    return Scenes(scene.image, scene.semseg, outlines.astype(np.uint8), nearness.astype(np.float16))


def crop(scene: Scenes, rng: np.random.Generator) -> Scenes:
    """Crops a random square of one scene, flipped and recoloured at random, at IMAGE_SIDE pixels."""
    side = rng.integers(RENDERED_SIDE * 5 // 8, RENDERED_SIDE + 1)
    top, left = rng.integers(RENDERED_SIDE - side + 1, size=2)
    window = (slice(top, top + side), slice(left, left + side))
    mirror = slice(None, None, -1 if rng.random() < 0.5 else 1)

    def resized(part: np.ndarray, interpolation: int) -> np.ndarray:
        return cv2.resize(part[window], (IMAGE_SIDE, IMAGE_SIDE), interpolation=interpolation)[:, mirror]

    gain = rng.uniform(0.8, 1.2, 3) * rng.uniform(0.8, 1.2)
    image = np.clip(resized(scene.image, cv2.INTER_LINEAR) * gain, 0, 255).astype(np.uint8)
    nearness = resized(scene.nearness.astype(np.float32), cv2.INTER_LINEAR)
    classes, outlines = (resized(part, cv2.INTER_NEAREST) for part in (scene.classes, scene.outlines))
    return Scenes(image, classes, outlines, nearness)


def batches(scenes: Scenes, size: int, rng: np.random.Generator) -> Iterator[Scenes]:
    """Yields endless batches of `size` crops; every epoch has its own order and crops."""
    while True:
        order = rng.permutation(len(scenes.image))
        for start in range(0, len(order) - size + 1, size):
            crops = [crop(scenes.select(i), rng) for i in order[start : start + size]]
            yield Scenes(*(np.stack(part) for part in zip(*crops, strict=True)))


def split_into_cells(pixels: jax.Array | np.ndarray, side: int) -> jax.Array:
    """Splits (B, H, W) into cells (B, H / side, W / side, side * side)."""
    count, height, width = pixels.shape
    cells = jnp.reshape(pixels, (count, height // side, side, width // side, side))
    return jnp.moveaxis(cells, 3, 2).reshape(count, height // side, width // side, side * side)


def tag_cells(classes: jax.Array | np.ndarray, side: int) -> jax.Array:
    """Finds the classes that fill at least a tenth of each cell.

    (B, H, W) -> bool (B, H / side, W / side, CLASSES).
    """
    cells = split_into_cells(classes, side)
    return jnp.stack([jnp.mean(cells == 1 + c, -1) for c in range(CLASSES)], -1) >= 0.1


def stage_loss(prediction: jax.Array, batch: Scenes, side: int) -> jax.Array:
    """Computes the loss of one stage, a float32 scalar.

    prediction: (B, IMAGE_SIDE / side, IMAGE_SIDE / side, CLASSES + 2 * PARTS): class tags, outlines, nearness.
    """
    parts = side // DETAIL
    outlines = split_into_cells(jnp.max(split_into_cells(batch.outlines, parts), -1), DETAIL)
    nearness = split_into_cells(jnp.mean(split_into_cells(batch.nearness, parts), -1), DETAIL)
    entropy = optax.sigmoid_binary_cross_entropy
    tagging = jnp.mean(entropy(prediction[..., :CLASSES], tag_cells(batch.classes, side)))
    tracing = jnp.mean(entropy(prediction[..., CLASSES:-PARTS], outlines))
    ranging = jnp.mean(jnp.abs(prediction[..., -PARTS:] - nearness))
    return 10 * tagging + tracing + 5 * ranging  # about equal once class frequencies are learned


def train(scenes: Scenes, held_out: Scenes, args) -> tuple[dict, dict[str, np.ndarray], float]:
    """Pre-trains a backbone; the score is the mean average precision in percent on held-out scenes.

    Returns (architecture, {path: array} of the backbone, score).
    """
    backbone = {"name": "swin", **Swin.VARIANTS["micro"], "window_size": 5, "drop_path_rate": 0.0}
    architecture = {
        "backbone": backbone,
        "tasks": {},
        "decoder": None,
        "method": {"name": "full"},
        "image_size": [IMAGE_SIDE, IMAGE_SIDE],
    }
    model = model_factory.build(architecture)
    parameters.initialise(model, args.seed)
    graph, weights, _, _ = parameters.partition(model, lambda path, variable: True)
    outputs = CLASSES + 2 * PARTS
    heads = [
        {"kernel": jnp.zeros((width, outputs)), "bias": jnp.zeros(outputs)} for width in model.backbone.out_channels
    ]
    weights = {"backbone": weights, "heads": heads}
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, args.steps // 20, args.steps, 1e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05))

    def predictions(weights, images):
        features = parameters.bind(graph, weights["backbone"]).backbone(normalise(images))
        # Normalised for the linear maps only; the backbone has no norm at its end.
        return [
            jax.nn.standardize(f.shared) @ head["kernel"] + head["bias"]
            for f, head in zip(features, weights["heads"], strict=True)
        ]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(weights, opt_state, batch):
        def loss_fn(weights):
            stages = zip(predictions(weights, batch.image), CELL_SIDES, strict=True)
            return sum(stage_loss(prediction, batch, side) for prediction, side in stages)

        loss, gradients = jax.value_and_grad(loss_fn)(weights)
        updates, opt_state = optimizer.update(gradients, opt_state, weights)
        return optax.apply_updates(weights, updates), opt_state, loss

    opt_state = optimizer.init(weights)
    losses, start = [], time.monotonic()
    source = batches(scenes, args.batch_size, np.random.default_rng(args.seed))
    for step, batch in zip(range(1, args.steps + 1), source, strict=False):
        weights, opt_state, loss = update(weights, opt_state, batch)
        losses.append(loss)
        if step % 100 == 0 or step == args.steps:
            minutes = (args.steps - step) * (time.monotonic() - start) / step / 60
            mean = np.mean(jax.device_get(losses))
            console.print(f"step {step}/{args.steps} loss {mean:.4f} ETA {minutes:.0f} min")
            losses = []
    predict = jax.jit(lambda weights, images: predictions(weights, images)[-1][..., :CLASSES])
    score = mean_average_precision(functools.partial(predict, weights), held_out, args.batch_size)
    console.print(f"mean average precision of classes on {len(held_out.image)} scenes held out: {score:.1f} %")
    return architecture, {path: np.asarray(array) for path, array in weights["backbone"].items()}, score


def mean_average_precision(predict: Callable[[np.ndarray], jax.Array], scenes: Scenes, batch_size: int) -> float:
    """Computes the mean average precision in percent over the classes that occur, for cells of the last stage.

    predict: images (B, H, W, 3) -> logits of class tags (B, h, w, CLASSES).
    """
    source = batches(scenes, min(batch_size, len(scenes.image)), np.random.default_rng(0))
    taken = [next(source) for _ in range(-(-len(scenes.image) // batch_size))]
    scores = np.concatenate([np.asarray(predict(batch.image)).reshape(-1, CLASSES) for batch in taken])
    tags = [np.asarray(tag_cells(batch.classes, CELL_SIDES[-1])) for batch in taken]
    truth = np.concatenate([part.reshape(-1, CLASSES) for part in tags])
    found = np.take_along_axis(truth, np.argsort(-scores, axis=0), 0)
    hits = np.cumsum(found, 0)
    occurs = hits[-1] > 0
    ranks = np.arange(1, len(found) + 1)[:, None]
    return float(100 * np.mean(np.sum(found * hits / ranks, 0)[occurs] / hits[-1][occurs]))


if __name__ == "__main__":
    cli.run(main)
