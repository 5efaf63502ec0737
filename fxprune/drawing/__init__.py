"""Pictures of a network: what is coupled with what, what can go, and what went."""

from fxprune.drawing.files import draw
from fxprune.drawing.picture import picture
from fxprune.drawing.scene import Block, Scene

__all__ = ["Block", "Scene", "draw", "picture"]
