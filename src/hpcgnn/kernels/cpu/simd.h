// Short vectors of any length in plain C++ (GCC and Clang), and the loop over column tiles.
#pragma once

#include <stdint.h>
#include <string.h>

#include "interface.h"

#define HPCGNN_INLINE inline __attribute__((always_inline))

namespace HPCGNN_ISA {

template <typename T, int N>
struct VectorOf {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <typename T>
struct VectorOf<T, 1> {
    typedef T type;
};
template <typename T, int N>
using Vec = typename VectorOf<T, N>::type;

template <typename T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
    typedef int32_t type;
};
template <>
struct IntegerOf<double> {
    typedef int64_t type;
};
template <typename T>
using Integer = typename IntegerOf<T>::type;

// Lanes of a full vector of this instruction set.
template <typename T>
constexpr int LANES = HPCGNN_VECTOR_BYTES / sizeof(T);

// Accumulators that fit the register file beside operands.
constexpr int MAX_VECTORS = HPCGNN_VECTOR_BYTES == 64 ? 16 : 8;

template <typename T, int N>
HPCGNN_INLINE Vec<T, N> load(const T* from) {
    Vec<T, N> value;
    memcpy(&value, from, sizeof value);
    return value;
}

template <typename T, int N>
HPCGNN_INLINE void store(T* to, Vec<T, N> value) {
    memcpy(to, &value, sizeof value);
}

template <typename To, typename From, int N>
HPCGNN_INLINE Vec<To, N> convert(Vec<From, N> value) {
    if constexpr (N == 1)
        return static_cast<To>(value);
    else
        return __builtin_convertvector(value, Vec<To, N>);
}

template <typename T>
HPCGNN_INLINE T* row_of(const Matrix& matrix, int64_t row) {
    return static_cast<T*>(matrix.data) + row * matrix.stride;
}

template <int BYTES>
HPCGNN_INLINE void prefetch(const void* from) {
    const char* line = static_cast<const char*>(from);
    for (int at = 0; at < BYTES; at += 64) __builtin_prefetch(line + at, 0, 3);
}

// U vectors of N lanes. Where the tile is no multiple of N, the last vector overlaps the one before:
// both compute the same values for the columns they share, so storing both is harmless as long as
// everything is loaded before anything is stored.
template <int LANES_, int VECTORS_>
struct Tile {
    static constexpr int N = LANES_;
    static constexpr int U = VECTORS_;
    int64_t column;  // first column
    int64_t last;    // first column of the last vector, relative to `column`
    HPCGNN_INLINE int64_t at(int u) const { return u == U - 1 ? last : static_cast<int64_t>(u) * N; }
};

template <int N, int U, typename Body>
HPCGNN_INLINE void tile_of(int vectors, int64_t column, int64_t width, const Body& body) {
    if constexpr (U > 0) {
        if (vectors == U)
            body(Tile<N, U>{column, width - N});
        else
            tile_of<N, U - 1>(vectors, column, width, body);
    }
}

// Calls body(tile) for tiles that cover columns 0 .. width - 1.
template <int N, int MAX, typename Body>
inline void for_each_tile(int64_t width, const Body& body) {
    if constexpr (N > 1) {
        if (width < N) return for_each_tile<N / 2, 2>(width, body);
    }
    const int64_t vectors = (width + N - 1) / N, tiles = (vectors + MAX - 1) / MAX;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t from = tile * vectors / tiles, to = (tile + 1) * vectors / tiles;
        const int64_t stop = to == vectors ? width : to * N;
        tile_of<N, MAX>(static_cast<int>(to - from), from * N, stop - from * N, body);
    }
}

}  // namespace HPCGNN_ISA
