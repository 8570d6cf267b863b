// Attention, forward: scores, running softmax and weighted sum of a block in one pass.
#include "gat.h"
#include "tiles.h"

namespace HPCGNN_ISA {
namespace {

struct Forward {
    Matrix z, s, t, row_max, row_sum, out, edge_vector;
    int64_t num_heads, channels;
    double slope;
    const Dropout* dropout;
};

template <typename T, typename Tile>
using AddFetched = Add<T, Tile, true>;

template <typename T, int P>
void attend(const Edges& edges, const Forward& f, Heads heads, int64_t first, int64_t last) {
    const EdgeTerm<T, P> term(edges, f.edge_vector, heads);
    const EdgeMask mask(f.dropout);
    const TileJobs<T, AddFetched> jobs(heads, f.channels);
    JoinedSoftmax<T, P> joined(heads, f.channels);
    const T slope = static_cast<T>(f.slope);
    alignas(64) T weight[CHUNK * P + FLAT<T, P>], scale[P];
    int64_t columns[CHUNK];
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(f.num_heads * f.channels * sizeof(T)));
    Lookahead scores_ahead(edges, first, last);
    scores_ahead.skip(SCORES_AHEAD);
    for (int64_t k = first; k < last; k++) {
        if (edges.begin[k] == edges.end[k]) continue;
        const int64_t row = local_row(edges, k);
        const Vec<T, P> t = load_heads<T, P>(f.t, row, heads);
        Vec<T, P> row_max = load_heads<T, P>(f.row_max, row, heads);
        Vec<T, P> row_sum = load_heads<T, P>(f.row_sum, row, heads);
        T* out = row_of<T>(f.out, row);
        const bool is_long = edges.end[k] - edges.begin[k] > LONGEST;
        if (is_long) joined.begin(row_max, row_sum, out);
        for_each_part(edges.begin[k], edges.end[k], [&](int64_t begin, int64_t end) {
            if (is_long) row_max = Vec<T, P>{} - T(__builtin_inf()), row_sum = Vec<T, P>{};
            for (int64_t from = begin; from < end; from += CHUNK) {
                const int64_t left = end - from;
                const int count = left < CHUNK ? static_cast<int>(left) : CHUNK;
                Vec<T, P> best = row_max;
                for (int i = 0; i < count; i++) {
                    prefetch<1>(row_of<T>(f.s, scores_ahead.next()) + heads.first);
                    columns[i] = edges.columns[from + i] - edges.column_offset;
                    const Vec<T, P> l =
                        load_heads<T, P>(f.s, columns[i], heads) + t + term.of(from + i);
                    const Vec<T, P> u = leaky<T, P>(l, slope);
                    store<T, P>(weight + i * P, u);
                    best = u > best ? u : best;
                }
                const Vec<T, P> base = base_of<T, P>(best);
                const Vec<T, P> rescale = exponential<T, P>(row_max - base);
                store<T, P>(scale, rescale);
                row_max = best;
                row_sum = row_sum * rescale + exponentials<T, P>(weight, count, base);
                mask.apply<T, P>(weight, columns, count, row, heads.first);
                const SumChunk<T> chunk{P,     count, columns, weight,
                                        scale, f.z,   is_long ? joined.part() : out};
                jobs.run(chunk, ahead);
            }
            if (is_long) joined.add(row_max, row_sum);
        });
        if (is_long) joined.end(row_max, row_sum, out);
        store_heads<T, P>(f.row_max, row, heads, row_max);
        store_heads<T, P>(f.row_sum, row, heads, row_sum);
    }
}

template <typename T>
void gat_forward(const Edges& edges, const Forward& f) {
    for_each_piece(edges, [&](int64_t, int64_t first, int64_t last) {
        for_each_group(f.num_heads, [&](Heads heads, auto padded) {
            attend<T, decltype(padded)::LANES>(edges, f, heads, first, last);
        });
    });
}

}  // namespace
}  // namespace HPCGNN_ISA

HPCGNN_EXPORT(gat_forward)(const Edges* edges, int64_t is_double, Matrix z, Matrix s, Matrix t,
                                 Matrix row_max, Matrix row_sum, Matrix out, Matrix edge_vector,
                                 int64_t num_heads, int64_t channels, double slope,
                                 const Dropout* dropout) {
    const HPCGNN_ISA::Forward f{z,   s,           t,         row_max,      row_sum, out,
                                edge_vector, num_heads, channels, slope, dropout};
    if (is_double)
        HPCGNN_ISA::gat_forward<double>(*edges, f);
    else
        HPCGNN_ISA::gat_forward<float>(*edges, f);
}
