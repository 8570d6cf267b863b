// Attention (GAT), backward, at the source's owner: rows are sources j, columns destinations i.
#include "gat_units.cuh"

// grad_t goes to columns, from many rows at once. It is summed in 64-bit integers, as multiples of
// 1 / unit: such sums are the same in every order. `unit` is a power of two that lets none
// overflow: `gat_units.cu`. grad_score, where not null, receives the gradient of every edge's score
// ([edges, heads]). With `self_loops` each row also has an edge to itself. Without `adds`, grad_z is
// overwritten; every row must have an edge then.
template <class X, int V, int LANES, int EXTRAS>
KERNEL(LANES == WIDE                          ? 3
       : EXTRAS == FEATURES || sizeof(X) == 8 ? 4
       : LANES == 0                           ? 5
       : LANES == WARP || V == 8              ? 7
                                              : 8)
gat_backward(EDGES, const X* g, i64 g_stride, const Sum<X>* t, i64 t_stride,
                   const Sum<X>* lse, i64 lse_stride, const Sum<X>* d, i64 d_stride, const X* z,
                   i64 z_stride, const Sum<X>* s, i64 s_stride, Sum<X>* grad_z, i64 grad_z_stride,
                   Sum<X>* grad_s, i64 grad_s_stride, int self_loops, int adds, u64* grad_t, UNIT,
                   Sum<X>* grad_score, EDGE_TERM, DROPOUT, Sum<X> slope, int heads, int channels, int lanes_log,
                   int side_log, int first_channel, int keep, int partial) {
    typedef Sum<X> A;
    const Edges edges = GIVEN_EDGES;
    const i64 k = first + (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / WARP;
    Row row = row_of(edges, k);
    if (k < last) row.count += self_loops;
    if (row.count == 0) return;
    const HeadPlace<LANES> place(heads, channels, lanes_log, side_log, first_channel, V);
    const EdgeTerm<A, EXTRAS> term = GIVEN_EDGE_TERM;
    const Mask<A, EXTRAS> mask(GIVEN_DROPOUT, row.local);
    const i64 to = partial ? k - first : row.local;
    const X* z_head = z + row.local * z_stride + place.head * channels;
    const X* g_head = g + place.head * channels;
    const Pack<X, V> own = gather<X, V>(z_head + place.channel);
    const A own_s = s[row.local * s_stride + place.head];
    const bool writes = keep && place.first;
    const A unit = grad_t ? GIVEN_UNIT : A(0);
    A sum[V] = {}, sum_s = 0;
    int ahead[place.OWN];
    look_ahead(edges, row, place, 0, ahead, self_loops);
    for (int base = 0; base < row.count; base += UNROLL * place.groups) {
        const Batch<LANES> batch(row, place, base, ahead);
        Pack<X, V> value[UNROLL];
        A raw[place.OWN], their_lse[place.OWN], their_d[place.OWN];
        A dot[UNROLL], own_dot[place.OWN], own_weight[place.OWN], weight[UNROLL];
        batch.read(value, g_head + place.channel, g_stride);
        batch.read(raw, t + place.head, t_stride);
        batch.read(their_lse, lse + place.head, lse_stride);
        batch.read(their_d, d + place.head, d_stride);
        look_ahead(edges, row, place, base + UNROLL * place.groups, ahead, self_loops);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            dot[u] = place.inside ? inner(value[u], own) : A(0);
            if (LANES == WIDE)
                dot[u] += elsewhere<X, V>(g_head + batch.at[u] * g_stride, z_head, channels,
                                          first_channel);
        }
        place.add_lanes_of(dot, own_dot);
        A part_s = 0;
#pragma unroll
        for (int i = 0; i < place.OWN; i++) {
            const i64 edge = batch.own_edge(i);
            raw[i] += own_s + term.of(edge, place.head);
            const A a =
                batch.own_valid(i) ? exponential(leaky(raw[i], slope) - their_lse[i]) : A(0);
            own_weight[i] = a * mask.of(batch.own_at[i], place.head);
            const A grad =
                (own_weight[i] * own_dot[i] - a * their_d[i]) * (raw[i] > 0 ? A(1) : slope);
            part_s += grad;
            if (!writes || !batch.own_valid(i)) continue;
            if (grad_t)
                atomicAdd(grad_t + static_cast<i64>(batch.own_at[i]) * heads + place.head,
                          in_units(grad, unit));
            if (EXTRAS == FEATURES && grad_score) grad_score[edge * heads + place.head] = grad;
        }
        sum_s += part_s;
        place.hand_round(own_weight, weight);
#pragma unroll
        for (int v = 0; v < V; v++) {
            A part = 0;
#pragma unroll
            for (int u = 0; u < UNROLL; u++) part += weight[u] * widen(value[u], v);
            sum[v] += part;
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] = add_lanes(sum[v], place.width, WARP);
    sum_s = add_lanes(add_lanes(sum_s, 1, place.SHARING), place.width, WARP);
    if (place.group > 0 || !place.inside) return;
    A* grad_z_head = grad_z + to * grad_z_stride + place.head * channels + place.channel;
    if (adds)
        add_to<A, V>(grad_z_head, sum);
    else
        set_to<A, V>(grad_z_head, sum);
    if (keep && place.leads()) grad_s[to * grad_s_stride + place.head] += sum_s;
}
