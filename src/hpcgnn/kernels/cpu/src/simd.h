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
    typedef uint32_t bits;
};
template <>
struct IntegerOf<double> {
    typedef int64_t type;
    typedef uint64_t bits;
};
template <typename T>
using Integer = typename IntegerOf<T>::type;
template <typename T>
using Bits = typename IntegerOf<T>::bits;

// Lanes of a full vector of this instruction set.
template <typename T>
constexpr int LANES = HPCGNN_VECTOR_BYTES / sizeof(T);

// The number of accumulators that fit into registers besides the operands.
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

// A bfloat16 as stored in rows: the upper half of a float.
typedef uint16_t Bfloat16;

// N numbers stored as S: T itself, or Bfloat16 for float.
template <typename T, int N, typename S>
HPCGNN_INLINE Vec<T, N> load_as(const S* from) {
    if constexpr (sizeof(S) == sizeof(T)) {
        return load<T, N>(from);
    } else {
        Vec<uint32_t, N> bits;
        if constexpr (N == 1)
            bits = static_cast<uint32_t>(*from) << 16;
        else
            bits = __builtin_convertvector((load<Bfloat16, N>(from)), Vec<uint32_t, N>) << 16;
        Vec<T, N> value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
}

template <typename To, typename From, int N>
HPCGNN_INLINE Vec<To, N> convert(Vec<From, N> value) {
    if constexpr (N == 1)
        return static_cast<To>(value);
    else
        return __builtin_convertvector(value, Vec<To, N>);
}

template <typename T, int N>
struct Halves {
    Vec<T, N / 2> low, high;
    HPCGNN_INLINE explicit Halves(Vec<T, N> whole) { memcpy(this, &whole, sizeof whole); }
};

// The vector with its first `count` lanes zero.
template <typename T, int N>
HPCGNN_INLINE Vec<T, N> without_first(Vec<T, N> value, int64_t count) {
    T lanes[N];
    store<T, N>(lanes, value);
    for (int n = 0; n < N; n++)
        if (n < count) lanes[n] = T(0);
    return load<T, N>(lanes);
}

// Adds lanes M apart until M are left.
template <typename T, int N, int M = 1>
HPCGNN_INLINE Vec<T, M> sum(Vec<T, N> value) {
    if constexpr (N == M) {
        return value;
    } else {
        const Halves<T, N> halves(value);
        return sum<T, N / 2, M>(halves.low + halves.high);
    }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HPCGNN_SHUFFLE 1
#endif
#endif

#ifdef HPCGNN_SHUFFLE
template <int... I>
struct Indices {};
template <int N, int... I>
struct FirstIndices : FirstIndices<N - 1, N - 1, I...> {};
template <int... I>
struct FirstIndices<0, I...> {
    typedef Indices<I...> type;
};

// Of every four lanes of a and b: a0 + a2, b0 + b2, a1 + a3, b1 + b3.
template <typename T, int N, int... I>
HPCGNN_INLINE Vec<T, N> add_quarters(Vec<T, N> a, Vec<T, N> b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * N)...) +
           __builtin_shufflevector(a, b, (I / 4 * 4 + 2 + I % 4 / 2 + I % 2 * N)...);
}

// Of every four lanes of a and b: a0 + a2, a1 + a3, b0 + b2, b1 + b3.
template <typename T, int N, int... I>
HPCGNN_INLINE Vec<T, N> add_halves(Vec<T, N> a, Vec<T, N> b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 + I % 4 / 2 * N)...) +
           __builtin_shufflevector(a, b, (I / 4 * 4 + 2 + I % 2 + I % 4 / 2 * N)...);
}
#endif

// The sums of four vectors' lanes.
template <typename T, int N>
HPCGNN_INLINE Vec<T, 4> sum4(Vec<T, N> a, Vec<T, N> b, Vec<T, N> c, Vec<T, N> d) {
#ifdef HPCGNN_SHUFFLE
    if constexpr (N >= 4) {
        typename FirstIndices<N>::type indices;
        const Vec<T, N> ab = add_quarters<T, N>(a, b, indices);
        const Vec<T, N> cd = add_quarters<T, N>(c, d, indices);
        return sum<T, N, 4>(add_halves<T, N>(ab, cd, indices));
    }
#endif
    const T sums[4] = {sum<T, N>(a), sum<T, N>(b), sum<T, N>(c), sum<T, N>(d)};
    return load<T, 4>(sums);
}

// e^x to about 1 ulp for x <= 88 (708 in double); 0 where the result would be denormal.
template <typename T, int N>
HPCGNN_INLINE Vec<T, N> exponential(Vec<T, N> x) {
    constexpr bool F = sizeof(T) == 4;
    constexpr T LOWEST = F ? T(-87.3365447) : T(-708.3964185322641);
    constexpr T ROUND = F ? T(12582912.0) : T(6755399441055744.0);  // 1.5 * 2^mantissa bits
    constexpr T LOG2_E = T(1.44269504088896340736);
    constexpr T LN2_HIGH = F ? T(0.693359375) : T(6.93147180369123816490e-01);
    constexpr T LN2_LOW = F ? T(-2.12194440e-4) : T(1.90821492927058770002e-10);
    constexpr int BITS = F ? 23 : 52;
    // Written so that NaN stays NaN.
    const Vec<T, N> clamped = x < LOWEST ? Vec<T, N>{} + LOWEST : x;
    const Vec<T, N> shifted = clamped * LOG2_E + ROUND;
    const Vec<T, N> n = shifted - ROUND;
    const Vec<T, N> r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    Vec<T, N> y;
    if constexpr (F) {
        y = r * T(1.9875691500e-4) + T(1.3981999507e-3);
        y = y * r + T(8.3334519073e-3);
        y = y * r + T(4.1665795894e-2);
        y = y * r + T(1.6666665459e-1);
        y = y * r + T(5.0000001201e-1);
        y = y * (r * r) + r + T(1);
    } else {
        y = Vec<T, N>{} + T(1) / T(6227020800.0);
        T factorial = T(6227020800.0);
        for (int power = 13; power > 0; power--) {
            factorial /= power;
            y = y * r + T(1) / factorial;
        }
    }
    Vec<Bits<T>, N> exponent, bits;
    memcpy(&exponent, &shifted, sizeof exponent);
    memcpy(&bits, &y, sizeof bits);
    bits += exponent << BITS;  // the rounding constant's bits are shifted out
    memcpy(&y, &bits, sizeof y);
    return x < LOWEST ? Vec<T, N>{} : y;
}

template <typename T>
HPCGNN_INLINE T* row_of(const Matrix& matrix, int64_t row) {
    return static_cast<T*>(matrix.data) + row * matrix.stride;
}

// Into the second-level cache: it allows more misses at a time than the first, and misses are
// what gathering waits for.
template <int BYTES>
HPCGNN_INLINE void prefetch(const void* from) {
    const char* line = static_cast<const char*>(from);
    for (int at = 0; at < BYTES; at += 64) __builtin_prefetch(line + at, 0, 2);
}

// U vectors of N lanes. If a tile is not a multiple of N, its last vector overlaps the one before:
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
