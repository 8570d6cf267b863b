// Random numbers without state: a hash of (seed, epoch, layer, node ids, lane), the same in C++ and
// in CUDA, on every number of ranks and for any order of nodes and edges.
#pragma once

#ifdef __CUDACC__
#define HPCGNN_HD __host__ __device__ __forceinline__
#else
#define HPCGNN_HD static inline
#endif

// CUDA sources compiled at run time have no <cstdint>.
typedef unsigned int hpcgnn_u32;
typedef unsigned long long hpcgnn_u64;

#define HPCGNN_GOLDEN 0x9e3779b97f4a7c15ull
#define HPCGNN_LANE 0x9e3779b9u

HPCGNN_HD hpcgnn_u64 hpcgnn_mix64(hpcgnn_u64 x) {  // splitmix64
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// One stream of random numbers per (seed, epoch, layer).
HPCGNN_HD hpcgnn_u64 hpcgnn_stream(hpcgnn_u64 seed, hpcgnn_u64 epoch, hpcgnn_u64 layer) {
    hpcgnn_u64 x = hpcgnn_mix64(seed + HPCGNN_GOLDEN);
    x = hpcgnn_mix64(x + epoch + HPCGNN_GOLDEN);
    return hpcgnn_mix64(x + layer + HPCGNN_GOLDEN);
}

// The state of a node, or of an edge's source.
HPCGNN_HD hpcgnn_u64 hpcgnn_node_state(hpcgnn_u64 stream, hpcgnn_u64 id) {
    return hpcgnn_mix64(id * HPCGNN_GOLDEN + stream);
}

// The destination's part of an edge's state; the edge's state is the sum of both parts, so
// that i -> j and j -> i differ.
HPCGNN_HD hpcgnn_u64 hpcgnn_destination_state(hpcgnn_u64 stream, hpcgnn_u64 id) {
    return hpcgnn_mix64(id * HPCGNN_GOLDEN + ~stream);
}

// 32 random bits for one lane (a column of a node, a head of an edge). `low` and `high` are the
// halves of the state. A macro, because `Lanes` may be a vector of 32-bit integers.
#define HPCGNN_RANDOM_BITS(bits, low, high, lane) \
    do {                                          \
        (bits) = (low) + (lane) * HPCGNN_LANE;    \
        (bits) ^= (bits) >> 16;                   \
        (bits) *= 0x7feb352du;                    \
        (bits) += (high);                         \
        (bits) ^= (bits) >> 15;                   \
        (bits) *= 0x846ca68bu;                    \
        (bits) ^= (bits) >> 16;                   \
    } while (0)

HPCGNN_HD hpcgnn_u32 hpcgnn_random_bits(hpcgnn_u64 state, hpcgnn_u32 lane) {
    hpcgnn_u32 bits;
    HPCGNN_RANDOM_BITS(bits, (hpcgnn_u32)state, (hpcgnn_u32)(state >> 32), lane);
    return bits;
}

// A lane is kept iff its bits are at least this; p = 0 keeps every lane.
HPCGNN_HD hpcgnn_u32 hpcgnn_threshold(double p) {
    return p <= 0 ? 0u : p >= 1 ? 0xffffffffu : (hpcgnn_u32)(p * 4294967296.0);
}
