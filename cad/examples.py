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
BRACKET = """\
SketchPlane0=add_sketchplane(origin=[0,0,0],normal=[0,0,1],x_axis=[1,0,0])
Loops0=[]
Curves0_0=[]
Line0_0_0=add_line(start=[0,0],end=[48,0])
Line0_0_1=add_line(start=[48,0],end=[48,32])
Line0_0_2=add_line(start=[48,32],end=[0,32])
Line0_0_3=add_line(start=[0,32],end=[0,0])
Loop0_0=add_loop(Curves0_0)
Curves0_1=[]
Circle0_1_0=add_circle(center=[38,16],radius=5)
Loop0_1=add_loop(Curves0_1)
Profile0=add_profile(Loops0)
Sketch0=add_sketch(sketch_plane=SketchPlane0,profile=Profile0)
Extrude0=add_extrude(sketch=Sketch0,operation=0,type=0,extent_one=6,extent_two=0)
SketchPlane1=add_sketchplane_ref(Extrude0,origin=[14,16],type="extent_one")
Loops1=[]
Curves1_0=[]
Circle1_0_0=add_circle(center=[0,0],radius=9)
Loop1_0=add_loop(Curves1_0)
Curves1_1=[]
Circle1_1_0=add_circle(center=[0,0],radius=6)
Loop1_1=add_loop(Curves1_1)
Profile1=add_profile(Loops1)
Sketch1=add_sketch(sketch_plane=SketchPlane1,profile=Profile1)
Extrude1=add_extrude(sketch=Sketch1,operation=1,type=0,extent_one=14,extent_two=0)
"""
"""A plate with a hole, and a tube that stands on its upper face."""
