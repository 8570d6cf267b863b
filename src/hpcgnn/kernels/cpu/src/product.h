// Code shared by dense products: tiles of a result that stay in registers, and how they are stored.
#pragma once

#include "schedule.h"

namespace HPCGNN_ISA {
namespace {

constexpr int N = LANES<float>;
constexpr int ROWS = 4;                      // of a tile
constexpr int VECTORS = MAX_VECTORS / ROWS;  // of a tile's row
constexpr int PANEL = N * VECTORS;           // columns
constexpr int64_t BAND = 96;                 // rows that stay in the cache for all panels

using Lanes = Vec<float, N>;

HPCGNN_INLINE void prefetch_row(const float* from, int64_t count) {
    for (int64_t at = 0; at < count; at += 16) __builtin_prefetch(from + at, 0, 3);
}

HPCGNN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// to = base + acc: `width` numbers, at most U * N; a null base is 0.
template <int U>
HPCGNN_INLINE void write_row(const Lanes (&acc)[U], float* to, int64_t width, const float* base) {
    if (width == U * N) {
        for (int u = 0; u < U; u++) {
            const Lanes before = base ? load<float, N>(base + u * N) : Lanes{};
            store<float, N>(to + u * N, before + acc[u]);
        }
        return;
    }
    float lanes[U * N];
    for (int u = 0; u < U; u++) store<float, N>(lanes + u * N, acc[u]);
    for (int64_t j = 0; j < width; j++) to[j] = (base ? base[j] : 0) + lanes[j];
}

}  // namespace
}  // namespace HPCGNN_ISA
