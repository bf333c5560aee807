"""Every Triton kernel compiles to machine code for the supported GPUs, fits their shared memory and spills little.

No GPU is needed: Triton brings its own assembler. What runs is checked by the interpreter and, on a GPU, test_gpu.py.
"""

import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mm.kernels import attention_statistics_triton as attention  # noqa: E402
from mm.kernels import code_search_triton as search  # noqa: E402
from mm.kernels import norm_triton as norm  # noqa: E402

pytestmark = pytest.mark.slow
LOW, WIDE = "*bf16", "*fp32"
SHARED_BYTES = {80: 166_912, 89: 101_376, 90: 232_448}  # per block, by compute capability


def shape(width):
    return {"D": width, "DP": max(16, triton.next_power_of_2(width))}


def attention_case(kernel, width, tile, **flags):
    tile = dict(tile)
    warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
    strides = {name + dim: "i32" for name in "qkvo" for dim in "bhn"}
    types = {"q": LOW, "k": LOW, "v": LOW, "out": LOW, "real": "*i1", "scale": "fp32", **strides}
    types |= dict.fromkeys(("lse", "spread", "sums", "weights"), WIDE) | dict.fromkeys(("H", "GROUP", "N", "M"), "i32")
    return kernel, types, {**shape(width), "TRIPS": 0, "CAUSAL": True, "PADDED": True, **flags, **tile}, warps, stages


def norm_case(kernel, **flags):
    types = dict.fromkeys(("x", "residual", "weight", "bias", "dscale", "dshift", "y", "total", "dy", "dtotal"), LOW)
    types |= {"ds": LOW, "ddscale": LOW, "keep": "*i1", "eps": "fp32", "rows": "i32", "D": "i32"}
    types |= dict.fromkeys(("mean", "scale", "dweight", "dbias"), WIDE)
    return kernel, types, {"BLOCK": 4096, "LAYER": False, "WEIGHT": True, "DSCALE": True, "KEEP": True, **flags}, 8, 3


def search_case(kernel, low, **flags):
    types = dict.fromkeys(("x", "codes"), LOW if low else WIDE) | dict.fromkeys(("N", "K", "groups"), "i32")
    types |= dict.fromkeys(("half", "maxima", "error", "distances"), WIDE) | {"indices": "*i64"}
    return kernel, types, {"GROUP": 16, **flags}, 8 if flags.get("D", 0) > 64 else 4, 3


CASES = {
    **{
        f"attention {width}": attention_case(
            attention._attention_kernel, width, attention._tile(width), ENTROPY=True, OUT=True
        )
        for width in (64, 72, 128, 256)
    },
    **{
        f"columns {width}": attention_case(
            attention._column_kernel, width, attention._column_tile(width), WEIGHTED=True
        )
        for width in (64, 256)
    },
    "norm forward": norm_case(norm._forward_kernel, CAST="llama", RESIDUAL=True, BIAS=False, DSHIFT=True),
    "norm backward": norm_case(norm._backward_kernel, GEMMA=False, DTOTAL=True, DWEIGHT=True, DBIAS=False),
    "maxima 768": search_case(search._group_maxima_kernel, True, D=768, ROWS=128, CODES=256, STEP=64),
    "maxima 32": search_case(search._group_maxima_kernel, True, D=32, ROWS=128, CODES=128, STEP=32),
    "rescore 768": search_case(search._rescore_kernel, False, D=768, STEP=256, CHUNK=1024, COSINE=False),
}


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("name", CASES)
def test_compiles(name, capability, tmp_path):
    kernel, types, constants, warps, stages = CASES[name]
    signature = {arg: "constexpr" if arg in constants else types[arg] for arg in kernel.arg_names}
    # What a launch would know: pointers and strides are multiples of 16 bytes.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, arg in enumerate(kernel.arg_names)
        if signature[arg].startswith("*") or (len(arg) == 2 and arg[1] in "bhn")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert built.metadata.shared <= SHARED_BYTES[capability]
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(built.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    stack = int(usage.split("STACK:")[1].split()[0])
    assert stack <= 64, f"{stack} bytes of registers are spilled per thread"
