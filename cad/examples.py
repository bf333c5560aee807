"""Small programs for documentation and demonstrations."""

from __future__ import annotations

PLATE = """\
SketchPlane0 = add_sketchplane(
	origin= [0., 0., 0.], normal= [0., 0., 1.], x_axis= [1., 0., 0.])
Loops0 = []
Curves0_0 = []
Circle0_0_0 = add_circle(center= [0., 0.], radius= 31.75)
Loop0_0 = add_loop(Curves0_0)
Curves0_1 = []
Circle0_1_0 = add_circle(center= [0., 0.], radius= 11.1125)
Loop0_1 = add_loop(Curves0_1)
Profile0 = add_profile(Loops0)
Sketch0 = add_sketch(sketch_plane= SketchPlane0, profile= Profile0)
Extrude0 = add_extrude(sketch= Sketch0,
	operation= 0, type= 0, extent_one= 6.35, extent_two= 0.)
"""
"""A round plate with a hole."""
