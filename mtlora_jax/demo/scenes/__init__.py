"""Small rendered scenes with exact labels: rooms and open ground, things of the VOC classes, people of six parts.

`render(seed)` casts rays at analytic solids, so that normals, depth, parts and outlines are those of the surface at each pixel's centre.
"""

from mtlora_jax.demo.scenes.render import Scene, render
from mtlora_jax.demo.scenes.time_of_day import DAY, EVENING, Hour

__all__ = ["DAY", "EVENING", "Hour", "Scene", "render"]
