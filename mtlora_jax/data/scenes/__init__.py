"""Small rendered scenes with exact labels: rooms and open ground, things of the VOC classes, people of six parts.

`render(seed)` casts rays at analytic solids, so that normals, depth, parts and outlines are those of the surface at each pixel's centre.
"""

from mtlora_jax.data.scenes.hours import DAY, EVENING, Hour
from mtlora_jax.data.scenes.render import Scene, render

__all__ = ["DAY", "EVENING", "Hour", "Scene", "render"]
