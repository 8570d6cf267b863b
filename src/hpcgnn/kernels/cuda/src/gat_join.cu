// Combines the running softmaxes of the pieces of a row with very many edges.
#include "gat.cuh"

// Block b of threads joins pieces begin[b] .. end[b] - 1 (of part_max, part_sum, part_out,
// counted from `offset`) to local row rows[b] of row_max, row_sum and out, in order and in doubles:
// millions of edges give thousands of pieces.
template <class A>
KERNEL(8)
gat_join(const int* rows, const i64* begin, const i64* end, i64 first, i64 offset,
               const A* part_max, i64 part_max_stride, const A* part_sum, i64 part_sum_stride,
               const A* part_out, i64 part_out_stride, A* row_max, i64 row_max_stride, A* row_sum,
               i64 row_sum_stride, A* out, i64 out_stride, int heads, int channels) {
    const i64 b = first + blockIdx.x;
    const i64 row = rows[b], from = begin[b] - offset, to = end[b] - offset;
    const auto highest = [&](int head) {
        A best = row_max[row * row_max_stride + head];
        for (i64 p = from; p < to; p++) best = larger(best, part_max[p * part_max_stride + head]);
        return best;
    };
    const auto scale = [](A score, A best) {
        return score > minus_infinity<A>() ? exponential(score - best) : A(0);
    };
    for (int column = threadIdx.x; column < heads * channels; column += THREADS) {
        const int head = column / channels;
        const A best = highest(head);
        double sum =
            scale(row_max[row * row_max_stride + head], best) * out[row * out_stride + column];
        for (i64 p = from; p < to; p++)
            sum += scale(part_max[p * part_max_stride + head], best) *
                   part_out[p * part_out_stride + column];
        out[row * out_stride + column] = static_cast<A>(sum);
    }
    __syncthreads();  // the old row_max is no longer needed
    for (int head = threadIdx.x; head < heads; head += THREADS) {
        const A best = highest(head);
        double sum =
            scale(row_max[row * row_max_stride + head], best) * row_sum[row * row_sum_stride + head];
        for (i64 p = from; p < to; p++)
            sum += scale(part_max[p * part_max_stride + head], best) *
                   part_sum[p * part_sum_stride + head];
        row_max[row * row_max_stride + head] = best;
        row_sum[row * row_sum_stride + head] = static_cast<A>(sum);
    }
}
