// Packs rows into a message, and adds the rows of a message to their destinations.
#include "common.cuh"

// out[i] = x[rows[i]].
template <class X, class O, int V>
KERNEL(8)
pack_rows(const X* x, i64 x_stride, const int* rows, i64 count, O* out, i64 out_stride, int width,
          int lanes_log) {
    const Place place = place_of<V>(0, width, lanes_log, lanes_log);
    if (place.k >= count || !place.inside) return;
    const Pack<X, V> from = gather<X, V>(x + rows[place.k] * x_stride + place.column);
    Pack<O, V> to;
#pragma unroll
    for (int v = 0; v < V; v++) narrow(widen(from, v), to.at[v]);
    store<O, V>(out + place.k * out_stride + place.column, to);
}

// out[i] = x[rows[i]], followed by the same rows of up to three matrices of `heads` scalars each.
template <class X, class O, int V>
KERNEL(8)
pack_message(const X* x, i64 x_stride, const int* rows, i64 count, O* out, i64 out_stride,
             const Sum<X>* a, i64 a_stride, const Sum<X>* b, i64 b_stride, const Sum<X>* c,
             i64 c_stride, Sum<X>* scalars, i64 scalars_stride, int width, int heads,
             int matrices, int lanes_log) {
    const Place place = place_of<1>(0, width / V + matrices * heads, lanes_log, lanes_log);
    if (place.k >= count || !place.inside) return;
    const i64 row = rows[place.k];
    const int column = place.column * V;
    if (column < width) {
        const Pack<X, V> from = gather<X, V>(x + row * x_stride + column);
        Pack<O, V> to;
#pragma unroll
        for (int v = 0; v < V; v++) narrow(widen(from, v), to.at[v]);
        store<O, V>(out + place.k * out_stride + column, to);
        return;
    }
    const int at = place.column - width / V;
    const Sum<X>* from = at < heads       ? a + row * a_stride + at
                         : at < 2 * heads ? b + row * b_stride + at - heads
                                          : c + row * c_stride + at - 2 * heads;
    scalars[place.k * scalars_stride + at] = __ldg(from);
}

// out[rows[i]] += x[i]; all rows are different.
template <class X, class O, int V>
KERNEL(8)
add_rows(const X* x, i64 x_stride, const int* rows, i64 count, O* out, i64 out_stride, int width,
         int lanes_log) {
    const Place place = place_of<V>(0, width, lanes_log, lanes_log);
    if (place.k >= count || !place.inside) return;
    const Pack<X, V> from = gather<X, V>(x + place.k * x_stride + place.column);
    Sum<X> sum[V];
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] = widen(from, v);
    add_to<O, V>(out + rows[place.k] * out_stride + place.column, sum);
}
