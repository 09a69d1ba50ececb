"""Runs the exported model beside this file. Needs jax, numpy and flatbuffers (which jax.export uses).

python load.py images.npy logits.npz      # uint8 RGB (B, H, W, 3) -> {task: float32 (B, H, W, C)}
"""

import json
import pathlib
import sys

import jax
import jax.export
import numpy as np


def load(folder=pathlib.Path(__file__).parent):
    """Loads the model: images -> {task: logits}, compiled once per image shape. metadata.json describes both."""
    file = (folder / "weights.safetensors").read_bytes()
    start = 8 + int.from_bytes(file[:8], "little")
    entries = {name: entry for name, entry in json.loads(file[8:start]).items() if name != "__metadata__"}
    weights = {}
    for name, entry in entries.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        weights[name] = np.frombuffer(file[begin:end], "<f4").reshape(entry["shape"])
    program = jax.export.deserialize(bytearray((folder / "model.jax_export").read_bytes()))
    run, weights = jax.jit(program.call), jax.device_put(weights)
    smallest = json.loads((folder / "metadata.json").read_text())["input"].get("smallest", (0, 0))

    def model(images):
        if np.any(np.less(images.shape[1:3], smallest)):  # not checked by JAX
            raise ValueError(f"images {images.shape} are too small: expected H, W of at least {smallest}")
        return run(weights, images)

    return model


if __name__ == "__main__":
    try:
        np.savez(sys.argv[2], **load()(np.load(sys.argv[1])))
    except (AttributeError, IndexError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}" if len(sys.argv) > 2 else __doc__, file=sys.stderr)
        sys.exit(2)
