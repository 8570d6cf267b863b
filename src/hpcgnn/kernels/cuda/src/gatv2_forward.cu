// GATv2 attention, forward: rows are destinations.
#include "gatv2.cuh"

// With `partial`, row k of the block goes to row k - first of row_max, row_sum and out.
template <class X, int V, int LANES, int EXTRAS>
KERNEL(LANES == WIDE || EXTRAS == FEATURES ? 4
       : V == 8                ? 5
                               : 6)
gatv2_forward(EDGES, const X* left, i64 left_stride, const X* right, i64 right_stride,
                   const Sum<X>* att, SUMS, EDGE_TERM, DROPOUT, Sum<X> slope, int heads,
                   int channels, int lanes_log, int side_log, int first_channel, int keep, int partial) {
    typedef Sum<X> A;
    const Edges edges = GIVEN_EDGES;
    const i64 k = first + (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / WARP;
    const Row row = row_of(edges, k);
    if (row.count == 0) return;
    const HeadPlace<LANES> place(heads, channels, lanes_log, side_log, first_channel, V);
    const Sums<A> sums = GIVEN_SUMS;
    const EdgeMatrix<A, EXTRAS> matrix = GIVEN_EDGE_MATRIX;
    const Mask<A, EXTRAS> mask(GIVEN_DROPOUT, row.local);
    const i64 to = partial ? k - first : row.local;
    const int head = place.head * channels;
    const X* right_head = right + row.local * right_stride + head;
    const Pack<X, V> own = gather<X, V>(right_head + place.channel);
    const Pack<A, V> vector = gather<A, V>(att + head + place.channel);
    Running<A, V> run = begin_row<A, V>(sums, to, place, channels);
    int ahead[place.OWN];
    look_ahead(edges, row, place, 0, ahead);
    for (int base = 0; base < row.count; base += UNROLL * place.groups) {
        const Batch<LANES> batch(row, place, base, ahead);
        Pack<X, V> value[UNROLL];
        A score[UNROLL], own_score[place.OWN];
        batch.read(value, left + head + place.channel, left_stride);
        look_ahead(edges, row, place, base + UNROLL * place.groups, ahead);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const Pack<A, V> x =
                inside_of(value[u], own, matrix, batch.edge(u), head + place.channel);
            score[u] = place.inside ? score_of(x, vector, slope) : A(0);
            if (LANES == WIDE)
                score[u] += score_elsewhere<X, V>(left + batch.at[u] * left_stride + head,
                                                  right_head, att, matrix, batch.edge(u), head,
                                                  slope, channels, first_channel);
        }
        place.add_lanes_of(score, own_score);
        run.add(batch, own_score, mask, value);
    }
    end_row(run, sums, to, place, channels, keep);
}
