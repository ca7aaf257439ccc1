"""Triton's interpreter, mended where its versions need it, and with the precision of the matrix units."""

from typing import Any

import numpy as np
import pytest


def mend() -> None:
    """Let loops run over a scalar: before Triton 3.7 that fails with NumPy 2.4 and later."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)
        if scope:
            scope[0].set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
        else:
            tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch


def cut_to_tf32(x: np.ndarray) -> np.ndarray:
    """Cut float32 to the 10 bits of mantissa that a matrix unit reads in tf32 (rounding instead would halve errors)."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def cut_products(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cut the operands of every product in tf32; give the list that collects each product's precision."""
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot
    seen: list[str] = []

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        seen.append(precision.name)
        if precision.name == "TF32":
            a, b = (interpreter.TensorHandle(cut_to_tf32(x.data), x.dtype) for x in (a, b))
        return original(self, a, b, d, precision, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    return seen
