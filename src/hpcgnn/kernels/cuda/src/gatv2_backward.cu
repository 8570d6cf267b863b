// GATv2 attention, backward, at the destination's owner: once by destination for the gradients of
// zr and att, once by source (over the transposed block) for the gradient of zl.
#include "gatv2.cuh"

// Rows are destinations. Warp w of all W = `gridDim.x * THREADS / WARP` takes rows w, w + W, w + 2W
// and so on. It leaves its sum of gradients of att in row w of `grad_att` ([warps, heads *
// channels]), and each of its groups of lanes that of the edge matrix in `grad_matrix` ([warps,
// groups, features, heads * channels]), in doubles: these are sums over all the rows of a warp.
template <class X, int V, int LANES, int EXTRAS>
KERNEL(LANES == WIDE && V == 8                          ? 2
       : LANES == WIDE || EXTRAS == FEATURES || V == 8 ? 3
                                                       : 4)
gatv2_backward_right(EDGES, const X* left, i64 left_stride, const X* right, i64 right_stride,
                          const Sum<X>* att, const X* g, i64 g_stride, const Sum<X>* lse,
                          i64 lse_stride, const Sum<X>* d, i64 d_stride, Sum<X>* grad_right,
                          i64 grad_right_stride, Sum<X>* grad_att, double* grad_matrix, EDGE_TERM,
                          DROPOUT, Sum<X> slope, int heads, int channels, int lanes_log,
                          int side_log, int first_channel, int partial) {
    typedef Sum<X> A;
    const Edges edges = GIVEN_EDGES;
    const HeadPlace<LANES> place(heads, channels, lanes_log, side_log, first_channel, V);
    const i64 warp = (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / WARP;
    const i64 warps = static_cast<i64>(gridDim.x) * (THREADS / WARP);
    const int head = place.head * channels;
    const EdgeMatrix<A, EXTRAS> matrix = GIVEN_EDGE_MATRIX;
    const Pack<A, V> vector = gather<A, V>(att + head + place.channel);
    const i64 slot = (warp * place.groups + place.group) * feature_width;
    Compensated<A> sum_att[V];
    for (i64 k = first + warp; k < last; k += warps) {
        const Row row = row_of(edges, k);
        if (row.count == 0) continue;
        const Mask<A, EXTRAS> mask(GIVEN_DROPOUT, row.local);
        const X* right_head = right + row.local * right_stride + head;
        const X* g_head = g + row.local * g_stride + head;
        const Pack<X, V> own = gather<X, V>(right_head + place.channel);
        const Pack<X, V> own_g = gather<X, V>(g_head + place.channel);
        const A own_lse = lse[row.local * lse_stride + place.head];
        const A own_d = d[row.local * d_stride + place.head];
        A sum[V] = {};
        int ahead[place.OWN];
        look_ahead(edges, row, place, 0, ahead);
        for (int base = 0; base < row.count; base += UNROLL * place.groups) {
            const Batch<LANES> batch(row, place, base, ahead);
            Pack<X, V> value[UNROLL];
            A score[UNROLL], dot[UNROLL], own_score[place.OWN], own_dot[place.OWN], grad[UNROLL];
            batch.read(value, left + head + place.channel, left_stride);
            look_ahead(edges, row, place, base + UNROLL * place.groups, ahead);
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const Pack<A, V> x =
                    inside_of(value[u], own, matrix, batch.edge(u), head + place.channel);
                score[u] = place.inside ? score_of(x, vector, slope) : A(0);
                dot[u] = place.inside ? inner(value[u], own_g) : A(0);
                if (LANES == WIDE) {
                    const X* left_head = left + batch.at[u] * left_stride + head;
                    score[u] +=
                        score_elsewhere<X, V>(left_head, right_head, att, matrix, batch.edge(u),
                                              head, slope, channels, first_channel);
                    dot[u] += elsewhere<X, V>(left_head, g_head, channels, first_channel);
                }
            }
            place.add_lanes_of(score, own_score);
            place.add_lanes_of(dot, own_dot);
#pragma unroll
            for (int i = 0; i < place.OWN; i++)
                own_score[i] = gradient_of(batch.own_valid(i), own_score[i], own_dot[i], own_lse,
                                           own_d, mask.of(batch.own_at[i], place.head))
                                   .score;
            place.hand_round(own_score, grad);
            A all[V] = {}, all_att[V] = {};
            Pack<A, V> part[UNROLL];  // gradients of zr, but for the factor `vector`
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const Pack<A, V> x =
                    inside_of(value[u], own, matrix, batch.edge(u), head + place.channel);
                const A below = grad[u] * slope;
#pragma unroll
                for (int v = 0; v < V; v++) {
                    part[u].at[v] = x.at[v] > 0 ? grad[u] : below;
                    all[v] += part[u].at[v];
                    all_att[v] += part[u].at[v] * x.at[v];
                }
            }
#pragma unroll
            for (int v = 0; v < V; v++) {
                sum[v] += vector.at[v] * all[v];
                sum_att[v].add(all_att[v]);
            }
            if (EXTRAS == FEATURES && grad_matrix && place.inside)
                for (int f = 0; f < feature_width; f++) {
                    double* to = grad_matrix + (slot + f) * heads * channels + head + place.channel;
                    A factor[UNROLL];
#pragma unroll
                    for (int u = 0; u < UNROLL; u++)
                        factor[u] = static_cast<A>(features[batch.edge(u) * feature_width + f]);
#pragma unroll
                    for (int v = 0; v < V; v++) {
                        A term = 0;
#pragma unroll
                        for (int u = 0; u < UNROLL; u++) term += factor[u] * part[u].at[v];
                        to[v] += vector.at[v] * term;
                    }
                }
        }
#pragma unroll
        for (int v = 0; v < V; v++) sum[v] = add_lanes(sum[v], place.width, WARP);
        const i64 to = partial ? k - first : row.local;
        if (place.group == 0 && place.inside)
            add_to<A, V>(grad_right + to * grad_right_stride + head + place.channel, sum);
    }
    Pack<A, V> total;
#pragma unroll
    for (int v = 0; v < V; v++) total.at[v] = add_lanes(sum_att[v].total(), place.width, WARP);
    if (place.group == 0 && place.inside)
        store<A, V>(grad_att + (warp * heads + place.head) * channels + place.channel, total);
}

// Rows are sources, columns destinations.
template <class X, int V, int LANES, int EXTRAS>
KERNEL(LANES == WIDE || EXTRAS == FEATURES ? 3 : 4)
gatv2_backward_left(EDGES, const X* left, i64 left_stride, const X* right, i64 right_stride,
                         const Sum<X>* att, const X* g, i64 g_stride, const Sum<X>* lse,
                         i64 lse_stride, const Sum<X>* d, i64 d_stride, Sum<X>* grad_left,
                         i64 grad_left_stride, EDGE_TERM, DROPOUT, Sum<X> slope, int heads,
                         int channels, int lanes_log, int side_log, int first_channel,
                         int partial) {
    typedef Sum<X> A;
    const Edges edges = GIVEN_EDGES;
    const i64 k = first + (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / WARP;
    const Row row = row_of(edges, k);
    if (row.count == 0) return;
    const HeadPlace<LANES> place(heads, channels, lanes_log, side_log, first_channel, V);
    const Mask<A, EXTRAS> mask(GIVEN_DROPOUT, row.local);
    const EdgeMatrix<A, EXTRAS> matrix = GIVEN_EDGE_MATRIX;
    const int head = place.head * channels;
    const X* left_head = left + row.local * left_stride + head;
    const Pack<X, V> own = gather<X, V>(left_head + place.channel);
    const Pack<A, V> vector = gather<A, V>(att + head + place.channel);
    A sum[V] = {};
    int ahead[place.OWN];
    look_ahead(edges, row, place, 0, ahead);
    for (int base = 0; base < row.count; base += UNROLL * place.groups) {
        const Batch<LANES> batch(row, place, base, ahead);
        Pack<X, V> value[UNROLL], their_g[UNROLL];
        A score[UNROLL], dot[UNROLL], weight[UNROLL];
        A own_score[place.OWN], own_dot[place.OWN], their_lse[place.OWN], their_d[place.OWN];
        batch.read(value, right + head + place.channel, right_stride);
        batch.read(their_g, g + head + place.channel, g_stride);
        batch.read(their_lse, lse + place.head, lse_stride);
        batch.read(their_d, d + place.head, d_stride);
        look_ahead(edges, row, place, base + UNROLL * place.groups, ahead);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const Pack<A, V> x =
                inside_of(own, value[u], matrix, batch.edge(u), head + place.channel);
            score[u] = place.inside ? score_of(x, vector, slope) : A(0);
            dot[u] = place.inside ? inner(own, their_g[u]) : A(0);
            if (LANES == WIDE) {
                score[u] += score_elsewhere<X, V>(left_head, right + batch.at[u] * right_stride + head,
                                                  att, matrix, batch.edge(u), head, slope, channels,
                                                  first_channel);
                dot[u] += elsewhere<X, V>(left_head, g + batch.at[u] * g_stride + head, channels,
                                          first_channel);
            }
        }
        place.add_lanes_of(score, own_score);
        place.add_lanes_of(dot, own_dot);
#pragma unroll
        for (int i = 0; i < place.OWN; i++) {
            const EdgeGradient<A> grad =
                gradient_of(batch.own_valid(i), own_score[i], own_dot[i], their_lse[i], their_d[i],
                            mask.of(batch.own_at[i], place.head));
            own_score[i] = grad.score;
            own_dot[i] = grad.weight;
        }
        place.hand_round(own_score, score);
        place.hand_round(own_dot, weight);
        A all[V] = {}, inside[V] = {};
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const Pack<A, V> x =
                inside_of(own, value[u], matrix, batch.edge(u), head + place.channel);
            const A below = score[u] * slope;
#pragma unroll
            for (int v = 0; v < V; v++) {
                all[v] += weight[u] * widen(their_g[u], v);
                inside[v] += x.at[v] > 0 ? score[u] : below;
            }
        }
#pragma unroll
        for (int v = 0; v < V; v++) sum[v] += all[v] + vector.at[v] * inside[v];
    }
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] = add_lanes(sum[v], place.width, WARP);
    const i64 to = partial ? k - first : row.local;
    if (place.group == 0 && place.inside)
        add_to<A, V>(grad_left + to * grad_left_stride + head + place.channel, sum);
}
