// out[row] += sum over the row's edges of weight * x[column], or weight * (scale[column] *
// x[column]); without `adds`, out[row] = it. With `after`, the sum counts after[row] times, and with
// `loop`, loop[row] * x[row] is one of its terms.
#include "common.cuh"

// The values of edges besides their columns. SCALED: the weight may be null.
#define BARE 0
#define WEIGHTED 1
#define SCALED 2

// Rounded before it is added, so that sums are those of rows scaled beforehand.
DEVICE float rounded_product(float a, float b) {
    return __fmul_rn(a, b);
}
DEVICE double rounded_product(double a, double b) {
    return __dmul_rn(a, b);
}

// With `partial`, row k of the block goes to row k - first of `out`. Rows with too many edges have
// none here, so their sums must be added to `out`.
template <class X, class O, int V, int KIND>
KERNEL(8)
spmm(EDGES, const float* weight, const Sum<X>* scale, const Sum<X>* after, const Sum<X>* loop,
     const X* x, i64 x_stride, O* out, i64 out_stride, int width, int lanes_log, int span_log,
     int partial, int adds) {
    typedef Sum<X> A;
    const Edges edges = GIVEN_EDGES;
    const Place place = place_of<V>(first, width, lanes_log, span_log);
    const Row row = row_of(edges, place.k);
    const X* source = x + place.column;
    A sum[V] = {};
    for (int base = place.group; base < row.count; base += UNROLL << place.groups_log) {
        // All loads come before all arithmetic; past the end, the last edge has weight 0.
        int at[UNROLL];
        A factor[UNROLL], by[UNROLL];
        Pack<X, V> value[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int i = base + (u << place.groups_log);
            const i64 edge = row.begin + min(i, row.count - 1);
            at[u] = column_of(edges, edge);
            factor[u] = i < row.count ? A(1) : A(0);
            if (KIND == WEIGHTED || (KIND == SCALED && weight)) factor[u] *= __ldg(weight + edge);
            by[u] = KIND == SCALED ? __ldg(scale + at[u]) : A(1);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) value[u] = gather<X, V>(source + at[u] * x_stride);
#pragma unroll
        for (int v = 0; v < V; v++) {
            A part = 0;
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const A own = widen(value[u], v);
                part += factor[u] * (KIND == SCALED ? rounded_product(by[u], own) : own);
            }
            sum[v] += part;
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] = add_lanes(sum[v], 1 << lanes_log, 1 << span_log);
    if (place.group > 0 || !place.inside || place.k >= last || (adds && row.count == 0)) return;
    if (loop) {
        const A by = loop[row.local];
        const Pack<X, V> own = gather<X, V>(source + row.local * x_stride);
#pragma unroll
        for (int v = 0; v < V; v++) sum[v] += by * widen(own, v);
    }
    if (after) {
        const A by = after[row.local];
#pragma unroll
        for (int v = 0; v < V; v++) sum[v] *= by;
    }
    O* to = out + (partial ? place.k - first : row.local) * out_stride + place.column;
    if (adds)
        add_to<O, V>(to, sum);
    else
        set_to<O, V>(to, sum);
}
