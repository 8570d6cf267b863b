// Running maximum (or minimum) over edges, the number of edges that attain it, and its gradient.
#include "common.cuh"

template <class A>
struct Best {
    A value;
    int ties;
};

template <class A>
DEVICE Best<A> better(Best<A> a, Best<A> b, bool minimum) {
    if (a.value == b.value) return Best<A>{a.value, a.ties + b.ties};
    if (b.value != b.value) return b;  // NaN is better than any number, as in torch
    return (minimum ? b.value < a.value : b.value > a.value) ? b : a;
}

// With `partial`, row k of the block goes to row k - first of `best` and `ties`. COUNTED: x is
// itself such a result, and `counts` holds its ties.
template <class X, int V, bool COUNTED>
KERNEL(8)
maximum(EDGES, const X* x, i64 x_stride, const int* counts, i64 counts_stride, X* best,
        i64 best_stride, int* ties, i64 ties_stride, int width, int minimum, int lanes_log,
        int span_log, int partial) {
    typedef Sum<X> A;
    const Edges edges = GIVEN_EDGES;
    const Place place = place_of<V>(first, width, lanes_log, span_log);
    const Row row = row_of(edges, place.k);
    const i64 to = partial ? place.k - first : row.local;
    const bool holds = place.group == 0 && place.inside && row.count > 0;
    Best<A> top[V];
    Pack<X, V> was = zeros<X, V>();
    Pack<int, V> had = zeros<int, V>();
    if (holds) {
        was = load<X, V>(best + to * best_stride + place.column);
        had = load<int, V>(ties + to * ties_stride + place.column);
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        const A least = minimum ? -minus_infinity<A>() : minus_infinity<A>();
        top[v] = Best<A>{holds ? widen(was, v) : least, had.at[v]};
    }
    for (int base = place.group; base < row.count; base += UNROLL << place.groups_log) {
        int at[UNROLL];
        Pack<X, V> value[UNROLL];
        Pack<int, V> count[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int i = base + (u << place.groups_log);
            at[u] = column_of(edges, row.begin + min(i, row.count - 1));
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            value[u] = gather<X, V>(x + at[u] * x_stride + place.column);
            if (COUNTED) count[u] = gather<int, V>(counts + at[u] * counts_stride + place.column);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (base + (u << place.groups_log) >= row.count) continue;
#pragma unroll
            for (int v = 0; v < V; v++)
                top[v] = better(
                    top[v], Best<A>{widen(value[u], v), COUNTED ? count[u].at[v] : 1}, minimum);
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++)
        for (int other = 1 << lanes_log; other < 1 << span_log; other *= 2) {
            const A value = __shfl_xor_sync(ALL, top[v].value, other);
            const int count = __shfl_xor_sync(ALL, top[v].ties, other);
            top[v] = better(top[v], Best<A>{value, count}, minimum);
        }
    if (!holds) return;
#pragma unroll
    for (int v = 0; v < V; v++) {
        narrow(top[v].value, was.at[v]);
        had.at[v] = top[v].ties;
    }
    store<X, V>(best + to * best_stride + place.column, was);
    store<int, V>(ties + to * ties_stride + place.column, had);
}

// grad[row] += sum over edges of share[column] where best[column] == x[row].
template <class X, class O, int V>
KERNEL(8)
maximum_backward(EDGES, const X* best, i64 best_stride, const X* share, i64 share_stride,
                 const X* x, i64 x_stride, O* grad, i64 grad_stride, int width, int lanes_log,
                 int span_log, int partial) {
    typedef Sum<X> A;
    const Edges edges = GIVEN_EDGES;
    const Place place = place_of<V>(first, width, lanes_log, span_log);
    const Row row = row_of(edges, place.k);
    Pack<X, V> own = zeros<X, V>();
    if (row.count > 0) own = load<X, V>(x + row.local * x_stride + place.column);
    A sum[V] = {};
    for (int base = place.group; base < row.count; base += UNROLL << place.groups_log) {
        int at[UNROLL];
        Pack<X, V> value[UNROLL], part[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int i = base + (u << place.groups_log);
            at[u] = column_of(edges, row.begin + min(i, row.count - 1));
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            value[u] = gather<X, V>(best + at[u] * best_stride + place.column);
            part[u] = gather<X, V>(share + at[u] * share_stride + place.column);
        }
#pragma unroll
        for (int v = 0; v < V; v++) {
            A total = 0;
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const bool valid = base + (u << place.groups_log) < row.count;
                const bool attains = valid && widen(value[u], v) == widen(own, v);
                total += attains ? widen(part[u], v) : A(0);
            }
            sum[v] += total;
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] = add_lanes(sum[v], 1 << lanes_log, 1 << span_log);
    if (place.group == 0 && place.inside && row.count > 0)
        add_to<O, V>(grad + (partial ? place.k - first : row.local) * grad_stride + place.column,
                     sum);
}
