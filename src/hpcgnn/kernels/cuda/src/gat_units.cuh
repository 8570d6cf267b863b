// The unit of sums over columns that are kept as 64-bit integers.
//
// With |a| summing to at most 1 over the edges into a node, the gradient of its score sums to at
// most max |g| max |z| / (1 - p) + max |d|, head by head.
#pragma once

#include "gat.cuh"

// Bounds of g, d and z as `gat_longest` leaves them; `most_kept` is 1 / (1 - p), `steepest` the larger
// of 1 and |slope|.
#define UNIT                                                                                \
    const Bits<Sum<X>>*longest_g, const Bits<Sum<X>>*largest_d, const Bits<Sum<X>>*longest_z, \
        Sum<X> most_kept, Sum<X> steepest
#define GIVEN_UNIT                                                                           \
    unit_below(                                                                              \
        (square_root(real(*longest_g)) * square_root(real(*longest_z)) * most_kept +         \
         real(*largest_d)) *                                                                 \
        steepest)

// Numbers of at least 0 as integers in the same order; not-a-number is above all of them.
template <class A>
struct BitsOf {
    typedef u32 type;
};
template <>
struct BitsOf<double> {
    typedef u64 type;
};
template <class A>
using Bits = typename BitsOf<A>::type;

DEVICE float square_root(float x) {
    return sqrtf(x);
}
DEVICE double square_root(double x) {
    return sqrt(x);
}
DEVICE float real(u32 bits) {
    return __int_as_float(static_cast<int>(bits));
}
DEVICE double real(u64 bits) {
    return __longlong_as_double(static_cast<i64>(bits));
}
DEVICE u32 bits_of(float value) {
    return static_cast<u32>(__float_as_int(value));
}
DEVICE u64 bits_of(double value) {
    return static_cast<u64>(__double_as_longlong(value));
}

// 2^(61 - e) where bound < 2^e, with e at least -60; not-a-number where the bound is not finite.
DEVICE float unit_below(float bound) {
    const int biased = static_cast<int>(bits_of(bound) >> 23 & 0xff);
    if (biased == 0xff) return bound - bound;
    const int exponent = biased - 126 > -60 ? biased - 126 : -60;
    return real(static_cast<u32>(61 - exponent + 127) << 23);
}
DEVICE double unit_below(double bound) {
    const int biased = static_cast<int>(bits_of(bound) >> 52 & 0x7ff);
    if (biased == 0x7ff) return bound - bound;
    const int exponent = biased - 1022 > -60 ? biased - 1022 : -60;
    return real(static_cast<u64>(61 - exponent + 1023) << 52);
}
