"""Random batches for benchmarks and memory estimates."""

import numpy as np

from mtlora_jax.tasks.task import Task


def random_batch(tasks: dict[str, Task], count: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Draw {"image": uint8 (B, H, W, 3), TASK: label} with the shapes and dtypes of the data pipeline.

    `count` is B, `size` is (H, W).
    """
    rng = np.random.default_rng(0)
    labels = {name: np.stack([task.random_label(rng, size) for _ in range(count)]) for name, task in tasks.items()}
    return {"image": rng.integers(0, 256, (count, *size, 3), np.uint8), **labels}
