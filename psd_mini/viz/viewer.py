"""A mesh that can be turned with the mouse, in the output of a notebook cell.

It needs no server, no download and no library. The vertices are sent as 16-bit numbers, and the
browser draws them with WebGL 2. Seen from azimuth a and elevation e, with the axes of `cameras`
(z up), a vertex p lands at

    right = -p_x sin a + p_y cos a,    up = p_z cos e - (p_x cos a + p_y sin a) sin e
    depth = (p_x cos a + p_y sin a) cos e + p_z sin e

Dragging changes a and e. Pages that only show notebooks run no scripts, so a still picture stands
beside the frame.
"""

from __future__ import annotations

import html
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from psd_mini.viz.mesh import Mesh
from psd_mini.viz.pictures import in_base64, png

PAGE = """<!DOCTYPE html><body style="margin:0;background:white">
<canvas width=@SIDE@ height=@SIDE@ style="cursor:grab;touch-action:none"></canvas><script>
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
const canvas = document.querySelector("canvas"), gl = canvas.getContext("webgl2");
const program = gl.createProgram();
const shader = (kind, source) => {
  const s = gl.createShader(kind);
  gl.shaderSource(s, source); gl.compileShader(s); gl.attachShader(program, s); };
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
gl.linkProgram(program); gl.useProgram(program);
gl.enable(gl.DEPTH_TEST); gl.clearColor(1, 1, 1, 1);
const send = (kind, data) => {
  gl.bindBuffer(kind, gl.createBuffer()); gl.bufferData(kind, data, gl.STATIC_DRAW); };
const attribute = (name, data, type) => {
  const where = gl.getAttribLocation(program, name);
  send(gl.ARRAY_BUFFER, data);
  gl.enableVertexAttribArray(where); gl.vertexAttribPointer(where, 3, type, true, 0, 0); };
attribute("p", new Int16Array(bytes("@VERTICES@")), gl.SHORT);
attribute("c", new Uint8Array(bytes("@COLOURS@")), gl.UNSIGNED_BYTE);
const faces = new Uint32Array(bytes("@FACES@"));
send(gl.ELEMENT_ARRAY_BUFFER, faces);
let angles = [0.52, 0.35], held = null;
const draw = () => {
  gl.uniform2fv(gl.getUniformLocation(program, "a"), angles);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  gl.drawElements(gl.TRIANGLES, faces.length, gl.UNSIGNED_INT, 0); };
canvas.onpointerdown = e => {
  held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); };
canvas.onpointerup = () => { held = null; };
canvas.onpointermove = e => {
  if (!held) return;
  const elevation = angles[1] + (e.clientY - held[1]) / 80;
  angles = [angles[0] - (e.clientX - held[0]) / 80, Math.max(-1.5, Math.min(1.5, elevation))];
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
    page = PAGE.replace("@SIDE@", str(resolution))
    vertices = np.round(32767 * mesh.vertices.clip(-1, 1)).astype("<i2")
    page = page.replace("@VERTICES@", in_base64(vertices.tobytes()))
    colours = np.round(255 * mesh.colours.clip(0, 1)).astype(np.uint8)
    page = page.replace("@COLOURS@", in_base64(colours.tobytes()))
    page = page.replace("@FACES@", in_base64(mesh.faces.astype("<u4").tobytes()))
    sides, picture = f"width={resolution} height={resolution}", ""
    if still is not None:
        picture = f'<img {sides} src="data:image/png;base64,{in_base64(png(still))}">'
    frame = f'<iframe {sides} style="border:0" srcdoc="{html.escape(page)}"></iframe>'
    # pages of notebooks put every picture on a line of its own, and may be dark
    return Html(f'<div style="display:flex; background:white">{frame}{picture}</div>')
