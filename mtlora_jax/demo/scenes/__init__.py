"""Renders small scenes with exact labels: rooms and landscapes, objects of the VOC classes, people of six parts.

`render(seed)` casts rays at analytic solids, so normals, depth, parts and outlines are exact at each pixel's centre.
"""

from mtlora_jax.demo.scenes.render import Scene, render
from mtlora_jax.demo.scenes.time_of_day import DAY, EVENING, TimeOfDay

__all__ = ["DAY", "EVENING", "TimeOfDay", "Scene", "render"]
