// out[row] += (or =) sum over the row's edges of weight * x[column], or weight * (scale[column] *
// x[column]).
#include "schedule.h"

// A product that is rounded before it is added, so that sums are those of rows scaled beforehand.
#if defined(__has_builtin)
#if __has_builtin(__builtin_assoc_barrier)
#define ROUNDED(product) __builtin_assoc_barrier(product)
#endif
#endif
#ifndef ROUNDED
#define ROUNDED(product) (product)
#endif

namespace HPCGNN_ISA {
namespace {

enum Kind { PLAIN, WEIGHTED, SCALED };  // SCALED: with weights or without

template <typename T, Kind KIND, typename Shape>
void add_rows(const Edges& edges, Matrix x, const T* scale, Matrix out, bool adds, Shape tile,
              int64_t first, int64_t last) {
    constexpr int N = Shape::N, U = Shape::U, BYTES = N * U * sizeof(T);
    const T* source = from_column<T>(x, tile.column);
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(BYTES));
    for (int64_t k = first; k < last; k++) {
        const int64_t begin = edges.begin[k], end = edges.end[k];
        if (begin == end && adds) continue;
        T* to = row_of<T>(out, local_row(edges, k)) + tile.column;
        prefetch<BYTES>(to);
        const auto add = [&edges, source, x, scale, tile](Lookahead& cursor, int64_t from, int64_t stop,
                                                   Vec<T, N>(&sum)[U])
                             __attribute__((always_inline)) {
            for (int64_t e = from; e < stop; e++) {
                prefetch<BYTES>(source + cursor.next() * x.stride);
                const int64_t column = edges.columns[e] - edges.column_offset;
                const T* row = source + column * x.stride;
                const T factor = KIND == SCALED ? scale[column] : T(1);
                const T weight = KIND != PLAIN && edges.weight ? static_cast<T>(edges.weight[e]) : T(1);
                for (int u = 0; u < U; u++) {
                    Vec<T, N> value = load<T, N>(row + tile.at(u));
                    if (KIND == SCALED) value = ROUNDED(factor * value);
                    sum[u] += KIND == PLAIN ? value : weight * value;
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

template <typename T>
void spmm(const Edges& edges, Matrix x, const T* scale, Matrix out, int64_t width, bool adds) {
    for_each_piece(edges, [&](int64_t, int64_t first, int64_t last) {
        for_each_tile<LANES<T>, MAX_VECTORS>(width, [&](auto tile) {
            if (scale)
                add_rows<T, SCALED>(edges, x, scale, out, adds, tile, first, last);
            else if (edges.weight)
                add_rows<T, WEIGHTED>(edges, x, scale, out, adds, tile, first, last);
            else
                add_rows<T, PLAIN>(edges, x, scale, out, adds, tile, first, last);
        });
    });
}

}  // namespace
}  // namespace HPCGNN_ISA

HPCGNN_EXPORT(spmm)(const Edges* edges, int64_t is_double, Matrix x, const void* scale, Matrix out,
                    int64_t width, int64_t adds) {
    if (is_double)
        HPCGNN_ISA::spmm<double>(*edges, x, static_cast<const double*>(scale), out, width, adds);
    else
        HPCGNN_ISA::spmm<float>(*edges, x, static_cast<const float*>(scale), out, width, adds);
}
