// Packs rows into a message and adds the rows of a message to where they belong.
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
    for (int v = 0; v < V; v++) narrow(widen(from.at[v]), to.at[v]);
    store<O, V>(out + place.k * out_stride + place.column, to);
}

// out[rows[i]] += x[i]; no two rows are the same.
template <class X, class O, int V>
KERNEL(8)
add_rows(const X* x, i64 x_stride, const int* rows, i64 count, O* out, i64 out_stride, int width,
         int lanes_log) {
    const Place place = place_of<V>(0, width, lanes_log, lanes_log);
    if (place.k >= count || !place.inside) return;
    const Pack<X, V> from = gather<X, V>(x + place.k * x_stride + place.column);
    Sum<X> sum[V];
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] = widen(from.at[v]);
    add_to<O, V>(out + rows[place.k] * out_stride + place.column, sum);
}
