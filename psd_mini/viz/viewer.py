"""A mesh that can be turned with the mouse, in the output of a notebook cell: no server, no
download, no library.

The vertices are sent as 16-bit numbers and drawn by the browser with WebGL 2. Seen from azimuth a
and elevation e, with the axes of `cameras` (z up), a vertex p lands at

    right = -p_x sin a + p_y cos a,    up = p_z cos e - (p_x cos a + p_y sin a) sin e
    depth = (p_x cos a + p_y sin a) cos e + p_z sin e

and dragging changes a and e. Pages that only show notebooks (a code host's, say) run no scripts: a
still picture stands beside it.
"""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini.viz.mesh import Mesh
from psd_mini.viz.pictures import to_uint8

PAGE = """<!DOCTYPE html><body style="margin:0;background:white">
<canvas width=@SIZE@ height=@SIZE@ style="cursor:grab;touch-action:none"></canvas><script>
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
const canvas = document.querySelector("canvas"), gl = canvas.getContext("webgl2"), program = gl.createProgram();
const shader = (kind, source) => {
  const s = gl.createShader(kind); gl.shaderSource(s, source); gl.compileShader(s); gl.attachShader(program, s); };
shader(gl.VERTEX_SHADER, `#version 300 es
in vec3 p; in vec3 c; uniform vec2 a; out vec3 colour;
void main() {
  float forward = p.x * cos(a.x) + p.y * sin(a.x);
  float depth = forward * cos(a.y) + p.z * sin(a.y), near = 3.0 - depth;
  vec2 across = vec2(p.y * cos(a.x) - p.x * sin(a.x), p.z * cos(a.y) - forward * sin(a.y));
  gl_Position = vec4(2.7 * across, -depth * near / 4.0, near);
  colour = c; }`);
shader(gl.FRAGMENT_SHADER, `#version 300 es
precision mediump float; in vec3 colour; out vec4 o; void main() { o = vec4(colour, 1.0); }`);
gl.linkProgram(program); gl.useProgram(program); gl.enable(gl.DEPTH_TEST); gl.clearColor(1, 1, 1, 1);
const attribute = (name, data, type) => {
  const where = gl.getAttribLocation(program, name);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer()); gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
  gl.enableVertexAttribArray(where); gl.vertexAttribPointer(where, 3, type, true, 0, 0); };
attribute("p", new Int16Array(bytes("@VERTICES@")), gl.SHORT);
attribute("c", new Uint8Array(bytes("@COLOURS@")), gl.UNSIGNED_BYTE);
const faces = new Uint32Array(bytes("@FACES@"));
gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer()); gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);
let angles = [0.52, 0.35], held = null;
const draw = () => {
  gl.uniform2fv(gl.getUniformLocation(program, "a"), angles); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  gl.drawElements(gl.TRIANGLES, faces.length, gl.UNSIGNED_INT, 0); };
canvas.onpointerdown = e => { held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); };
canvas.onpointerup = () => { held = null; };
canvas.onpointermove = e => { if (!held) return;
  angles = [angles[0] - (e.clientX - held[0]) / 80, Math.max(-1.5, Math.min(1.5, angles[1] + (e.clientY - held[1]) / 80))];
  held = [e.clientX, e.clientY]; draw(); };
draw();
</script></body>"""


class Html(NamedTuple):
    """A piece of a web page. A notebook shows it as the last value of a cell."""

    data: str

    def _repr_html_(self) -> str:
        return self.data

    def __repr__(self) -> str:  # a notebook stores it beside the page
        return f"<a page of {len(self.data)} characters>"


def viewer(mesh: Mesh, still: Float[Tensor, "3 h w"] | None = None, resolution: int = 240) -> Html:
    """The mesh in a frame of `resolution` pixels, to be turned with the mouse, and the still
    picture beside it.

    Args:
        mesh: vertices inside of [-1, 1]^3; they are rounded to multiples of 1/32767.
        still: a picture in [0, 1] for readers without scripts.
        resolution: of the frame and of the still picture, pixels.

    Raises:
        ValueError: vertices outside of the cube.
    """
    import html

    from PIL import Image

    if np.abs(mesh.vertices).max(initial=0) > 1 + 1e-4:
        raise ValueError(
            f"mesh: expected vertices in [-1, 1], got {np.abs(mesh.vertices).max():g}; divide by"
            " the bound"
        )

    parts = {
        "VERTICES": np.round(32767 * mesh.vertices.clip(-1, 1)).astype("<i2"),
        "COLOURS": np.round(255 * mesh.colours.clip(0, 1)).astype(np.uint8),
        "FACES": mesh.faces.astype("<u4"),
    }
    page = PAGE.replace("@SIZE@", str(resolution))
    for name, array in parts.items():
        page = page.replace(f"@{name}@", base64.b64encode(array.tobytes()).decode())
    picture = ""
    if still is not None:
        buffer = io.BytesIO()
        Image.fromarray(to_uint8(torch.as_tensor(still))).save(buffer, format="png")
        picture = (
            f"<img width={resolution} height={resolution}"
            f' src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
        )
    frame = (
        f'<iframe width={resolution} height={resolution} style="border:0"'
        f' srcdoc="{html.escape(page)}"></iframe>'
    )
    # pages of notebooks put every picture on a line of its own, and may be dark
    return Html(f'<div style="display:flex; background:white">{frame}{picture}</div>')
