// Attention, forward: scores, running softmax and weighted sum of a block in one pass.
#include "softmax.h"

namespace HPCGNN_ISA {
namespace {

struct Forward {
    Matrix z, s, t, edge_vector;
    Matrix start;  // rows of out before any edge; null: the content of out
    RunningSoftmax softmax;
    int64_t num_heads, channels;
    double slope;
    const Dropout* dropout;
};

// Sums of rows that are stored as S.
template <typename S>
struct Fetched {
    template <typename T, typename Tile>
    using Loop = Add<T, S, Tile, true>;
};

// This row of `start`; null if it is already copied to out, or not used at all.
template <typename T, typename S>
const S* start_of(const Forward& f, Heads heads, int64_t row, int64_t edges) {
    if (!f.start.data) return nullptr;
    const S* from = row_of<S>(f.start, row);
    if (edges > 0 && edges <= LONGEST) return from;
    T* to = row_of<T>(f.softmax.out, row);
    const int64_t low = heads.first * f.channels, high = low + heads.count * f.channels;
    for (int64_t c = low; c < high; c++) to[c] = load_as<T, 1, S>(from + c);
    return nullptr;
}

template <typename T, typename S, int P>
void attend(const Edges& edges, const Forward& f, Heads heads, int64_t first, int64_t last) {
    const EdgeTerm<T, P> term(edges, f.edge_vector, heads);
    const EdgeMask mask(f.dropout);
    const TileJobs<T, Fetched<S>::template Loop> jobs(heads, f.channels);
    JoinedSoftmax<T, P> joined(heads, f.channels);
    const T slope = static_cast<T>(f.slope);
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(f.num_heads * f.channels * sizeof(S)));
    Lookahead scores_ahead(edges, first, last);
    scores_ahead.skip(SCORES_AHEAD);
    for (int64_t k = first; k < last; k++) {
        const int64_t row = local_row(edges, k), total = edges.end[k] - edges.begin[k];
        const S* start = start_of<T, S>(f, heads, row, total);
        if (total == 0) continue;
        const Vec<T, P> t = load_heads<T, P>(f.t, row, heads);
        const auto score = [&](int64_t from, int64_t* columns, T* weight, int count,
                               Vec<T, P> best) __attribute__((always_inline)) {
            for (int i = 0; i < count; i++) {
                prefetch<1>(row_of<T>(f.s, scores_ahead.next()) + heads.first);
                columns[i] = edges.columns[from + i] - edges.column_offset;
                const Vec<T, P> l =
                    load_heads<T, P>(f.s, columns[i], heads) + t + term.of(from + i);
                const Vec<T, P> u = leaky<T, P>(l, slope);
                store<T, P>(weight + i * P, u);
                best = u > best ? u : best;
            }
            return best;
        };
        const auto sum = [&](const SumChunk<T>& chunk) __attribute__((always_inline)) {
            jobs.run(chunk, ahead);
        };
        attend_row<T, P, CHUNK>(edges, k, f.softmax, heads, f.z, mask, joined, start, score, sum);
    }
}

template <typename T, typename S>
void gat_forward(const Edges& edges, const Forward& f) {
    for_each_piece(edges, [&](int64_t, int64_t first, int64_t last) {
        for_each_group(f.num_heads, [&](Heads heads, auto padded) {
            attend<T, S, decltype(padded)::LANES>(edges, f, heads, first, last);
        });
    });
}

}  // namespace
}  // namespace HPCGNN_ISA

HPCGNN_EXPORT(gat_forward)(const Edges* edges, int64_t kind, Matrix z, Matrix s, Matrix t,
                                 Matrix row_max, Matrix row_sum, Matrix out, Matrix start,
                                 Matrix edge_vector, int64_t num_heads, int64_t channels,
                                 double slope, const Dropout* dropout) {
    const HPCGNN_ISA::Forward f{z,         s,        t,     edge_vector, start, {row_max, row_sum, out},
                                num_heads, channels, slope, dropout};
    if (kind == DOUBLE)
        HPCGNN_ISA::gat_forward<double, double>(*edges, f);
    else if (kind == BFLOAT16)
        HPCGNN_ISA::gat_forward<float, HPCGNN_ISA::Bfloat16>(*edges, f);
    else
        HPCGNN_ISA::gat_forward<float, float>(*edges, f);
}
