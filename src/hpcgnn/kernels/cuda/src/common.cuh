// Code shared by all CUDA kernels: number types, wide loads, rows of a block.
//
// Only random.h is included, so that the sources compile at run time (NVRTC) without a
// toolkit. Tests also run them on a CPU, with definitions for what HPCGNN_EMULATED leaves out.
#pragma once

#include "../../random.h"

typedef long long i64;
typedef hpcgnn_u32 u32;
typedef hpcgnn_u64 u64;

#define DEVICE __device__ __forceinline__
#define WARP 32
#define ALL 0xffffffffu
#define THREADS 128
// Blocks per multiprocessor that a kernel's registers must allow: 8 grants 64 per thread, 6 grants
// 80, 5 grants 96, 4 grants 128. With this the compiler keeps UNROLL wide loads in flight; by
// itself it saves registers and waits for each load.
#define KERNEL(blocks) __global__ void __launch_bounds__(THREADS, blocks)
#define UNROLL 4

// 16-bit numbers, which are only widened, or rounded from a sum.
struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};

// The type of sums of X.
template <class X>
struct SumOf {
    typedef float type;
};
template <>
struct SumOf<double> {
    typedef double type;
};
template <class X>
using Sum = typename SumOf<X>::type;

#ifndef HPCGNN_EMULATED
DEVICE float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
DEVICE float widen(bf16 x) {
    return __uint_as_float(static_cast<u32>(x.bits) << 16);
}
DEVICE void narrow(float x, f16& y) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}
DEVICE void narrow(float x, bf16& y) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}
#endif
DEVICE float widen(float x) {
    return x;
}
DEVICE double widen(double x) {
    return x;
}
DEVICE void narrow(float x, float& y) {
    y = x;
}
DEVICE void narrow(double x, double& y) {
    y = x;
}

DEVICE float exponential(float x) {
    return __expf(x);
}
DEVICE double exponential(double x) {
    return exp(x);
}

template <class A>
DEVICE A larger(A x, A y) {
    return x > y ? x : y;
}

template <class A>
DEVICE A minus_infinity() {
    return -static_cast<A>(__int_as_float(0x7f800000));
}

template <class A>
DEVICE A leaky(A x, A slope) {
    return x > 0 ? x : slope * x;
}

// Memory is moved in words of up to 16 bytes; the launching code has checked the alignment.
template <int BYTES>
struct WordOf {
    typedef uint4 type;
};
template <>
struct WordOf<8> {
    typedef uint2 type;
};
template <>
struct WordOf<4> {
    typedef u32 type;
};
template <>
struct WordOf<2> {
    typedef unsigned short type;
};

// V adjacent numbers, as in memory.
template <class X, int V>
union Pack {
    static constexpr int BYTES = V * static_cast<int>(sizeof(X));
    typedef typename WordOf<BYTES>::type Word;
    static constexpr int WORDS = BYTES / static_cast<int>(sizeof(Word));
    Word words[WORDS];
    u32 pairs[(BYTES + 3) / 4];  // of 16-bit numbers
    X at[V];
};

template <class X, int V>
DEVICE Sum<X> widen(const Pack<X, V>& pack, int v) {
    return widen(pack.at[v]);
}
// The upper number of a pair is widened in place: the compiler would move it down and up again.
template <int V>
DEVICE float widen(const Pack<bf16, V>& pack, int v) {
    const u32 pair = pack.pairs[v / 2];
    return __int_as_float(static_cast<int>(v % 2 ? pair & 0xffff0000u : pair << 16));
}

template <class X, int V>
DEVICE Pack<X, V> load(const X* from) {
    Pack<X, V> pack;
#pragma unroll
    for (int i = 0; i < Pack<X, V>::WORDS; i++)
        pack.words[i] = reinterpret_cast<const typename Pack<X, V>::Word*>(from)[i];
    return pack;
}

// Load from memory that is not written while the kernel runs.
template <class X, int V>
DEVICE Pack<X, V> gather(const X* from) {
    Pack<X, V> pack;
#pragma unroll
    for (int i = 0; i < Pack<X, V>::WORDS; i++)
        pack.words[i] = __ldg(reinterpret_cast<const typename Pack<X, V>::Word*>(from) + i);
    return pack;
}

template <class X, int V>
DEVICE Pack<X, V> zeros() {
    Pack<X, V> pack;
#pragma unroll
    for (int i = 0; i < V; i++) pack.at[i] = X{};
    return pack;
}

template <class X, int V>
DEVICE void store(X* to, const Pack<X, V>& pack) {
#pragma unroll
    for (int i = 0; i < Pack<X, V>::WORDS; i++)
        reinterpret_cast<typename Pack<X, V>::Word*>(to)[i] = pack.words[i];
}

// to += sum, over V adjacent numbers.
template <class O, int V, class A>
DEVICE void add_to(O* to, const A (&sum)[V]) {
    Pack<O, V> pack = load<O, V>(to);
#pragma unroll
    for (int i = 0; i < V; i++) narrow(widen(pack, i) + sum[i], pack.at[i]);
    store<O, V>(to, pack);
}

// to = sum, over V adjacent numbers.
template <class O, int V, class A>
DEVICE void set_to(O* to, const A (&sum)[V]) {
    Pack<O, V> pack;
#pragma unroll
    for (int i = 0; i < V; i++) narrow(sum[i], pack.at[i]);
    store<O, V>(to, pack);
}

// Sum over the lanes whose numbers differ in the bits from `low` up to below `high`; all lanes
// call.
template <class A>
DEVICE A add_lanes(A value, int low, int high) {
    for (int other = low; other < high; other *= 2) value += __shfl_xor_sync(ALL, value, other);
    return value;
}

// A sum that stays as accurate as its terms for any number of them: the rounding error of one step
// is added in the next (Kahan 1965).
template <class A>
struct Compensated {
    A sum = 0, lost = 0;

    __device__ __forceinline__ void add(A value) {
        const A step = value - lost, next = sum + step;
        lost = (next - sum) - step;
        sum = next;
    }
    __device__ __forceinline__ A total() const {
        return sum - lost;
    }
};

// Rows first .. last - 1 of a block, except those with more than `longest` edges. Row k is local
// row rows[k] (k itself where rows is null); edge e reads row columns[e] - column_offset.
struct Edges {
    const int* rows;
    const i64* begin;
    const i64* end;
    const int* columns;
    i64 column_offset, first, last, longest;
};

#define EDGES                                                                                 \
    const int *rows, const i64 *begin, const i64 *end, const int *columns, i64 column_offset, \
        i64 first, i64 last, i64 longest
#define GIVEN_EDGES                                                    \
    Edges {                                                            \
        rows, begin, end, columns, column_offset, first, last, longest \
    }

DEVICE int column_of(const Edges& edges, i64 edge) {
    return __ldg(edges.columns + edge) - static_cast<int>(edges.column_offset);
}

struct Row {
    i64 local, begin;
    int count;  // of edges; 0 where there is nothing to add
    bool there;  // one of the rows of this launch
};

DEVICE Row row_of(const Edges& edges, i64 k) {
    Row row{k, 0, 0, false};
    if (k >= edges.last) return row;
    row.begin = edges.begin[k];
    const i64 count = edges.end[k] - row.begin;
    row.there = count <= edges.longest;
    row.count = row.there ? static_cast<int>(count) : 0;
    if (edges.rows) row.local = edges.rows[k];
    return row;
}

// The work of one lane for rows that are sums over edges: 2^span lanes share row k; 2^lanes of them
// are adjacent, on V columns each, and take every (2^(span - lanes))-th edge. blockIdx.y counts
// tiles of columns. Lanes beyond the last column repeat the first and write nothing.
struct Place {
    i64 k;
    int column, group, groups_log;
    bool inside;
};

template <int V>
DEVICE Place place_of(i64 first, int width, int lanes_log, int span_log) {
    const int lane = threadIdx.x & ((1 << span_log) - 1);
    const int side = lane & ((1 << lanes_log) - 1);
    const int column = ((static_cast<int>(blockIdx.y) << lanes_log) + side) * V;
    const i64 thread = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
    const bool inside = column < width;
    return Place{first + (thread >> span_log), inside ? column : 0, lane >> lanes_log,
                 span_log - lanes_log, inside};
}
