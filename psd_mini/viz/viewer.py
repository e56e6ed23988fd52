"""A mesh that can be turned with the mouse, in the output of a notebook cell.

It needs no server, no download and no library. The page is viewer.html beside this file: it gets
the vertices as 16-bit numbers and draws them with WebGL 2. Seen from azimuth a and elevation e,
with the axes of `cameras` (z up), a vertex p lands at

    right = -p_x sin a + p_y cos a,    up = p_z cos e - (p_x cos a + p_y sin a) sin e
    depth = (p_x cos a + p_y sin a) cos e + p_z sin e

Dragging changes a and e. Pages that only show notebooks run no scripts, so a still picture stands
beside the frame.
"""

import html
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from psd_mini.viz.mesh import Mesh
from psd_mini.viz.pictures import in_base64, png

PAGE = Path(__file__).with_name("viewer.html")


class Html(NamedTuple):
    """A piece of a web page. A notebook shows it as the last value of a cell."""

    data: str

    def _repr_html_(self) -> str:
        return self.data

    def __repr__(self) -> str:  # a notebook stores it beside the page
        return f"<a page of {len(self.data)} characters>"


def viewer(mesh: Mesh, still: Float[Tensor, "3 h w"] | None = None, resolution: int = 240) -> Html:
    """The mesh in a frame, to be turned with the mouse, and the still picture beside it.

    Args:
        mesh: vertices inside of [-1, 1]^3; they are rounded to multiples of 1/32767.
        still: a picture in [0, 1] for readers without scripts.
        resolution: of the frame and of the still picture, pixels.

    Raises:
        ValueError: vertices outside of the cube.
    """
    if (furthest := np.abs(mesh.vertices).max(initial=0)) > 1 + 1e-4:
        expected = "expected vertices in [-1, 1]"
        raise ValueError(f"mesh: {expected}, got {furthest:g}; divide by the bound")
    vertices = np.round(32767 * mesh.vertices.clip(-1, 1)).astype("<i2")
    colours = np.round(255 * mesh.colours.clip(0, 1)).astype(np.uint8)
    arrays = {"VERTICES": vertices, "COLOURS": colours, "FACES": mesh.faces.astype("<u4")}
    texts = {name: in_base64(array.tobytes()) for name, array in arrays.items()}
    page = Template(PAGE.read_text()).substitute(texts, SIDE=resolution)
    sides, picture = f"width={resolution} height={resolution}", ""
    if still is not None:
        picture = f'<img alt="still" {sides} src="data:image/png;base64,{in_base64(png(still))}">'
    frame = f'<iframe {sides} style="border:0" srcdoc="{html.escape(page)}"></iframe>'
    # pages of notebooks put every picture on a line of its own, and may be dark
    return Html(f'<div style="display:flex; background:white">{frame}{picture}</div>')
