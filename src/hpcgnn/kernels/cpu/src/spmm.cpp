// out[row] += (or =) sum over the row's edges of weight * x[column].
#include "schedule.h"

namespace HPCGNN_ISA {
namespace {

template <typename T, typename S, bool WEIGHTED, typename Shape>
void add_rows(const Edges& edges, Matrix x, Matrix out, bool adds, Shape tile, int64_t first,
              int64_t last) {
    constexpr int N = Shape::N, U = Shape::U, BYTES = N * U * sizeof(S);
    const S* source = from_column<S>(x, tile.column);
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(BYTES));
    for (int64_t k = first; k < last; k++) {
        const int64_t begin = edges.begin[k], end = edges.end[k];
        if (begin == end && adds) continue;
        T* to = row_of<T>(out, local_row(edges, k)) + tile.column;
        prefetch<N * U * sizeof(T)>(to);
        const auto add = [&edges, source, x, tile](Lookahead& cursor, int64_t from, int64_t stop,
                                                   Vec<T, N>(&sum)[U])
                             __attribute__((always_inline)) {
            for (int64_t e = from; e < stop; e++) {
                prefetch<BYTES>(source + cursor.next() * x.stride);
                const S* row = source + (edges.columns[e] - edges.column_offset) * x.stride;
                const T weight = WEIGHTED ? static_cast<T>(edges.weight[e]) : T(1);
                for (int u = 0; u < U; u++) {
                    const Vec<T, N> value = load_as<T, N, S>(row + tile.at(u));
                    sum[u] += WEIGHTED ? weight * value : value;
                }
            }
        };
        Vec<T, N> sum[U] = {};
        if (end - begin <= LONGEST) {
            add(ahead, begin, end, sum);
        } else {
            Vec<T, N> whole[U];
            ahead = sum_of_parts<T, N, U>(begin, end, whole, ahead, add);
            for (int u = 0; u < U; u++) sum[u] = whole[u];
        }
        if (adds)
            for (int u = 0; u < U; u++) sum[u] += load<T, N>(to + tile.at(u));
        for (int u = 0; u < U; u++) store<T, N>(to + tile.at(u), sum[u]);
    }
}

template <typename T, typename S>
void spmm(const Edges& edges, Matrix x, Matrix out, int64_t width, bool adds) {
    for_each_piece(edges, [&](int64_t, int64_t first, int64_t last) {
        for_each_tile<LANES<T>, MAX_VECTORS>(width, [&](auto tile) {
            if (edges.weight)
                add_rows<T, S, true>(edges, x, out, adds, tile, first, last);
            else
                add_rows<T, S, false>(edges, x, out, adds, tile, first, last);
        });
    });
}

}  // namespace
}  // namespace HPCGNN_ISA

HPCGNN_EXPORT(spmm)(const Edges* edges, int64_t kind, Matrix x, Matrix out, int64_t width,
                   int64_t adds) {
    using namespace HPCGNN_ISA;
    if (kind == DOUBLE)
        spmm<double, double>(*edges, x, out, width, adds);
    else if (kind == SHORT)
        spmm<float, Short>(*edges, x, out, width, adds);
    else
        spmm<float, float>(*edges, x, out, width, adds);
}
