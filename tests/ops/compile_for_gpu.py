"""Compile the Triton kernels for a GPU that need not be here, and print as JSON what came out.

python -m tests.ops.compile_for_gpu 90 half 32 64
"""

import json
import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from had.ops import cuda, triton_kernels

FLOAT32 = ("start_ptr", "end_ptr", "kept_ptr", "d_end_ptr", "d_start_ptr", "g_ptr", "beta_ptr", "dg_ptr", "dbeta_ptr")


def compiled(backward: bool, capability: int, kind: str, K: int, V: int) -> dict[str, int]:
    kernel = triton_kernels.backward_kernel if backward else triton_kernels.forward_kernel
    options = cuda._options(cuda.PLANS[kind], K, V, normalise=True)
    # For a GPU the compiler is told apart from the kernel's own constants.
    chosen = {name: options.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in options}
    constants = {**options, **({"HAS_END": True} if backward else {"KEEP": True}), "HAS_START": True}
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*fp32" if name in FLOAT32 or kind == "float32" else "*bf16"
        else:
            signature[name] = {"scale": "fp32", "n_rows": "i64"}.get(name, "i32")
    places = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={places[name]: value for name, value in constants.items()},
        attrs={place: [["tt.divisibility", 16]] for name, place in places.items() if name.endswith("_ptr")},
    )
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=chosen)
    ptx = result.asm["ptx"]
    return {
        "shared_bytes": result.metadata.shared,
        "asynchronous": len(re.findall("wgmma", ptx)),
        "tensor_core": len(re.findall(r"mma\.sync", ptx)),
    }


if __name__ == "__main__":
    capability, kind, K, V = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    print(json.dumps([compiled(backward, capability, kind, K, V) for backward in (False, True)]))
