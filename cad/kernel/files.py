"""Meshes as files: STL, binary glTF and 3MF, each in a few lines and the same bytes every time.

Lengths: STL and 3MF in millimetres, glTF in metres with y up, as these formats expect.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile

import numpy as np

from mm.cad.mesh import Mesh

MM_PER_METRE = 1000.0
GLTF_FLOAT, GLTF_UINT, GLTF_VERTICES, GLTF_INDICES = 5126, 5125, 34962, 34963
CORE_3MF = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
TYPES_3MF = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/></Types>'
)
RELATIONS_3MF = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Target="/3D/3dmodel.model" Id="rel0" '
    'Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/></Relationships>'
)


def stl(mesh: Mesh) -> bytes:
    """Binary STL, mm."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    rows = np.zeros(len(mesh.triangles), dtype=record)
    rows["normal"], rows["corners"] = mesh.normals, mesh.corners
    return b"mm.cad, millimetres".ljust(80) + struct.pack("<I", len(rows)) + rows.tobytes()


def glb(mesh: Mesh) -> bytes:
    """Binary glTF 2.0, metres, flat-shaded: every triangle has its own corners."""
    turned = mesh.corners.reshape(-1, 3)[:, [0, 2, 1]] * [1, 1, -1] / MM_PER_METRE  # z up -> y up
    normals = np.repeat(mesh.normals[:, [0, 2, 1]] * [1, 1, -1], 3, axis=0)
    points, sides = turned.astype("<f4"), normals.astype("<f4")
    indices = np.arange(len(points), dtype="<u4")
    blocks = [(points, GLTF_VERTICES), (sides, GLTF_VERTICES), (indices, GLTF_INDICES)]
    starts = np.cumsum([0, *(block.nbytes for block, _ in blocks)]).tolist()
    accessor = {"componentType": GLTF_FLOAT, "count": len(points), "type": "VEC3"}
    low, high = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    material = {"pbrMetallicRoughness": {"baseColorFactor": [0.6, 0.63, 0.68, 1], "metallicFactor": 0.2}}
    primitive = {"attributes": {"POSITION": 0, "NORMAL": 1}, "indices": 2, "material": 0}
    document = {
        "asset": {"version": "2.0", "generator": "mm.cad"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "part"}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [material],
        "accessors": [
            {"bufferView": 0, **accessor, "min": low, "max": high},
            {"bufferView": 1, **accessor},
            {"bufferView": 2, "componentType": GLTF_UINT, "count": len(indices), "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": block.nbytes, "target": target}
            for start, (block, target) in zip(starts, blocks, strict=False)
        ],
        "buffers": [{"byteLength": starts[-1]}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary = b"".join(block.tobytes() for block, _ in blocks)
    head = struct.pack("<III", 0x46546C67, 2, 12 + 8 + len(text) + 8 + len(binary))
    return head + struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x4E4942) + binary


def three_mf(mesh: Mesh) -> bytes:
    """3MF, mm."""
    vertices = "".join(f'<vertex x="{x:.9g}" y="{y:.9g}" z="{z:.9g}"/>' for x, y, z in mesh.vertices.tolist())
    triangles = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in mesh.triangles.tolist())
    model = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<model unit="millimeter" xml:lang="en-US" xmlns="{CORE_3MF}">'
        f'<resources><object id="1" type="model"><mesh><vertices>{vertices}</vertices>'
        f"<triangles>{triangles}</triangles></mesh></object></resources>"
        '<build><item objectid="1"/></build></model>'
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (
            ("[Content_Types].xml", TYPES_3MF),
            ("_rels/.rels", RELATIONS_3MF),
            ("3D/3dmodel.model", model),
        ):
            # a fixed date: the same part gives the same file
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
