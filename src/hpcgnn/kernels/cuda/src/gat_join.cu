// Adds up the running softmaxes of the pieces that a row with very many edges was cut into.
#include "gat.cuh"

// Block b of threads joins pieces begin[b] .. end[b] - 1 (of part_top, part_total, part_out,
// counted from `offset`) to local row rows[b] of top, total and out, in order and in doubles: of
// millions of edges there are thousands of pieces.
template <class A>
KERNEL(8)
gat_join(const int* rows, const i64* begin, const i64* end, i64 first, i64 offset,
               const A* part_top, i64 part_top_stride, const A* part_total, i64 part_total_stride,
               const A* part_out, i64 part_out_stride, A* top, i64 top_stride, A* total,
               i64 total_stride, A* out, i64 out_stride, int heads, int channels) {
    const i64 b = first + blockIdx.x;
    const i64 row = rows[b], from = begin[b] - offset, to = end[b] - offset;
    const auto highest = [&](int head) {
        A best = top[row * top_stride + head];
        for (i64 p = from; p < to; p++) best = larger(best, part_top[p * part_top_stride + head]);
        return best;
    };
    const auto scale = [](A score, A best) {
        return score > minus_infinity<A>() ? exponential(score - best) : A(0);
    };
    for (int column = threadIdx.x; column < heads * channels; column += THREADS) {
        const int head = column / channels;
        const A best = highest(head);
        double sum = scale(top[row * top_stride + head], best) * out[row * out_stride + column];
        for (i64 p = from; p < to; p++)
            sum += scale(part_top[p * part_top_stride + head], best) *
                   part_out[p * part_out_stride + column];
        out[row * out_stride + column] = static_cast<A>(sum);
    }
    __syncthreads();  // nobody needs the old top any more
    for (int head = threadIdx.x; head < heads; head += THREADS) {
        const A best = highest(head);
        double sum =
            scale(top[row * top_stride + head], best) * total[row * total_stride + head];
        for (i64 p = from; p < to; p++)
            sum += scale(part_top[p * part_top_stride + head], best) *
                   part_total[p * part_total_stride + head];
        top[row * top_stride + head] = best;
        total[row * total_stride + head] = static_cast<A>(sum);
    }
}
