"""Cameras of Panda3D's software renderer, and the pictures they fill."""

from __future__ import annotations

import numpy as np
from panda3d import core

ALL, MOVING, SCENERY = (core.BitMask32.bit(number) for number in range(3))
"""What a camera may be shown: everything; what moves, and as depth alone what may hide it; what never moves."""
DRAWN = {"static": (2, 1), "gripper": (3, 2)}
"""Drawn pixels across and down for each pixel given, of which one is taken. This rasteriser cuts vertices off to whole
pixels, and what is near the gripper's camera is large in its small picture."""
OFFSET_PIXELS = {"static": core.LVecBase2(-1.6, -0.2), "gripper": core.LVecBase2(-1.7, -0.45)}
"""Film offset (drawn pixels) with which silhouettes agree best with the judge's."""
NEAR_FAR = {"static": (2.0, 9.0), "gripper": (0.015, 3.0)}
"""Narrower than CALVIN's, to keep the depth buffer sharp; nothing lies outside."""
NOTHING = core.LColor(0, 0, 0, 0)
COLOUR_BITS = 0x00FFFFFF


class View:
    """One camera, its node in a scene, and its square picture.

    Args:
        name: "static" or "gripper".
        size: edge length (pixels) of the picture given.
        root: of the scene.
        engine, pipe: Panda3D's, of one world.
        fov: opening angle, degrees.
        background: where nothing is drawn.
    """

    def __init__(
        self,
        name: str,
        size: int,
        root: core.NodePath,
        engine: core.GraphicsEngine,
        pipe: core.GraphicsPipe,
        fov: float,
        background: core.LColor,
    ) -> None:
        self._size, self._drawn = size, DRAWN[name]
        across, down = self._drawn
        width, height = size * across, size * down
        properties = core.FrameBufferProperties()
        properties.set_rgb_color(True)
        properties.set_depth_bits(1)
        window = core.WindowProperties.size(width, height)
        self._buffer = engine.make_output(pipe, name, 0, properties, window, core.GraphicsPipe.BF_refuse_window)
        if self._buffer is None:
            raise RuntimeError(f"Panda3D made no buffer of {width} x {height} pixels for the {name} camera")
        self._texture = core.Texture(name)
        self._buffer.add_render_texture(self._texture, core.GraphicsOutput.RTM_copy_ram)
        self._background = background
        lens = core.PerspectiveLens()
        lens.set_fov(fov)
        lens.set_near_far(*NEAR_FAR[name])
        film = lens.get_film_size()[0]
        lens.set_film_offset(OFFSET_PIXELS[name][0] * film / width, OFFSET_PIXELS[name][1] * film / height)
        self._camera = core.Camera(name, lens)
        self.node = root.attach_new_node(self._camera)
        self._buffer.make_display_region().set_camera(self.node)
        self.show_all()

    def show_all(self, background: core.LColor | None = None) -> None:
        """Shows this camera everything, on its own background or another."""
        self._show(ALL, background or self._background)

    def image(self) -> np.ndarray:
        """The last picture (S, S, 3) uint8."""
        return self._picture(self._frame("u1"))

    def colours(self) -> np.ndarray:
        """Every colour (n, 3) uint8 of the last frame as it was drawn."""
        found = np.unique(self._frame("<u4") & COLOUR_BITS)
        return np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.uint8)

    def _show(self, what: core.BitMask32, background: core.LColor) -> None:
        self._camera.set_camera_mask(what)
        self._buffer.set_clear_color(background)

    def _frame(self, number: str) -> np.ndarray:
        """The last frame as drawn, as flat numbers of that kind: from the bottom up; blue, green, red, alpha."""
        return np.frombuffer(self._texture.get_ram_image(), number)

    def _picture(self, frame: np.ndarray) -> np.ndarray:
        """The (S, S, 3) uint8 that is given of a frame."""
        across, down = self._drawn
        drawn = frame.view(np.uint8).reshape(self._size, down, self._size, across, 4)
        kept = drawn[::-1, (down - 1) // 2, :, across // 2]
        image = np.empty((self._size, self._size, 3), np.uint8)
        for channel in range(3):  # three copies of one channel are twice as fast as one with the channels reversed
            image[..., channel] = kept[..., 2 - channel]
        return image


class StillView(View):
    """A camera that never moves: what never moves either is drawn once, and laid behind what does.

    Of that backdrop only the depth is drawn again in every frame, for it may hide what moves. The two columns drawn
    for each given are one number of eight bytes, whose higher half is the pixel given and whose highest byte is the
    alpha of that: nought in all of the backdrop and where nothing moves. So the greater of two such numbers is
    what is in front.
    """

    _backdrop: np.ndarray | None = None

    @property
    def has_backdrop(self) -> bool:
        """Whether a backdrop is kept."""
        return self._backdrop is not None

    def show_scenery(self) -> None:
        """Shows this camera what never moves, to be kept by `keep` after the next frame."""
        self._show(SCENERY, self._background)

    def keep(self) -> None:
        """Keeps the last frame as the backdrop, and shows this camera from now on what moves."""
        self._backdrop = self._frame("<u8") & (COLOUR_BITS << 32 | COLOUR_BITS)
        self._merged = np.empty_like(self._backdrop)
        self._show(MOVING, NOTHING)

    def show_all(self, background: core.LColor | None = None) -> None:
        """Shows this camera everything; a backdrop is forgotten."""
        self._backdrop = None
        super().show_all(background)

    def lay_aside(self) -> np.ndarray | None:
        """Shows this camera everything, and returns the backdrop, if there is one, for `put_back`."""
        backdrop = self._backdrop
        self.show_all()
        return backdrop

    def put_back(self, backdrop: np.ndarray | None) -> None:
        """Goes on with a backdrop that was laid aside; nothing of it may have changed in the meantime."""
        if backdrop is not None:
            self._backdrop = backdrop
            self._show(MOVING, NOTHING)

    def image(self) -> np.ndarray:
        """The last picture (S, S, 3) uint8."""
        if self._backdrop is None:
            return super().image()
        return self._picture(np.maximum(self._frame("<u8"), self._backdrop, out=self._merged))
