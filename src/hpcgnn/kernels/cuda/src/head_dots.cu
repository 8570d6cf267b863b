// Inner products of rows, head by head: with rows, or with vectors that all rows share.
#include "gat.cuh"

// out[row, h] = <a[row], b[row] - minus> over the channels of head h; minus may be null. With `grad`,
// which may be a, grad = scale * a where b is above 0, else 0, and is used instead of a. A warp
// processes one row, or as many rows as it has groups of lanes.
template <class X, int V, int LANES>
KERNEL(8)
head_dots(const X* a, i64 a_stride, const X* b, i64 b_stride, const Sum<X>* minus, X* grad,
          i64 grad_stride, Sum<X> scale, i64 rows, Sum<X>* out, i64 out_stride, int heads, int channels, int lanes_log, int side_log) {
    typedef Sum<X> A;
    const HeadPlace<LANES> place(heads, channels, lanes_log, side_log, 0, V);
    const i64 warp = (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / WARP;
    const i64 row = warp * place.groups + place.group;
    const i64 own = row < rows ? row : rows - 1;
    const int head = place.head * channels;
    A dot = 0;
    for (int c = place.channel; place.inside && c < channels; c += WARP * V) {
        Pack<X, V> left = load<X, V>(a + own * a_stride + head + c);
        const Pack<X, V> right = gather<X, V>(b + own * b_stride + head + c);
        if (grad) {
#pragma unroll
            for (int v = 0; v < V; v++)
                narrow(widen(right, v) <= 0 ? A(0) : widen(left, v) * scale, left.at[v]);
            if (row < rows) store<X, V>(grad + row * grad_stride + head + c, left);
        }
#pragma unroll
        for (int v = 0; v < V; v++)
            dot += widen(left, v) *
                   (widen(right, v) - (minus ? __ldg(minus + head + c + v) : A(0)));
        if (LANES != WIDE) break;
    }
#pragma unroll
    for (int other = 1; other < place.lanes(); other *= 2)
        dot += __shfl_xor_sync(ALL, dot, other);
    if (row < rows && place.inside && place.leads()) out[row * out_stride + place.head] = dot;
}

// out[row, h] = <z[row], source> and out[row, heads + h] = <z[row], target>, both over the channels
// of head h. A warp's groups of lanes process UNROLL rows each.
template <class X, int V, int LANES>
KERNEL(8)
head_scores(const X* z, i64 z_stride, const Sum<X>* source, const Sum<X>* target, i64 rows,
            Sum<X>* out, i64 out_stride, int heads, int channels, int lanes_log, int side_log) {
    typedef Sum<X> A;
    const HeadPlace<LANES> place(heads, channels, lanes_log, side_log, 0, V);
    const i64 warp = (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / WARP;
    const i64 first = (warp * place.groups + place.group) * UNROLL;
    const int head = place.head * channels;
    A dots[2][UNROLL] = {};
    for (int c = place.channel; place.inside && c < channels; c += WARP * V) {
        Pack<X, V> row[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const i64 own = first + u < rows ? first + u : rows - 1;
            row[u] = gather<X, V>(z + own * z_stride + head + c);
        }
#pragma unroll
        for (int v = 0; v < V; v++) {
            const A s = __ldg(source + head + c + v), t = __ldg(target + head + c + v);
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                dots[0][u] += widen(row[u], v) * s;
                dots[1][u] += widen(row[u], v) * t;
            }
        }
        if (LANES != WIDE) break;
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
#pragma unroll
        for (int side = 0; side < 2; side++) {
            A dot = dots[side][u];
            for (int other = 1; other < place.lanes(); other *= 2)
                dot += __shfl_xor_sync(ALL, dot, other);
            if (first + u < rows && place.inside && place.leads())
                out[(first + u) * out_stride + side * heads + place.head] = dot;
        }
}
