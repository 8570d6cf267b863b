// Running maximum (or minimum) over edges, how many edges attain it, and its gradient.
#include "schedule.h"

namespace HPCGNN_ISA {
namespace {

constexpr int MAX_TILE = MAX_VECTORS / 2;

template <typename T, bool MINIMUM, typename Shape>
void best_of_rows(const Edges& edges, Matrix x, Matrix best, Matrix ties, Shape tile,
                  int64_t first, int64_t last) {
    constexpr int N = Shape::N, U = Shape::U;
    const T* source = static_cast<const T*>(x.data) + tile.column;
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(N * U * sizeof(T)));
    for (int64_t k = first; k < last; k++) {
        if (edges.begin[k] == edges.end[k]) continue;
        const int64_t row = local_row(edges, k);
        T* best_row = row_of<T>(best, row) + tile.column;
        int32_t* ties_row = row_of<int32_t>(ties, row) + tile.column;
        Vec<T, N> top[U];
        Vec<Integer<T>, N> count[U];
        for (int u = 0; u < U; u++) {
            top[u] = load<T, N>(best_row + tile.at(u));
            count[u] = convert<Integer<T>, int32_t, N>(load<int32_t, N>(ties_row + tile.at(u)));
        }
        for (int64_t e = edges.begin[k]; e < edges.end[k]; e++) {
            prefetch<N * U * sizeof(T)>(source + ahead.next() * x.stride);
            const T* from = source + (edges.columns[e] - edges.column_offset) * x.stride;
            for (int u = 0; u < U; u++) {
                const Vec<T, N> value = load<T, N>(from + tile.at(u));
                const Vec<Integer<T>, N> one = Vec<Integer<T>, N>{} + 1;
                // NaN is better than any number, as in torch.
                const auto better =
                    (MINIMUM ? value < top[u] : value > top[u]) | (value != value);
                count[u] = better ? one : value == top[u] ? count[u] + one : count[u];
                top[u] = better ? value : top[u];
            }
        }
        for (int u = 0; u < U; u++) {
            store<T, N>(best_row + tile.at(u), top[u]);
            store<int32_t, N>(ties_row + tile.at(u), convert<int32_t, Integer<T>, N>(count[u]));
        }
    }
}

template <typename T, typename Shape>
void share_of_rows(const Edges& edges, Matrix best, Matrix share, Matrix x, Matrix grad, Shape tile,
                   int64_t first, int64_t last) {
    constexpr int N = Shape::N, U = Shape::U, BYTES = N * U * sizeof(T);
    const T* best_0 = static_cast<const T*>(best.data) + tile.column;
    const T* share_0 = static_cast<const T*>(share.data) + tile.column;
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(2 * BYTES));
    for (int64_t k = first; k < last; k++) {
        if (edges.begin[k] == edges.end[k]) continue;
        const int64_t row = local_row(edges, k);
        const T* x_row = row_of<T>(x, row) + tile.column;
        T* to = row_of<T>(grad, row) + tile.column;
        const bool is_long = edges.end[k] - edges.begin[k] > LONGEST;
        Vec<T, N> value[U], result[U] = {};
        Vec<double, N> wide[U] = {};
        for (int u = 0; u < U; u++) value[u] = load<T, N>(x_row + tile.at(u));
        for_each_part(edges.begin[k], edges.end[k], [&](int64_t begin, int64_t end) {
            Vec<T, N> sum[U] = {};
            for (int64_t e = begin; e < end; e++) {
                const int64_t next = ahead.next(), column = edges.columns[e] - edges.column_offset;
                const T *best_row = best_0 + column * best.stride, *part = share_0 + column * share.stride;
                prefetch<BYTES>(best_0 + next * best.stride);
                prefetch<BYTES>(share_0 + next * share.stride);
                for (int u = 0; u < U; u++) {
                    const auto attains = load<T, N>(best_row + tile.at(u)) == value[u];
                    sum[u] += attains ? load<T, N>(part + tile.at(u)) : Vec<T, N>{};
                }
            }
            for (int u = 0; u < U; u++) result[u] = sum[u];
            if (is_long) add_wide<T, N, U>(wide, sum);
        });
        for (int u = 0; u < U; u++) {
            if (is_long) result[u] = convert<T, double, N>(wide[u]);
            result[u] += load<T, N>(to + tile.at(u));
        }
        for (int u = 0; u < U; u++) store<T, N>(to + tile.at(u), result[u]);
    }
}

template <typename T>
void maximum(const Edges& edges, Matrix x, Matrix best, Matrix ties, int64_t width, bool minimum) {
    for_each_piece(edges, [&](int64_t, int64_t first, int64_t last) {
        for_each_tile<LANES<T>, MAX_TILE>(width, [&](auto tile) {
            if (minimum)
                best_of_rows<T, true>(edges, x, best, ties, tile, first, last);
            else
                best_of_rows<T, false>(edges, x, best, ties, tile, first, last);
        });
    });
}

template <typename T>
void maximum_backward(const Edges& edges, Matrix best, Matrix share, Matrix x, Matrix grad,
                      int64_t width) {
    for_each_piece(edges, [&](int64_t, int64_t first, int64_t last) {
        for_each_tile<LANES<T>, MAX_TILE>(width, [&](auto tile) {
            share_of_rows<T>(edges, best, share, x, grad, tile, first, last);
        });
    });
}

}  // namespace
}  // namespace HPCGNN_ISA

HPCGNN_EXPORT(maximum)(const Edges* edges, int64_t is_double, Matrix x, Matrix best, Matrix ties,
                       int64_t width, int64_t minimum) {
    if (is_double)
        HPCGNN_ISA::maximum<double>(*edges, x, best, ties, width, minimum);
    else
        HPCGNN_ISA::maximum<float>(*edges, x, best, ties, width, minimum);
}

HPCGNN_EXPORT(maximum_backward)(const Edges* edges, int64_t is_double, Matrix best, Matrix share,
                                Matrix x, Matrix grad, int64_t width) {
    if (is_double)
        HPCGNN_ISA::maximum_backward<double>(*edges, best, share, x, grad, width);
    else
        HPCGNN_ISA::maximum_backward<float>(*edges, best, share, x, grad, width);
}
