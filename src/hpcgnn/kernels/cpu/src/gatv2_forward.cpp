// GATv2 attention, forward: scores, running softmax and weighted sum of a block.
#include "gatv2.h"
#include "softmax.h"

namespace HPCGNN_ISA {
namespace {

struct Forward2 {
    Matrix zl, zr, edge_matrix;
    RunningSoftmax softmax;
    const void* att;
    int64_t num_heads, channels;
    double slope;
    const Dropout* dropout;
};

template <typename T, typename Tile>
using ScoreForward = Score<T, Tile, FORWARD>;
template <typename T, typename Tile>
using AddCached = Add<T, T, Tile, false>;

template <typename T, int P>
void attend2(const Edges& edges, const Forward2& f, Heads heads, int64_t first, int64_t last) {
    const EdgeMask mask(f.dropout);
    const TileJobs<T, ScoreForward> score_jobs(heads, f.channels);
    const TileJobs<T, AddCached> sum_jobs(heads, f.channels);
    JoinedSoftmax<T, P> joined(heads, f.channels);
    Chunk2<T> chunk{};
    chunk.lanes = P, chunk.gathered = f.zl, chunk.edge_matrix = f.edge_matrix;
    chunk.att = static_cast<const T*>(f.att), chunk.slope = static_cast<T>(f.slope);
    chunk.depth = f.edge_matrix.data ? edges.feature_width : 0;
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(f.num_heads * f.channels * sizeof(T)));
    for (int64_t k = first; k < last; k++) {
        if (edges.begin[k] == edges.end[k]) continue;
        chunk.own = row_of<T>(f.zr, local_row(edges, k));
        const auto score = [&](int64_t from, int64_t* columns, T* weight, int count,
                               Vec<T, P> best) __attribute__((always_inline)) {
            for (int i = 0; i < count; i++) {
                columns[i] = edges.columns[from + i] - edges.column_offset;
                store<T, P>(weight + i * P, Vec<T, P>{});
            }
            chunk.columns = columns, chunk.score = weight, chunk.count = count;
            chunk.features = edges.features + from * chunk.depth;
            score_jobs.run(chunk, ahead);
            for (int i = 0; i < count; i++) {
                const Vec<T, P> l = load<T, P>(weight + i * P);
                best = l > best ? l : best;
            }
            return best;
        };
        const auto sum = [&](const SumChunk<T>& sums) __attribute__((always_inline)) {
            Lookahead unused = ahead;
            sum_jobs.run(sums, unused);
        };
        attend_row<T, P, CHUNK2>(edges, k, f.softmax, heads, f.zl, mask, joined, nullptr, score,
                                  sum);
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
    const HPCGNN_ISA::Forward2 f{zl,  zr,        edge_matrix, {row_max, row_sum, out},
                                 att, num_heads, channels,    slope, dropout};
    if (is_double)
        HPCGNN_ISA::gatv2_forward<double>(*edges, f);
    else
        HPCGNN_ISA::gatv2_forward<float>(*edges, f);
}
