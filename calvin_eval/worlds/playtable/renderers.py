"""The choice of what draws a world."""

from __future__ import annotations

import warnings

from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable.cameras import CameraSizes, Drawn, Renderer

RENDERERS = ("panda3d", "tinyrenderer", "none")


def make_renderer(name: str, world: Drawn, sizes: CameraSizes) -> Renderer | None:
    """The renderer of that name for a world; TinyRenderer, with a warning, where Panda3D is not installed.

    Raises:
        UserError: no such renderer.
    """
    if name not in RENDERERS:
        raise UserError(f"renderer {name!r} does not exist; choose one of {', '.join(RENDERERS)}")
    if name == "none":
        return None
    if name == "panda3d":
        try:
            from calvin_eval.worlds.playtable.panda_renderer import PandaRenderer
        except ImportError as error:
            warnings.warn(
                f"Panda3D cannot be imported ({error}); drawing with pybullet's TinyRenderer, which is some thirty "
                "times slower. Install it with: pip install panda3d",
                stacklevel=3,
            )
        else:
            return PandaRenderer(world, sizes)
    from calvin_eval.worlds.playtable.tiny_renderer import TinyRenderer

    return TinyRenderer(world, sizes)
