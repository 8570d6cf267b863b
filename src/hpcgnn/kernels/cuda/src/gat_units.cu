// Sums over columns as 64-bit integers: their bounds and their conversion.
#include "gat_units.cuh"

// longest = max over rows and heads of |x|^2 and largest = max of |scalars|, both as `Bits`, which
// start at 0; without scalars only the first. sums[row, head], unless null, become 0. A warp takes
// rows w, w + W, w + 2W and so on of all W.
template <class X, int V, int LANES>
KERNEL(8)
gat_longest(const X* x, i64 x_stride, const Sum<X>* scalars, i64 scalars_stride, i64 rows,
            Bits<Sum<X>>* longest, Bits<Sum<X>>* largest, u64* sums, int heads, int channels,
            int lanes_log, int side_log) {
    typedef Sum<X> A;
    const HeadPlace<LANES> place(heads, channels, lanes_log, side_log, 0, V);
    const i64 warp = (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / WARP;
    const i64 step = static_cast<i64>(gridDim.x) * (THREADS / WARP) * place.groups;
    Bits<A> most = 0, most_scalar = 0;
    for (i64 row = warp * place.groups; row < rows; row += step) {
        const i64 own = row + place.group < rows ? row + place.group : rows - 1;
        const X* from = x + own * x_stride + place.head * channels;
        A square = 0;
        for (int c = place.channel; place.inside && c < channels; c += WARP * V) {
            const Pack<X, V> value = gather<X, V>(from + c);
            square += inner(value, value);
            if (LANES != WIDE) break;
        }
#pragma unroll
        for (int other = 1; other < place.lanes(); other *= 2)
            square += __shfl_xor_sync(ALL, square, other);
        most = larger(most, bits_of(square));
        if (scalars) {
            const A value = scalars[own * scalars_stride + place.head];
            most_scalar = larger(most_scalar, bits_of(value < 0 ? -value : value));
        }
        if (sums && place.leads()) sums[own * heads + place.head] = 0;
    }
    for (int other = 1; other < WARP; other *= 2) {
        most = larger(most, __shfl_xor_sync(ALL, most, other));
        most_scalar = larger(most_scalar, __shfl_xor_sync(ALL, most_scalar, other));
    }
    if (threadIdx.x % WARP) return;
    atomicMax(longest, most);
    if (scalars) atomicMax(largest, most_scalar);
}

// grad[row, head] += sums[row, head] / unit; sums become 0 again.
template <class X, class O>
KERNEL(8)
gat_settle(u64* sums, UNIT, O* grad, i64 grad_stride, i64 rows, int heads) {
    const i64 row = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
    if (row >= rows) return;
    const O step = O(1) / GIVEN_UNIT;
    for (int head = 0; head < heads; head++) {
        const i64 sum = static_cast<i64>(sums[row * heads + head]);
        grad[row * grad_stride + head] += static_cast<O>(sum) * step;
        sums[row * heads + head] = 0;
    }
}
