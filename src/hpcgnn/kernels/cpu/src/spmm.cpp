// out[row] += (or =) sum over the row's edges of weight * x[column], or weight * (scale[column] *
// x[column]).
#include "schedule.h"

namespace HPCGNN_ISA {
namespace {

// A product that is rounded before it is added: no compiler fuses the two. (GCC splits a vector
// behind __builtin_assoc_barrier into lanes.)
template <typename T, int N>
HPCGNN_INLINE Vec<T, N> rounded(Vec<T, N> product) {
    static_assert(N * sizeof(T) <= HPCGNN_VECTOR_BYTES, "one register");
#if defined(__AVX512F__)
    __asm__("" : "+v"(product));
#elif defined(__x86_64__)
    __asm__("" : "+x"(product));
#elif defined(__aarch64__)
    __asm__("" : "+w"(product));
#else
    volatile Vec<T, N> kept = product;
    product = kept;
#endif
    return product;
}

enum Kind { PLAIN, WEIGHTED, SCALED };  // SCALED: with weights or without

// S: type of the gathered rows.
template <typename T, typename S, Kind KIND, typename Shape>
void add_rows(const Edges& edges, Matrix x, const T* scale, Matrix out, bool adds, Shape tile,
              int64_t first, int64_t last) {
    constexpr int N = Shape::N, U = Shape::U, BYTES = N * U * sizeof(S);
    const S* source = from_column<S>(x, tile.column);
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(BYTES));
    for (int64_t k = first; k < last; k++) {
        const int64_t begin = edges.begin[k], end = edges.end[k];
        if (begin == end && adds) continue;
        T* to = row_of<T>(out, local_row(edges, k)) + tile.column;
        prefetch<N * U * sizeof(T)>(to);
        const auto add = [&edges, source, x, scale, tile](Lookahead& cursor, int64_t from, int64_t stop,
                                                   Vec<T, N>(&sum)[U])
                             __attribute__((always_inline)) {
            for (int64_t e = from; e < stop; e++) {
                prefetch<BYTES>(source + cursor.next() * x.stride);
                const int64_t column = edges.columns[e] - edges.column_offset;
                const S* row = source + column * x.stride;
                const T factor = KIND == SCALED ? scale[column] : T(1);
                const T weight = KIND != PLAIN && edges.weight ? static_cast<T>(edges.weight[e]) : T(1);
                for (int u = 0; u < U; u++) {
                    Vec<T, N> value = load_as<T, N, S>(row + tile.at(u));
                    if (KIND == SCALED) value = rounded<T, N>(factor * value);
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

template <typename T, typename S>
void spmm(const Edges& edges, Matrix x, const void* given, Matrix out, int64_t width, bool adds) {
    const T* scale = static_cast<const T*>(given);
    for_each_piece(edges, [&](int64_t, int64_t first, int64_t last) {
        for_each_tile<LANES<T>, MAX_VECTORS>(width, [&](auto tile) {
            if (scale)
                add_rows<T, S, SCALED>(edges, x, scale, out, adds, tile, first, last);
            else if (edges.weight)
                add_rows<T, S, WEIGHTED>(edges, x, scale, out, adds, tile, first, last);
            else
                add_rows<T, S, PLAIN>(edges, x, scale, out, adds, tile, first, last);
        });
    });
}

}  // namespace
}  // namespace HPCGNN_ISA

HPCGNN_EXPORT(spmm)(const Edges* edges, int64_t kind, Matrix x, const void* scale, Matrix out,
                    int64_t width, int64_t adds) {
    using namespace HPCGNN_ISA;
    if (kind == DOUBLE)
        spmm<double, double>(*edges, x, scale, out, width, adds);
    else if (kind == BFLOAT16)
        spmm<float, Bfloat16>(*edges, x, scale, out, width, adds);
    else
        spmm<float, float>(*edges, x, scale, out, width, adds);
}
