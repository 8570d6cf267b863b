// Running maximum (or minimum) over edges, the number of edges that attain it, and its gradient.
#include "schedule.h"

namespace HPCGNN_ISA {
namespace {

constexpr int MAX_TILE = MAX_VECTORS / 2;

// One row with some NaN values: NaN counts as better than any number, as in torch.
template <typename T, bool MINIMUM, typename Shape>
__attribute__((noinline)) void best_with_nan(const Edges& edges, int64_t k, const T* source,
                                             int64_t stride, Shape tile, T* best_row,
                                             int32_t* ties_row) {
    constexpr int N = Shape::N, U = Shape::U;
    const Vec<Integer<T>, N> one = Vec<Integer<T>, N>{} + 1;
    Vec<T, N> top[U], nan[U] = {};
    Vec<Integer<T>, N> count[U];
    for (int u = 0; u < U; u++) {
        top[u] = load<T, N>(best_row + tile.at(u));
        count[u] = convert<Integer<T>, int32_t, N>(load<int32_t, N>(ties_row + tile.at(u)));
    }
    for (int64_t e = edges.begin[k]; e < edges.end[k]; e++) {
        const T* from = source + (edges.columns[e] - edges.column_offset) * stride;
        for (int u = 0; u < U; u++) {
            const Vec<T, N> value = load<T, N>(from + tile.at(u));
            const auto better = MINIMUM ? value < top[u] : value > top[u];
            nan[u] = value == value ? nan[u] : value;
            count[u] = better ? one : value == top[u] ? count[u] + one : count[u];
            top[u] = better ? value : top[u];
        }
    }
    for (int u = 0; u < U; u++) {
        const auto none = nan[u] == nan[u];
        store<T, N>(best_row + tile.at(u), none ? top[u] : nan[u]);
        store<int32_t, N>(ties_row + tile.at(u),
                          convert<int32_t, Integer<T>, N>(none ? count[u] : one));
    }
}

template <typename T, bool MINIMUM, typename Shape>
void best_of_rows(const Edges& edges, Matrix x, Matrix best, Matrix ties, Shape tile,
                  int64_t first, int64_t last) {
    constexpr int N = Shape::N, U = Shape::U;
    const T* source = from_column<T>(x, tile.column);
    const Vec<Integer<T>, N> zero{}, one = zero + 1;
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(N * U * sizeof(T)));
    for (int64_t k = first; k < last; k++) {
        if (edges.begin[k] == edges.end[k]) continue;
        const int64_t row = local_row(edges, k);
        T* best_row = row_of<T>(best, row) + tile.column;
        int32_t* ties_row = row_of<int32_t>(ties, row) + tile.column;
        Vec<T, N> top[U], sum[U] = {};
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
                const auto better = MINIMUM ? value < top[u] : value > top[u];
                const auto attains = MINIMUM ? value <= top[u] : value >= top[u];
                sum[u] += value;
                count[u] = better ? zero : count[u];
                count[u] = attains ? count[u] + one : count[u];
                top[u] = better ? value : top[u];
            }
        }
        // One NaN makes the sum NaN: cheaper than checking each value.
        for (int u = 1; u < U; u++) sum[0] += sum[u];
        const T whole = HPCGNN_ISA::sum<T, N>(sum[0]);
        if (whole != whole) {
            best_with_nan<T, MINIMUM>(edges, k, source, x.stride, tile, best_row, ties_row);
            continue;
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
    const T* best_0 = from_column<T>(best, tile.column);
    const T* share_0 = from_column<T>(share, tile.column);
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(2 * BYTES));
    for (int64_t k = first; k < last; k++) {
        if (edges.begin[k] == edges.end[k]) continue;
        const int64_t row = local_row(edges, k);
        const T* x_row = row_of<T>(x, row) + tile.column;
        T* to = row_of<T>(grad, row) + tile.column;
        prefetch<BYTES>(to);
        Vec<T, N> value[U], sum[U] = {};
        for (int u = 0; u < U; u++) value[u] = load<T, N>(x_row + tile.at(u));
        const auto add = [&](Lookahead& cursor, int64_t from, int64_t stop,
                             Vec<T, N>(&total)[U]) __attribute__((always_inline)) {
            for (int64_t e = from; e < stop; e++) {
                const int64_t next = cursor.next(), column = edges.columns[e] - edges.column_offset;
                const T* best_row = best_0 + column * best.stride;
                const T* share_row = share_0 + column * share.stride;
                prefetch<BYTES>(best_0 + next * best.stride);
                prefetch<BYTES>(share_0 + next * share.stride);
                for (int u = 0; u < U; u++) {
                    const auto attains = load<T, N>(best_row + tile.at(u)) == value[u];
                    total[u] += attains ? load<T, N>(share_row + tile.at(u)) : Vec<T, N>{};
                }
            }
        };
        const int64_t begin = edges.begin[k], end = edges.end[k];
        if (end - begin <= LONGEST) {
            add(ahead, begin, end, sum);
        } else {
            Vec<T, N> whole[U];
            ahead = sum_of_parts<T, N, U>(begin, end, whole, ahead, add);
            for (int u = 0; u < U; u++) sum[u] = whole[u];
        }
        for (int u = 0; u < U; u++) sum[u] += load<T, N>(to + tile.at(u));
        for (int u = 0; u < U; u++) store<T, N>(to + tile.at(u), sum[u]);
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
