"""Synthetic street scenes with exact labels, drawn with Pillow."""

from deeplab_jax.scenes.painter import IDS, THINGS, Object, Scene
from deeplab_jax.scenes.scene import draw_scene
