// GATv2 attention, forward: scores, running softmax and weighted sum of a block.
#include "gatv2.h"

namespace HPCGNN_ISA {
namespace {

struct Forward2 {
    Matrix zl, zr, row_max, row_sum, out, edge_matrix;
    const void* att;
    int64_t num_heads, channels;
    double slope;
    const Dropout* dropout;
};

template <typename T, typename Tile>
using ScoreForward = Score<T, Tile, FORWARD>;
template <typename T, typename Tile>
using AddCached = Add<T, Tile, false>;

template <typename T, int P>
void attend2(const Edges& edges, const Forward2& f, Heads heads, int64_t first, int64_t last) {
    const EdgeMask mask(f.dropout);
    const TileJobs<T, ScoreForward> score_jobs(heads, f.channels);
    const TileJobs<T, AddCached> sum_jobs(heads, f.channels);
    JoinedSoftmax<T, P> joined(heads, f.channels);
    alignas(64) T weight[CHUNK2 * P + FLAT<T, P>], scale[P];
    int64_t columns[CHUNK2];
    Chunk2<T> chunk{};
    chunk.lanes = P, chunk.columns = columns, chunk.score = weight;
    chunk.gathered = f.zl, chunk.edge_matrix = f.edge_matrix;
    chunk.att = static_cast<const T*>(f.att), chunk.slope = static_cast<T>(f.slope);
    chunk.depth = f.edge_matrix.data ? edges.feature_width : 0;
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(f.num_heads * f.channels * sizeof(T)));
    for (int64_t k = first; k < last; k++) {
        if (edges.begin[k] == edges.end[k]) continue;
        const int64_t row = local_row(edges, k);
        Vec<T, P> row_max = load_heads<T, P>(f.row_max, row, heads);
        Vec<T, P> row_sum = load_heads<T, P>(f.row_sum, row, heads);
        chunk.own = row_of<T>(f.zr, row);
        T* out = row_of<T>(f.out, row);
        const bool is_long = edges.end[k] - edges.begin[k] > LONGEST;
        if (is_long) joined.begin(row_max, row_sum, out);
        for_each_part(edges.begin[k], edges.end[k], [&](int64_t begin, int64_t end) {
            if (is_long) row_max = Vec<T, P>{} - T(__builtin_inf()), row_sum = Vec<T, P>{};
            for (int64_t from = begin; from < end; from += CHUNK2) {
                const int64_t left = end - from;
                const int count = left < CHUNK2 ? static_cast<int>(left) : CHUNK2;
                for (int i = 0; i < count; i++) {
                    columns[i] = edges.columns[from + i] - edges.column_offset;
                    store<T, P>(weight + i * P, Vec<T, P>{});
                }
                chunk.count = count;
                chunk.features = edges.features + from * chunk.depth;
                score_jobs.run(chunk, ahead);
                Vec<T, P> best = row_max;
                for (int i = 0; i < count; i++) {
                    const Vec<T, P> l = load<T, P>(weight + i * P);
                    best = l > best ? l : best;
                }
                const Vec<T, P> base = base_of<T, P>(best);
                const Vec<T, P> rescale = exponential<T, P>(row_max - base);
                store<T, P>(scale, rescale);
                row_max = best;
                row_sum = row_sum * rescale + exponentials<T, P>(weight, count, base);
                mask.apply<T, P>(weight, columns, count, row, heads.first);
                const SumChunk<T> sums{P,     count, columns, weight,
                                       scale, f.zl,  is_long ? joined.part() : out};
                Lookahead unused = ahead;
                sum_jobs.run(sums, unused);
            }
            if (is_long) joined.add(row_max, row_sum);
        });
        if (is_long) joined.end(row_max, row_sum, out);
        store_heads<T, P>(f.row_max, row, heads, row_max);
        store_heads<T, P>(f.row_sum, row, heads, row_sum);
    }
}

template <typename T>
void gatv2_forward(const Edges& edges, const Forward2& f) {
    for_each_piece(edges, [&](int64_t, int64_t first, int64_t last) {
        for_each_group(f.num_heads, [&](Heads heads, auto padded) {
            attend2<T, decltype(padded)::LANES>(edges, f, heads, first, last);
        });
    });
}

}  // namespace
}  // namespace HPCGNN_ISA

HPCGNN_EXPORT(gatv2_forward)(const Edges* edges, int64_t is_double, Matrix zl, Matrix zr,
                                  const void* att, Matrix row_max, Matrix row_sum, Matrix out,
                                  Matrix edge_matrix, int64_t num_heads, int64_t channels,
                                  double slope, const Dropout* dropout) {
    const HPCGNN_ISA::Forward2 f{zl,  zr,        row_max,      row_sum, out,    edge_matrix,
                                 att, num_heads, channels, slope, dropout};
    if (is_double)
        HPCGNN_ISA::gatv2_forward<double>(*edges, f);
    else
        HPCGNN_ISA::gatv2_forward<float>(*edges, f);
}
