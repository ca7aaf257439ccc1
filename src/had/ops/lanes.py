"""Eight-lane vectors for numba: explicit SIMD where its loop vectoriser would leave a loop scalar.

A numba loop over a short, fixed row is unrolled before it is vectorised and then stays scalar. These intrinsics emit
LLVM vector instructions instead, which every processor's back end lowers to what it has (one AVX register, two NEON
ones), and they fix the order of every sum, so a result does not depend on compiler flags. No fast-math flag is set:
NaN and infinity keep their meaning.
"""

from typing import Any

import numba.extending
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

intrinsic: Any = numba.extending.intrinsic

WIDTH = 8
"""Lanes in a vector, for float32 and for float64."""


class Lanes(types.Type):
    """Numba type of a vector of ``WIDTH`` equal floats."""

    def __init__(self, scalar: types.Float) -> None:
        self.scalar = scalar
        super().__init__(name=f"Lanes({scalar}, {WIDTH})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        scalar = dmm.lookup(fe_type.scalar).get_data_type()
        super().__init__(dmm, fe_type, ir.VectorType(scalar, WIDTH))


def _address(context, builder, array_type, array, index):
    """Pointer to eight elements of a contiguous array from ``index``, and the alignment that may be assumed."""
    struct = context.make_array(array_type)(context, builder, array)
    scalar = context.get_data_type(array_type.dtype)
    pointer = builder.gep(struct.data, [index])
    return builder.bitcast(pointer, ir.VectorType(scalar, WIDTH).as_pointer()), array_type.dtype.bitwidth // 8


@intrinsic
def load(typingctx, array, index):
    """Eight elements of a one-dimensional array from ``index``."""

    def codegen(context, builder, signature, args):
        index_value = context.cast(builder, args[1], signature.args[1], types.intp)
        pointer, alignment = _address(context, builder, signature.args[0], args[0], index_value)
        return builder.load(pointer, align=alignment)

    return Lanes(array.dtype)(array, index), codegen


@intrinsic
def store(typingctx, array, index, lanes):
    """Write eight elements of a one-dimensional array from ``index``."""

    def codegen(context, builder, signature, args):
        index_value = context.cast(builder, args[1], signature.args[1], types.intp)
        pointer, alignment = _address(context, builder, signature.args[0], args[0], index_value)
        builder.store(args[2], pointer, align=alignment)
        return context.get_dummy_value()

    return types.void(array, index, lanes), codegen


@intrinsic
def splat(typingctx, scalar):
    """The same scalar in every lane."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(args[0].type, WIDTH)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
        return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

    return Lanes(scalar)(scalar), codegen


@intrinsic
def add(typingctx, a, b):
    """Lane-wise sum."""
    return a(a, b), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def mul(typingctx, a, b):
    """Lane-wise product."""
    return a(a, b), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def fma(typingctx, a, b, c):
    """Lane-wise ``a * b + c``, fused where the processor can."""

    def codegen(context, builder, signature, args):
        # fmuladd, not fma: without the instruction the latter would become eight calls of the C library.
        vector = args[0].type
        name = f"llvm.fmuladd.v{WIDTH}{vector.element.intrinsic_name}"
        function_type = ir.FunctionType(vector, [vector] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)

    return a(a, b, c), codegen


def _shuffle(builder, a, b, indices):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), list(indices))
    return builder.shuffle_vector(a, b, mask)


@intrinsic
def total(typingctx, a):
    """Sum of the eight lanes, pairwise."""

    def codegen(context, builder, signature, args):
        value = args[0]
        for half in (4, 2, 1):
            low = _shuffle(builder, value, value, range(half))
            high = _shuffle(builder, value, value, range(half, 2 * half))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return a.scalar(a), codegen


@intrinsic
def totals(typingctx, array, index):
    """Sums over the columns of an 8 x 8 block that stands row after row from ``index``: one vector of eight sums."""

    def codegen(context, builder, signature, args):
        start = context.cast(builder, args[1], signature.args[1], types.intp)
        rows = []
        for row in range(WIDTH):
            index_value = builder.add(start, ir.Constant(start.type, row * WIDTH))
            pointer, alignment = _address(context, builder, signature.args[0], args[0], index_value)
            rows.append(builder.load(pointer, align=alignment))
        # Each level halves the vectors; the patterns are single unpack or permute instructions on x86.
        for low, high in (
            ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)),
            ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)),
            ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)),
        ):
            rows = [
                builder.fadd(_shuffle(builder, a, b, low), _shuffle(builder, a, b, high))
                for a, b in zip(rows[::2], rows[1::2], strict=True)
            ]
        return rows[0]

    return Lanes(array.dtype)(array, index), codegen


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of an element that is needed soon. An index outside of the array does no harm."""

    def codegen(context, builder, signature, args):
        index_value = context.cast(builder, args[1], signature.args[1], types.intp)
        pointer, _ = _address(context, builder, signature.args[0], args[0], index_value)
        byte_pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer.type, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        builder.call(function, [byte_pointer, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, index), codegen
