// Attention (GAT), forward: scores, running softmax and weighted sum of a block in one pass.
#include "gat.cuh"

// With `partial`, row k of the block goes to row k - first of row_max, row_sum and out. With `self_loops`
// each row also has an edge to itself, and the former row_max, row_sum and out are not read.
template <class X, int V, int LANES, int EXTRAS>
KERNEL(EXTRAS == FEATURES ? 5 : LANES == 0 || sizeof(X) == 8 ? 6 : 8)
gat_forward(EDGES, const X* z, i64 z_stride, const Sum<X>* s, i64 s_stride, const Sum<X>* t,
                  i64 t_stride, SUMS, int self_loops, EDGE_TERM, DROPOUT, Sum<X> slope, int heads, int channels,
                  int lanes_log, int side_log, int first_channel, int keep, int partial) {
    typedef Sum<X> A;
    const Edges edges = GIVEN_EDGES;
    const i64 k = first + (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / WARP;
    Row row = row_of(edges, k);
    if (k < last) row.count += self_loops;
    if (row.count == 0) return;
    const HeadPlace<LANES> place(heads, channels, lanes_log, side_log, first_channel, V);
    const Sums<A> sums = GIVEN_SUMS;
    const EdgeTerm<A, EXTRAS> term = GIVEN_EDGE_TERM;
    const Mask<A, EXTRAS> mask(GIVEN_DROPOUT, row.local);
    const i64 to = partial ? k - first : row.local;
    const A own = t[row.local * t_stride + place.head];
    const X* source = z + place.head * channels + place.channel;
    Running<A, V> run = begin_row<A, V>(sums, to, place, channels, !self_loops);
    int ahead[place.OWN];
    look_ahead(edges, row, place, 0, ahead, self_loops);
    for (int base = 0; base < row.count; base += UNROLL * place.groups) {
        const Batch<LANES> batch(row, place, base, ahead);
        Pack<X, V> value[UNROLL];
        A score[place.OWN];
        batch.read(score, s + place.head, s_stride);
        batch.read(value, source, z_stride);
        look_ahead(edges, row, place, base + UNROLL * place.groups, ahead, self_loops);
#pragma unroll
        for (int i = 0; i < place.OWN; i++)
            score[i] = leaky(score[i] + own + term.of(batch.own_edge(i), place.head), slope);
        run.add(batch, score, mask, value);
    }
    end_row(run, sums, to, place, channels, keep);
}
