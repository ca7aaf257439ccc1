"""Short vectors for numba: explicit SIMD where its loop vectoriser would leave a loop scalar.

A numba loop over a short, fixed row is unrolled before it is vectorised and then stays scalar. These intrinsics emit
LLVM vector instructions instead, which every processor's back end cuts into the registers it has (a vector of 32
float32 is four AVX or eight NEON registers), and they fix the order of every sum, so that a result does not depend on
compiler flags. No fast-math flag is set: NaN and infinity keep their meaning.
"""

from typing import Any

import numba.extending
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

intrinsic: Any = numba.extending.intrinsic
"""numba's decorator, whose type would hide that the decorated functions take the arguments they are written with."""

WIDTH = 8
"""Lanes of the shortest vector, into which longer ones fold."""


class Lanes(types.Type):
    """Numba type of a vector of ``width`` floats."""

    def __init__(self, scalar: types.Float, width: int) -> None:
        self.scalar, self.width = scalar, width
        super().__init__(name=f"Lanes({scalar}, {width})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        scalar = dmm.lookup(fe_type.scalar).get_data_type()
        super().__init__(dmm, fe_type, ir.VectorType(scalar, fe_type.width))


def _i32(number: int) -> ir.Constant:
    return ir.Constant(ir.IntType(32), number)


def _element_pointer(context, builder, signature, args):
    """Pointer to the element of a contiguous one-dimensional array (the first two arguments)."""
    array_type, index_type = signature.args[:2]
    index = context.cast(builder, args[1], index_type, types.intp)
    return builder.gep(context.make_array(array_type)(context, builder, args[0]).data, [index])


def _vector_pointer(context, builder, signature, args, vector):
    """Pointer to a vector in an array, and the alignment that may be assumed: that of one element."""
    pointer = builder.bitcast(_element_pointer(context, builder, signature, args), vector.as_pointer())
    return pointer, signature.args[0].dtype.bitwidth // 8


def _make_load(width: int) -> Any:
    @intrinsic
    def load(typingctx, array, index):
        lanes = Lanes(array.dtype, width)

        def codegen(context, builder, signature, args):
            vector = context.get_value_type(lanes)
            pointer, alignment = _vector_pointer(context, builder, signature, args, vector)
            return builder.load(pointer, align=alignment)

        return lanes(array, index), codegen

    return load


load = _make_load(WIDTH)
"""``load(array, index)``: eight elements of a one-dimensional array from ``index``."""
load16 = _make_load(16)
load32 = _make_load(32)


@intrinsic
def store(typingctx, array, index, lanes):
    """Write a vector to a one-dimensional array from ``index``."""

    def codegen(context, builder, signature, args):
        pointer, alignment = _vector_pointer(context, builder, signature, args, args[2].type)
        builder.store(args[2], pointer, align=alignment)
        return context.get_dummy_value()

    return types.void(array, index, lanes), codegen


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of an element that is needed soon. An index outside of the array does no harm."""

    def codegen(context, builder, signature, args):
        element = _element_pointer(context, builder, signature, args)
        pointer = builder.bitcast(element, ir.IntType(8).as_pointer())
        function_type = ir.FunctionType(ir.VoidType(), [pointer.type, *[ir.IntType(32)] * 3])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        builder.call(function, [pointer, _i32(0), _i32(3), _i32(1)])
        return context.get_dummy_value()

    return types.void(array, index), codegen


def _make_splat(width: int) -> Any:
    @intrinsic
    def splat(typingctx, scalar):
        lanes = Lanes(scalar, width)

        def codegen(context, builder, signature, args):
            unset = ir.Constant(context.get_value_type(lanes), ir.Undefined)
            first = builder.insert_element(unset, args[0], _i32(0))
            return _shuffle(builder, first, unset, [0] * width)

        return lanes(scalar), codegen

    return splat


splat = _make_splat(WIDTH)
"""``splat(scalar)``: the same scalar in all eight lanes."""
splat16 = _make_splat(16)
splat32 = _make_splat(32)


def _make_spread(width: int) -> Any:
    @intrinsic
    def spread(typingctx, array, index):
        lanes = Lanes(array.dtype, width)

        def codegen(context, builder, signature, args):
            unset = ir.Constant(context.get_value_type(lanes), ir.Undefined)
            element = builder.load(_element_pointer(context, builder, signature, args))
            return _shuffle(builder, builder.insert_element(unset, element, _i32(0)), unset, [0] * width)

        return lanes(array, index), codegen

    return spread


spread = _make_spread(WIDTH)
"""``spread(array, index)``: one element of a one-dimensional array in all eight lanes, without a look at its sign."""
spread16 = _make_spread(16)
spread32 = _make_spread(32)


def _fma(builder, a, b, c):
    # fmuladd, not fma: without the instruction the latter would become one call of the C library per lane.
    vector = a.type
    name = f"llvm.fmuladd.v{vector.count}{vector.element.intrinsic_name}"
    function_type = ir.FunctionType(vector, [vector] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), (a, b, c))


@intrinsic
def add(typingctx, a, b):
    """Lane-wise sum."""
    return a(a, b), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def mul(typingctx, a, b):
    """Lane-wise product."""
    return a(a, b), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def sub(typingctx, a, b):
    """Lane-wise difference."""
    return a(a, b), lambda context, builder, signature, args: builder.fsub(*args)


@intrinsic
def maximum(typingctx, a, b):
    """Lane-wise the larger one; b where either is not a number."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, b), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """Lane-wise ``a * b + c``, fused where the processor can."""
    return a(a, b, c), lambda context, builder, signature, args: _fma(builder, *args)


_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP_SERIES = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_ROUND = 12582912.0
"""1.5 · 2^23: a float32 below 2^22 that is added to it is rounded to an integer, found in the lowest bits."""


def _every(vector, number):
    return ir.Constant(vector, [number] * vector.count)


def _exp(builder, x):
    """Exponential of float32 lanes, that of Cephes (S. Moshier): 2^n exp(r) with r within ln 2 / 2 of 0.

    Right to two units in the last place from -87 to 88, where 2^n is a normal number; beyond, that of the nearer end.
    """
    vector = x.type
    whole = ir.VectorType(ir.IntType(32), vector.count)
    for bound, beyond in ((_every(vector, 88.0), ">"), (_every(vector, -87.0), "<")):
        x = builder.select(builder.fcmp_ordered(beyond, x, bound), bound, x)
    shifted = _fma(builder, x, _every(vector, 1.4426950408889634), _every(vector, _ROUND))
    n = builder.fsub(shifted, _every(vector, _ROUND))
    r = _fma(builder, n, _every(vector, -_LN2_HIGH), x)
    r = _fma(builder, n, _every(vector, -_LN2_LOW), r)
    series = _every(vector, _EXP_SERIES[0])
    for term in (*_EXP_SERIES[1:], 1.0, 1.0):
        series = _fma(builder, series, r, _every(vector, term))
    bits = builder.shl(builder.bitcast(shifted, whole), _every(whole, 23))
    power = builder.bitcast(builder.add(bits, _every(whole, 127 << 23)), vector)
    return builder.fmul(series, power)


@intrinsic
def exp(typingctx, a):
    """Lane-wise exponential of float32, that of -87 below -87 and of 88 above 88."""
    if not isinstance(a, Lanes) or a.scalar != types.float32:
        return None
    return a(a), lambda context, builder, signature, args: _exp(builder, args[0])


@intrinsic
def sigmoid(typingctx, a):
    """Lane-wise ``1 / (1 + exp(-a))`` of float32."""
    if not isinstance(a, Lanes) or a.scalar != types.float32:
        return None

    def codegen(context, builder, signature, args):
        one = _every(args[0].type, 1.0)
        return builder.fdiv(one, builder.fadd(one, _exp(builder, builder.fneg(args[0]))))

    return a(a), codegen


@intrinsic
def softplus(typingctx, a):
    """Lane-wise ``log(1 + exp(a))`` of float32, exact for small results, too."""
    if not isinstance(a, Lanes) or a.scalar != types.float32:
        return None

    def codegen(context, builder, signature, args):
        x, vector = args[0], args[0].type
        zero, two = _every(vector, 0.0), _every(vector, 2.0)
        negative = builder.fcmp_ordered("<", x, zero)
        e = _exp(builder, builder.select(negative, x, builder.fneg(x)))
        # log(1 + e) = 2 artanh(s) with s = e / (2 + e), at most 1/3, so that nine terms of its series are enough.
        s = builder.fdiv(e, builder.fadd(two, e))
        square = builder.fmul(s, s)
        series = _every(vector, 1 / 17)
        for odd in range(15, 0, -2):
            series = _fma(builder, series, square, _every(vector, 1 / odd))
        return _fma(builder, builder.fmul(two, s), series, builder.select(negative, zero, x))

    return a(a), codegen


def _shuffle(builder, a, b, indices):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), list(indices))
    return builder.shuffle_vector(a, b, mask)


def _fold(builder, value, width):
    """Add the upper half of a vector to the lower one until ``width`` lanes are left."""
    while value.type.count > width:
        half = value.type.count // 2
        low, high = (_shuffle(builder, value, value, range(first, first + half)) for first in (0, half))
        value = builder.fadd(low, high)
    return value


@intrinsic
def fold(typingctx, a):
    """Sums of every eighth lane: a vector of eight."""
    return Lanes(a.scalar, WIDTH)(a), lambda context, builder, signature, args: _fold(builder, args[0], WIDTH)


@intrinsic
def total(typingctx, a):
    """Sum of all lanes, pairwise."""

    def codegen(context, builder, signature, args):
        return builder.extract_element(_fold(builder, args[0], 1), _i32(0))

    return a.scalar(a), codegen


@intrinsic
def totals(typingctx, array, index):
    """Sums of the eight rows of eight elements that stand one after another from ``index``: a vector of eight."""
    lanes = Lanes(array.dtype, WIDTH)

    def codegen(context, builder, signature, args):
        vector = context.get_value_type(lanes)
        start = context.cast(builder, args[1], signature.args[1], types.intp)
        rows = []
        for row in range(WIDTH):
            at = builder.add(start, ir.Constant(start.type, row * WIDTH))
            pointer, alignment = _vector_pointer(context, builder, lanes(array, types.intp), (args[0], at), vector)
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

    return lanes(array, index), codegen
