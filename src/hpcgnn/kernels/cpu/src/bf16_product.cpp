// Dense products of tall matrices with operands rounded to bfloat16, summed in float.
//
// Numbers are multiplied in pairs: neighbours in a row, or in two consecutive rows. As in
// product.cpp, a row of a result doesn't depend on the number of rows or threads, to the bit.
#include "product.h"

#if defined(__x86_64__) && HPCGNN_VECTOR_BYTES == 64 && \
    ((defined(__clang__) && __clang_major__ >= 9) || (!defined(__clang__) && __GNUC__ >= 10))
#define HPCGNN_PAIRS 1  // the compiler's assembler knows the instruction
#endif

extern "C" int hpcgnn_supports(int level);

namespace HPCGNN_ISA {
namespace {

constexpr int TALL = HPCGNN_VECTOR_BYTES == 64 ? 6 : ROWS;  // rows of a tile
constexpr int64_t DEEP_PAIRS = 256;                         // that a tile sums at a time
constexpr int64_t LONG_PAIRS = 192;                         // of rows
constexpr int64_t COPIED_AHEAD = 8;                         // rows between prefetching and rounding

typedef uint32_t Pair;  // the first of two in the lower half
using PairLanes = Vec<Pair, N>;

template <int M>
HPCGNN_INLINE Vec<Pair, M> load_pairs(const void* from) {
    Vec<Pair, M> value;
    memcpy(&value, from, sizeof value);
    return value;
}

template <bool VALUE_>
struct Flag {
    static constexpr bool VALUE = VALUE_;
};

// Rounded to the nearest, ties to even; in the upper half. NaN stays NaN.
template <int M>
HPCGNN_INLINE Vec<uint32_t, M> rounded(Vec<float, M> value) {
    Vec<uint32_t, M> bits;
    memcpy(&bits, &value, sizeof bits);
    const Vec<uint32_t, M> up = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    const Vec<uint32_t, M> nan = Vec<uint32_t, M>{} + 0x7fc00000u;
    return (bits & 0x7fffffffu) > 0x7f800000u ? nan : up;
}

// M numbers from `from` on, in the upper halves of M words.
template <int M>
HPCGNN_INLINE Vec<uint32_t, M> upper(const float* from) {
    return rounded<M>(load<float, M>(from));
}
template <int M>
HPCGNN_INLINE Vec<uint32_t, M> upper(const Bfloat16* from) {
    Vec<float, M> value = load_as<float, M, Bfloat16>(from);
    Vec<uint32_t, M> bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// (first[j], second[j]) of N columns, rounded.
template <bool NATIVE, typename S>
HPCGNN_INLINE PairLanes pair_lanes(const S* first, const S* second) {
#ifdef HPCGNN_PAIRS
    if constexpr (NATIVE && sizeof(S) == sizeof(float)) {
        alignas(64) static constexpr uint16_t IN_TURN[2 * N] = {
            0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const Lanes low = load<float, N>(first), high = load<float, N>(second);
        PairLanes pairs;
        asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(pairs) : "v"(low), "v"(high));
        asm("vpermw %0, %1, %0" : "+v"(pairs) : "v"(load_pairs<N>(IN_TURN)));
        return pairs;
    }
#endif
    return upper<N>(first) >> 16 | upper<N>(second);
}

// to[j] = (first[j], first[j + next]) for `count` columns; `next` 0: zeros for the second.
template <bool NATIVE, typename S>
void pair_rows(const S* first, int64_t next, int64_t count, Pair* to) {
    const S* second = first + next;
    int64_t j = 0;
    for (; next && j + N <= count; j += N) {
        const PairLanes pairs = pair_lanes<NATIVE>(first + j, second + j);
        memcpy(to + j, &pairs, sizeof pairs);
    }
    for (; j < count; j++)
        to[j] = upper<1>(first + j) >> 16 | (next ? upper<1>(second + j) : 0);
}

// The numbers of a row, rounded.
void round_row(const float* from, int64_t count, Bfloat16* to) {
    int64_t j = 0;
    for (; j + N <= count; j += N) {
        const Vec<Bfloat16, N> halves =
            __builtin_convertvector(upper<N>(from + j) >> 16, Vec<Bfloat16, N>);
        memcpy(to + j, &halves, sizeof halves);
    }
    for (; j < count; j++) to[j] = static_cast<Bfloat16>(upper<1>(from + j) >> 16);
}

// to = base + acc, rounded.
template <int U>
HPCGNN_INLINE void write_row(const Lanes (&acc)[U], Bfloat16* to, int64_t width,
                             const float* base) {
    float lanes[U * N];
    write_row<U>(acc, lanes, width, base);
    round_row(lanes, width, to);
}

// acc + both products of the pair `a` points to and those of b.
template <bool NATIVE>
HPCGNN_INLINE Lanes add_pair(Lanes acc, const Pair* a, PairLanes b) {
#ifdef HPCGNN_PAIRS
    if constexpr (NATIVE) {
        asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*a));
        return acc;
    }
#endif
    const Pair pair = load_pairs<1>(a), low = pair << 16, high = pair & 0xffff0000u;
    const PairLanes low_b = b << 16, high_b = b & 0xffff0000u;
    float lows, highs;
    Lanes lows_b, highs_b;
    memcpy(&lows, &low, sizeof lows), memcpy(&highs, &high, sizeof highs);
    memcpy(&lows_b, &low_b, sizeof lows_b), memcpy(&highs_b, &high_b, sizeof highs_b);
    return acc + highs * highs_b + lows * lows_b;
}

// acc[r] = sum over k of a[r][k] * panel[k]; steps in pairs.
template <bool NATIVE, int R, int U>
HPCGNN_INLINE void sum_pairs(const Pair* a, int64_t row_step, int64_t deep_step, const Pair* panel,
                             int64_t deep, Lanes (&acc)[R][U]) {
    Lanes sum[R][U] = {};
    for (int64_t k = 0; k < deep; k++, panel += PANEL, a += deep_step) {
        PairLanes b[U];
        for (int u = 0; u < U; u++) b[u] = load_pairs<N>(panel + u * N);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int u = 0; u < U; u++)
                sum[r][u] = add_pair<NATIVE>(sum[r][u], a + r * row_step, b[u]);
    }
    for (int r = 0; r < R; r++)
        for (int u = 0; u < U; u++) acc[r][u] = sum[r][u];
}

struct PairStrip {
    const Pair* panel;  // deep x PANEL
    int64_t deep, width;
    Matrix base;        // is added; null: start
    const float* start; // of each row; null: zeros
};

template <bool NATIVE, typename To, int R, int U>
HPCGNN_INLINE void rows_of_tile(const Pair* a, int64_t a_step, int64_t row, Matrix out,
                                const PairStrip& strip) {
    Lanes acc[R][U];
    sum_pairs<NATIVE, R, U>(a, a_step, 1, strip.panel, strip.deep, acc);
    for (int r = 0; r < R; r++) {
        const float* base =
            strip.base.data ? row_of<float>(strip.base, row + r) : strip.start;
        write_row<U>(acc[r], row_of<To>(out, row + r), strip.width, base);
    }
}

template <bool NATIVE, typename To, int U>
void pairs_by_panel(const Pair* a, int64_t a_step, int64_t rows, Matrix out,
                    const PairStrip& strip) {
    int64_t row = 0;
    for (; row + TALL <= rows; row += TALL)
        rows_of_tile<NATIVE, To, TALL, U>(a + row * a_step, a_step, row, out, strip);
    for (; row < rows; row++)
        rows_of_tile<NATIVE, To, 1, U>(a + row * a_step, a_step, row, out, strip);
}

template <bool NATIVE, typename To, int U>
void pairs_by_panel_of(int vectors, const Pair* a, int64_t a_step, int64_t rows, Matrix out,
                       const PairStrip& strip) {
    if constexpr (U > 0) {
        if (vectors == U)
            pairs_by_panel<NATIVE, To, U>(a, a_step, rows, out, strip);
        else
            pairs_by_panel_of<NATIVE, To, U - 1>(vectors, a, a_step, rows, out, strip);
    }
}

struct Given {
    Matrix x;
    bool x_is_bf16;
    Matrix out;
    const Pair* packed;
    int64_t deep, width;
    bool adds;           // to the content of out, in float
    const float* start;  // otherwise the base of each row of it; null: zeros
};

// A band of rows as pairs: x itself if it holds pairs, otherwise a rounded copy.
const Pair* pairs_of(const Given& given, int64_t row, int64_t rows, int64_t last, Pair* copy) {
    const int64_t deep = given.deep, pairs = (deep + 1) / 2;
    if (!copy) return reinterpret_cast<const Pair*>(row_of<Bfloat16>(given.x, row));
    for (int64_t r = 0; r < rows; r++) {
        Bfloat16* to = reinterpret_cast<Bfloat16*>(copy + r * pairs);
        if (deep % 2) to[deep] = 0;
        if (given.x_is_bf16) {
            memcpy(to, row_of<Bfloat16>(given.x, row + r), deep * sizeof(Bfloat16));
            continue;
        }
        if (row + r + COPIED_AHEAD < last)
            prefetch_row(row_of<float>(given.x, row + r + COPIED_AHEAD), deep);
        round_row(row_of<float>(given.x, row + r), deep, to);
    }
    return copy;
}

template <bool NATIVE, typename To>
void product(const Given& given, int64_t first, int64_t last) {
    const int64_t pairs = (given.deep + 1) / 2, width = given.width;
    const bool direct = given.x_is_bf16 && given.deep % 2 == 0 && given.x.stride % 2 == 0;
    const bool partial = sizeof(To) == sizeof(Bfloat16) && pairs > DEEP_PAIRS;
    const int64_t a_step = direct ? given.x.stride / 2 : pairs;
    Buffer<Pair> copy(direct ? 0 : BAND * pairs);
    Buffer<float> sums(partial ? BAND * width : 0);
    for (int64_t row = first; row < last; row += BAND) {
        const int64_t rows = smaller(BAND, last - row);
        const Pair* a = pairs_of(given, row, rows, last, direct ? nullptr : copy.data());
        const Pair* panel = given.packed;
        for (int64_t k = 0; k < pairs || k == 0; k += DEEP_PAIRS) {
            const int64_t part = smaller(DEEP_PAIRS, pairs - k);
            for (int64_t j = 0; j < width; j += PANEL, panel += part * PANEL) {
                const int64_t columns = smaller(PANEL, width - j);
                const int vectors = static_cast<int>((columns + N - 1) / N);
                const Matrix out{row_of<To>(given.out, row) + j, given.out.stride};
                const Matrix sum{partial ? sums.data() + j : nullptr, width};
                PairStrip strip{panel, part, columns, {nullptr, 0}, given.start};
                if (given.start) strip.start += j;
                if (given.adds || k > 0) strip.base = partial ? sum : out;
                if (partial && k + part < pairs)
                    pairs_by_panel_of<NATIVE, float, VECTORS>(vectors, a + k, a_step, rows, sum, strip);
                else
                    pairs_by_panel_of<NATIVE, To, VECTORS>(vectors, a + k, a_step, rows, out, strip);
            }
        }
    }
}

// Pairs of rows of columns first .. last - 1, by WIDTH adjacent columns, zeros beyond the last.
template <bool NATIVE, int WIDTH>
void pack_pairs(Matrix x, bool is_bf16, int64_t row, int64_t rows, int64_t first, int64_t last,
                Pair* line, Pair* to) {
    const int64_t pairs = (rows + 1) / 2, width = last - first;
    for (int64_t p = 0; p < pairs; p++) {
        const int64_t at = row + 2 * p, next = 2 * p + 1 < rows ? x.stride : 0;
        if (is_bf16)
            pair_rows<NATIVE>(row_of<Bfloat16>(x, at) + first, next, width, line);
        else
            pair_rows<NATIVE>(row_of<float>(x, at) + first, next, width, line);
        for (int64_t j = 0; j < width; j += WIDTH) {
            Pair* side_by_side = to + j * pairs + p * WIDTH;
            if (j + WIDTH <= width)
                memcpy(side_by_side, line + j, WIDTH * sizeof(Pair));
            else
                for (int64_t i = 0; i < WIDTH; i++) side_by_side[i] = j + i < width ? line[j + i] : 0;
        }
    }
}

struct Outer {
    Matrix a;
    bool a_is_bf16;
    Matrix b;
    bool b_is_bf16;
    Matrix out;
    int64_t count, width;
};

// Rows low .. high - 1 of out: columns of a.
template <bool NATIVE>
void outer_pairs(const Outer& given, int64_t low, int64_t high) {
    const int64_t width = given.width, tall = (high - low + TALL - 1) / TALL * TALL;
    const int64_t wide = (width + PANEL - 1) / PANEL * PANEL;
    Buffer<Pair> packed_a(LONG_PAIRS * tall), packed_b(LONG_PAIRS * wide);
    Buffer<Pair> line(tall > wide ? tall : wide);
    for (int64_t row = 0; row < given.count; row += 2 * LONG_PAIRS) {
        const int64_t rows = smaller(2 * LONG_PAIRS, given.count - row), pairs = (rows + 1) / 2;
        pack_pairs<NATIVE, TALL>(given.a, given.a_is_bf16, row, rows, low, high, line.data(),
                         packed_a.data());
        pack_pairs<NATIVE, PANEL>(given.b, given.b_is_bf16, row, rows, 0, width, line.data(),
                          packed_b.data());
        for (int64_t j = 0; j < width; j += PANEL)
            for (int64_t i = low; i < high; i += TALL) {
                const int64_t tile_rows = smaller(TALL, high - i), left = smaller(PANEL, width - j);
                float* c = row_of<float>(given.out, i) + j;
                for (int64_t r = 0; r < tile_rows; r++) prefetch_row(c + r * given.out.stride, left);
                Lanes acc[TALL][VECTORS];
                sum_pairs<NATIVE, TALL, VECTORS>(packed_a.data() + (i - low) * pairs, 1, TALL,
                                                 packed_b.data() + j * pairs, pairs, acc);
                for (int r = 0; r < tile_rows; r++, c += given.out.stride)
                    write_row<VECTORS>(acc[r], c, left, c);
            }
    }
}

// Calls body(flag), where flag says whether the processor multiplies pairs.
template <typename Body>
void with_native(const Body& body) {
#ifdef HPCGNN_PAIRS
    if (hpcgnn_supports(3)) return body(Flag<true>{});
#endif
    body(Flag<false>{});
}

}  // namespace
}  // namespace HPCGNN_ISA

// The number of adjacent columns in packed weights, and the number of consecutive pairs of rows
// of them.
HPCGNN_EXPORT(bf16_packing)(int64_t* panel, int64_t* pairs) {
    *panel = HPCGNN_ISA::PANEL;
    *pairs = HPCGNN_ISA::DEEP_PAIRS;
}

// Like `product`, with operands in bfloat16: x is rounded unless `x_is_bf16`, and out if
// `out_is_bf16`. `adds` is only for floats.
HPCGNN_EXPORT(bf16_product)(Matrix x, int64_t x_is_bf16, const uint32_t* packed, Matrix out,
                            int64_t out_is_bf16, int64_t rows, int64_t deep, int64_t width,
                            int64_t adds, const float* start, int64_t threads) {
    using namespace HPCGNN_ISA;
    const Given given{x, x_is_bf16 != 0, out, packed, deep, width, adds != 0, start};
    with_native([&](auto is_native) {
        constexpr bool NATIVE = decltype(is_native)::VALUE;
        for_each_range(rows, threads, [&](int64_t first, int64_t last) {
            if (out_is_bf16)
                product<NATIVE, Bfloat16>(given, first, last);
            else
                product<NATIVE, float>(given, first, last);
        });
    });
}

// Like `outer_products`, with operands in bfloat16.
HPCGNN_EXPORT(bf16_outer_products)(Matrix a, int64_t a_is_bf16, Matrix b, int64_t b_is_bf16,
                                   Matrix out, int64_t count, int64_t height, int64_t width,
                                   int64_t threads) {
    using namespace HPCGNN_ISA;
    const Outer given{a, a_is_bf16 != 0, b, b_is_bf16 != 0, out, count, width};
    with_native([&](auto is_native) {
        for_each_range((height + TALL - 1) / TALL, threads, [&](int64_t first, int64_t last) {
            outer_pairs<decltype(is_native)::VALUE>(given, first * TALL,
                                                    smaller(last * TALL, height));
        });
    });
}
