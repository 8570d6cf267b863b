// Attention (GAT), forward: scores, running softmax and weighted sum of a block in one pass.
#include "gat.cuh"

// With `partial`, row k of the block goes to row k - first of row_max, row_sum and out.
template <class X, int V, int LANES, bool EXTRAS>
KERNEL(EXTRAS ? 5 : 6)
gat_forward(EDGES, const X* z, i64 z_stride, const Sum<X>* s, i64 s_stride, const Sum<X>* t,
                  i64 t_stride, SUMS, EDGE_TERM, DROPOUT, Sum<X> slope, int heads, int channels,
                  int lanes, int side, int first_channel, int keep, int partial) {
    typedef Sum<X> A;
    const Edges edges = GIVEN_EDGES;
    const i64 k = first + (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / WARP;
    const Row row = row_of(edges, k);
    if (row.count == 0) return;
    const HeadPlace<LANES> place(heads, channels, lanes, side, first_channel, V);
    const Sums<A> sums = GIVEN_SUMS;
    const EdgeTerm<A, EXTRAS> term = GIVEN_EDGE_TERM;
    const Mask<A, EXTRAS> mask(GIVEN_DROPOUT, row.local);
    const i64 to = partial ? k - first : row.local;
    const A own = t[row.local * t_stride + place.head];
    const X* source = z + place.head * channels + place.channel;
    Running<A, V> run = begin_row<A, V>(sums, to, place, channels);
    for (int base = 0; base < row.count; base += UNROLL * place.groups) {
        int at[UNROLL];
        Pack<X, V> value[UNROLL];
        A score[UNROLL], best = minus_infinity<A>();
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int i = base + u * place.groups + place.group;
            at[u] = column_of(edges, row.begin + min(i, row.count - 1));
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) score[u] = __ldg(s + at[u] * s_stride + place.head);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) value[u] = gather<X, V>(source + at[u] * z_stride);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int i = base + u * place.groups + place.group;
            score[u] = leaky(score[u] + own + term.of(row.begin + min(i, row.count - 1), place.head),
                             slope);
            score[u] = i < row.count ? score[u] : minus_infinity<A>();
            best = larger(best, score[u]);
        }
        run.raise(best);
        A kept[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) kept[u] = mask.of(at[u], place.head);
        run.add(score, kept, value);
    }
    end_row(run, sums, to, place, channels, keep);
}
