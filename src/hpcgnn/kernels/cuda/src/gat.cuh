// What all attention kernels share: which head and channels a lane has, dropout, running softmax.
#pragma once

#include "common.cuh"

#define WIDE (2 * WARP)

// A warp works on one row of the block, and on `side` heads at a time (blockIdx.y counts these):
// `lanes` lanes side by side on V channels of each head, and groups of lanes * side lanes that take
// the row's edges in turn; all of these are powers of two, given by their logarithms. LANES is
// `lanes` where the compiler knows it, else 0. A head of more than WARP * V channels (LANES is then
// WIDE) takes several launches, told apart by `first_channel`; the last one, with `keep`, writes
// what all of them share.
template <int LANES>
struct HeadPlace {
    int head, channel, group, groups, width, given;
    bool inside;  // there is a head and a channel for this lane

    __device__ __forceinline__ HeadPlace(int heads, int channels, int given_lanes_log, int side_log,
                                         int first_channel, int V)
        : given(given_lanes_log) {
        const int lane = threadIdx.x % WARP, width_log = lanes_log() + side_log;
        width = 1 << width_log;
        groups = WARP >> width_log;
        group = lane >> width_log;
        head = (static_cast<int>(blockIdx.y) << side_log) +
               ((lane >> lanes_log()) & ((1 << side_log) - 1));
        channel = first_channel + (lane & (lanes() - 1)) * V;
        inside = head < heads && channel < channels;
        head = min(head, heads - 1);
        channel = min(channel, channels - V);
    }

    __device__ __forceinline__ int lanes_log() const {
        constexpr int KNOWN = LANES < WARP ? LANES : WARP;
        if constexpr (LANES == 0) return given;
        return KNOWN == 8 ? 3 : KNOWN == 16 ? 4 : 5;
    }

    __device__ __forceinline__ int lanes() const {
        return 1 << lanes_log();
    }

    // Whether this lane is its head's first.
    __device__ __forceinline__ bool leads() const {
        return (threadIdx.x & (lanes() - 1)) == 0;
    }

    // Sums over the lanes of a head; all lanes call.
    template <class A>
    __device__ __forceinline__ void add_lanes_of(A (&values)[UNROLL]) const {
#pragma unroll
        for (int other = 1; other < lanes(); other *= 2)
#pragma unroll
            for (int u = 0; u < UNROLL; u++) values[u] += __shfl_xor_sync(ALL, values[u], other);
    }
};

// The UNROLL edges of a row that a group of lanes takes together. Past the end of the row stands
// its last edge again, which is not `valid`.
struct Batch {
    i64 begin;
    int first, step, count;
    int at[UNROLL];  // the edges' columns

    template <int LANES>
    __device__ __forceinline__ Batch(const Edges& edges, const Row& row,
                                     const HeadPlace<LANES>& place, int base)
        : begin(row.begin), first(base + place.group), step(place.groups), count(row.count) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) at[u] = column_of(edges, edge(u));
    }

    __device__ __forceinline__ i64 edge(int u) const {
        return begin + min(first + u * step, count - 1);
    }

    __device__ __forceinline__ bool valid(int u) const {
        return first + u * step < count;
    }

    // What the edges' columns have at `from`.
    template <class X, int V>
    __device__ __forceinline__ void read(Pack<X, V> (&value)[UNROLL], const X* from,
                                         i64 stride) const {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) value[u] = gather<X, V>(from + at[u] * stride);
    }

    template <class A>
    __device__ __forceinline__ void read(A (&value)[UNROLL], const A* from, i64 stride) const {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) value[u] = __ldg(from + at[u] * stride);
    }
};

// Kernels are made three times, from lean to heavy: for plain attention, for attention whose edges
// are dropped, and for edges with features, which may be dropped too.
#define PLAIN 0
#define DROPS 1
#define FEATURES 2

#define DROPOUT                                                                           \
    const i64 *row_ids, const i64 *column_ids, u64 row_key, u64 column_key, u32 threshold, \
        u32 first_head, Sum<X> kept_scale
#define GIVEN_DROPOUT                                                       \
    Dropout<Sum<X>> {                                                       \
        row_ids, column_ids, row_key, column_key, threshold, first_head, kept_scale \
    }

// Attention dropout by original ids: an edge is kept, times `scale`, where its random bits are at
// least `threshold`. Of the stream's key, one end of the edge has the complement, so that i -> j and
// j -> i differ. Off where row_ids is null.
template <class A>
struct Dropout {
    const i64* row_ids;
    const i64* column_ids;
    u64 row_key, column_key;
    u32 threshold, first_head;
    A scale;
};

// Factors of one row's weights: 0 or 1 / (1 - p); 1 without dropout.
template <class A, int EXTRAS>
class Mask {
  public:
    __device__ __forceinline__ Mask(const Dropout<A>& dropout, i64 row) : dropout_(dropout) {
        if (!drops()) return;
        row_ = hpcgnn_node_state(dropout.row_key, dropout.row_ids[row]);
    }

    __device__ __forceinline__ A of(i64 column, int head) const {
        if (!drops()) return A(1);
        const u64 id = __ldg(dropout_.column_ids + column);
        const u64 state = row_ + hpcgnn_node_state(dropout_.column_key, id);
        const u32 bits = hpcgnn_random_bits(state, dropout_.first_head + head);
        return bits >= dropout_.threshold ? dropout_.scale : A(0);
    }

  private:
    __device__ __forceinline__ bool drops() const {
        return EXTRAS == DROPS || (EXTRAS == FEATURES && dropout_.row_ids);
    }

    const Dropout<A> dropout_;
    u64 row_ = 0;
};

#define EDGE_TERM \
    const Sum<X>*edge_vector, i64 edge_vector_stride, const float *features, int feature_width
#define GIVEN_EDGE_TERM                                          \
    EdgeTerm<Sum<X>, EXTRAS> {                                   \
        edge_vector, edge_vector_stride, features, feature_width \
    }

// The score that an edge's own features add.
template <class A, int EXTRAS>
struct EdgeTerm {
    const A* vector;
    i64 stride;
    const float* features;
    int width;

    __device__ __forceinline__ A of(i64 edge, int head) const {
        A term = 0;
        if (EXTRAS == FEATURES)
            for (int d = 0; d < width; d++)
                term += vector[head * stride + d] * static_cast<A>(features[edge * width + d]);
        return term;
    }
};

template <class X, int V>
DEVICE Sum<X> inner(const Pack<X, V>& a, const Pack<X, V>& b) {
    Sum<X> sum = 0;
#pragma unroll
    for (int v = 0; v < V; v++) sum += widen(a.at[v]) * widen(b.at[v]);
    return sum;
}

// This lane's part of the inner product over the channels that other launches add up.
template <class X, int V>
DEVICE Sum<X> elsewhere(const X* a, const X* b, int channels, int first_channel) {
    Sum<X> sum = 0;
    for (int from = 0; from < channels; from += WARP * V) {
        const int channel = from + static_cast<int>(threadIdx.x % WARP) * V;
        if (from != first_channel && channel < channels)
            sum += inner(gather<X, V>(a + channel), gather<X, V>(b + channel));
    }
    return sum;
}

DEVICE u64 in_units(float value, float scale) {
    return __float2ll_rn(value * scale);
}
DEVICE u64 in_units(double value, double scale) {
    return __double2ll_rn(value * scale);
}

// Softmax and weighted sum so far: with w = exp(u - row_max), sum = sum of w * z, row_sum = sum of w.
template <class A, int V>
struct Running {
    A row_max = minus_infinity<A>(), row_sum = 0, sum[V] = {};

    // Makes `row_max` at least `value`.
    __device__ __forceinline__ void raise(A value) {
        if (value > row_max) {
            const A scale = exponential(row_max - value);
            row_sum *= scale;
#pragma unroll
            for (int v = 0; v < V; v++) sum[v] *= scale;
            row_max = value;
        }
    }

    // Adds UNROLL edges' scores, which become weights; those of minus infinity count nothing.
    template <class X>
    __device__ __forceinline__ void add(A (&score)[UNROLL], const A (&mask)[UNROLL],
                                        const Pack<X, V> (&z)[UNROLL]) {
        A part = 0;
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const A weight =
                score[u] == minus_infinity<A>() ? A(0) : exponential(score[u] - row_max);
            part += weight;
            score[u] = weight * mask[u];
        }
        row_sum += part;
#pragma unroll
        for (int v = 0; v < V; v++) {
            A column = 0;
#pragma unroll
            for (int u = 0; u < UNROLL; u++) column += score[u] * widen(z[u].at[v]);
            sum[v] += column;
        }
    }

    // Adds a batch of edges: scores of what is past the row's end count nothing.
    template <class X, int EXTRAS>
    __device__ __forceinline__ void add(const Batch& batch, A (&score)[UNROLL],
                                        const Mask<A, EXTRAS>& mask, int head,
                                        const Pack<X, V> (&z)[UNROLL]) {
        A best = minus_infinity<A>(), kept[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            score[u] = batch.valid(u) ? score[u] : minus_infinity<A>();
            best = larger(best, score[u]);
        }
        raise(best);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) kept[u] = mask.of(batch.at[u], head);
        add(score, kept, z);
    }

    // Adds up what the groups of `width` lanes have; all lanes call.
    __device__ __forceinline__ void join_groups(int width) {
        for (int other = width; other < WARP; other *= 2) {
            raise(__shfl_xor_sync(ALL, row_max, other));
            row_sum += __shfl_xor_sync(ALL, row_sum, other);
#pragma unroll
            for (int v = 0; v < V; v++) sum[v] += __shfl_xor_sync(ALL, sum[v], other);
        }
    }
};

// Where a destination's running softmax lives between blocks.
template <class A>
struct Sums {
    A *row_max, *row_sum, *out;
    i64 row_max_stride, row_sum_stride, out_stride;
};

#define SUMS                                                                           \
    Sum<X>*row_max, i64 row_max_stride, Sum<X>*row_sum, i64 row_sum_stride, Sum<X>*out, \
        i64 out_stride
#define GIVEN_SUMS                                            \
    Sums<Sum<X>> {                                            \
        row_max, row_sum, out, row_max_stride, row_sum_stride, out_stride \
    }

template <class A, int V, int LANES>
DEVICE Running<A, V> begin_row(const Sums<A>& sums, i64 row, const HeadPlace<LANES>& place,
                               int channels) {
    Running<A, V> run;
    if (place.group > 0) return run;
    run.row_max = sums.row_max[row * sums.row_max_stride + place.head];
    run.row_sum = sums.row_sum[row * sums.row_sum_stride + place.head];
    const Pack<A, V> pack =
        load<A, V>(sums.out + row * sums.out_stride + place.head * channels + place.channel);
#pragma unroll
    for (int v = 0; v < V; v++) run.sum[v] = pack.at[v];
    return run;
}

template <class A, int V, int LANES>
DEVICE void end_row(Running<A, V>& run, const Sums<A>& sums, i64 row, const HeadPlace<LANES>& place,
                    int channels, int keep) {
    run.join_groups(place.width);
    __syncwarp();  // all lanes of a head have read the old row_max and row_sum
    if (place.group > 0 || !place.inside) return;
    Pack<A, V> pack;
#pragma unroll
    for (int v = 0; v < V; v++) pack.at[v] = run.sum[v];
    store<A, V>(sums.out + row * sums.out_stride + place.head * channels + place.channel, pack);
    if (!keep || !place.leads()) return;
    sums.row_max[row * sums.row_max_stride + place.head] = run.row_max;
    sums.row_sum[row * sums.row_sum_stride + place.head] = run.row_sum;
}
