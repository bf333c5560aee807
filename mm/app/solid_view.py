"""A solid that can be turned, inside a page: triangles, a canvas and a short script, nothing from the network."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST_FACES = 20_000
"""Triangles that a browser still sorts fast enough to turn smoothly."""

SCRIPT = """
function turnable(canvas) {
  const read = (name, kind) => new kind(Uint8Array.from(atob(canvas.dataset[name]), c => c.charCodeAt(0)).buffer);
  const points = read("vertices", Float32Array), faces = read("faces", Uint32Array), pen = canvas.getContext("2d");
  let yaw = 0.7, pitch = 0.5, zoom = 1;
  function draw() {
    const side = canvas.width, scale = 0.42 * side * zoom, cy = Math.cos(yaw), sy = Math.sin(yaw);
    const cp = Math.cos(pitch), sp = Math.sin(pitch), seen = new Float32Array(points.length);
    for (let i = 0; i < points.length; i += 3) {
      const x = cy * points[i] - sy * points[i + 1], y = sy * points[i] + cy * points[i + 1], z = points[i + 2];
      seen[i] = side / 2 + scale * x; seen[i + 1] = side / 2 - scale * (cp * z + sp * y); seen[i + 2] = cp * y - sp * z;
    }
    const order = [];
    for (let f = 0; f < faces.length; f += 3) {
      const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]];
      const ux = seen[b] - seen[a], uy = seen[b + 1] - seen[a + 1], uz = scale * (seen[b + 2] - seen[a + 2]);
      const vx = seen[c] - seen[a], vy = seen[c + 1] - seen[a + 1], vz = scale * (seen[c + 2] - seen[a + 2]);
      const nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
      const light = Math.abs(0.35 * nx + 0.45 * ny + 0.82 * nz) / (Math.hypot(nx, ny, nz) || 1);
      order.push([seen[a + 2] + seen[b + 2] + seen[c + 2], a, b, c, Math.round(30 + 55 * light)]);
    }
    order.sort((p, q) => q[0] - p[0]);
    pen.clearRect(0, 0, side, side);
    for (const [, a, b, c, light] of order) {
      pen.beginPath(); pen.moveTo(seen[a], seen[a + 1]);
      pen.lineTo(seen[b], seen[b + 1]); pen.lineTo(seen[c], seen[c + 1]); pen.closePath();
      pen.fillStyle = pen.strokeStyle = `hsl(212 45% ${light}%)`; pen.fill(); pen.stroke();
    }
  }
  canvas.onpointerdown = event => canvas.setPointerCapture(event.pointerId);
  canvas.onpointermove = event => {
    if (event.buttons) { yaw += event.movementX / 120; pitch += event.movementY / 120; draw(); } };
  canvas.onkeydown = event => {
    const step = { ArrowLeft: [-.1, 0], ArrowRight: [.1, 0], ArrowUp: [0, -.1], ArrowDown: [0, .1] }[event.key];
    if (step) { yaw += step[0]; pitch += step[1]; event.preventDefault(); }
    if (event.key === "+") zoom *= 1.1;
    if (event.key === "-") zoom /= 1.1;
    draw(); };
  draw();
}
document.querySelectorAll("canvas[data-vertices]").forEach(turnable);
"""


def solid_figure(vertices: np.ndarray, faces: np.ndarray, caption: str, *, side: int = 380) -> str:
    """A canvas with the solid; `SCRIPT` once at the end of the page brings it to life.

    Args:
        vertices: (V, 3) real, any unit; the solid is centred and scaled to fit.
        faces: (F, 3) indices of triangles.
        caption: What it shows.
        side: Pixels.

    Raises:
        ValueError: other shapes, indices outside, or too many triangles.
    """
    import numpy as np

    vertices, faces = np.asarray(vertices, dtype=np.float64), np.asarray(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3 or not len(faces):
        raise ValueError(f"a solid needs vertices (V, 3) and faces (F, 3), got {vertices.shape} and {faces.shape}")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"faces name vertices {faces.min()} to {faces.max()}, there are {len(vertices)}")
    if len(faces) > MOST_FACES:
        raise ValueError(f"a page shows at most {MOST_FACES} triangles, got {len(faces)}; use a coarser mesh")
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    fitted = (vertices - (low + high) / 2) / max(float(np.linalg.norm(high - low)) / 2, 1e-12)
    data = {
        "vertices": base64.b64encode(fitted.astype("<f4").tobytes()).decode(),
        "faces": base64.b64encode(faces.astype("<u4").tobytes()).decode(),
    }
    held = " ".join(f'data-{name}="{value}"' for name, value in data.items())
    words = html.escape(caption, quote=True)
    return (
        f'<figure><canvas width="{side}" height="{side}" tabindex="0" role="img" aria-label="{words}" {held}></canvas>'
        f"<figcaption>{words} Drag or use the arrow keys to turn it.</figcaption></figure>"
    )
