// What all attention kernels share: which head and channels a lane has, dropout, running softmax.
#pragma once

#include "common.cuh"

#define WIDE (2 * WARP)

// A warp works on one row of the block, and on `side` heads at a time (blockIdx.y counts these):
// `lanes` lanes side by side on V channels of each head, and WARP / (lanes * side) groups of lanes
// that take the row's edges in turn. LANES is `lanes` where the compiler knows it, else 0. A head
// of more than WARP * V channels (LANES is then WIDE) takes several launches, told apart by
// `first_channel`; the last one, with `keep`, writes what all of them share.
template <int LANES>
struct HeadPlace {
    int head, channel, group, groups, width, given;
    bool inside;  // there is a head and a channel for this lane

    __device__ __forceinline__ HeadPlace(int heads, int channels, int given_lanes, int side,
                                    int first_channel, int V)
        : given(given_lanes) {
        const int lane = threadIdx.x % WARP;
        width = lanes() * side;
        groups = WARP / width;
        group = lane / width;
        head = static_cast<int>(blockIdx.y) * side + lane / lanes() % side;
        channel = first_channel + lane % lanes() * V;
        inside = head < heads && channel < channels;
        head = min(head, heads - 1);
        channel = min(channel, channels - V);
    }

    __device__ __forceinline__ int lanes() const {
        return LANES == 0 ? given : LANES < WARP ? LANES : WARP;
    }

    // Whether this lane is its head's first.
    __device__ __forceinline__ bool leads() const {
        return threadIdx.x % lanes() == 0;
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

// Kernels are made with and without EXTRAS, dropout and edge features: without is leaner.
#define DROPOUT                                                                          \
    const i64 *row_ids, const i64 *column_ids, double p, u64 seed, u64 epoch, u64 layer, \
        int reversed
#define GIVEN_DROPOUT                                        \
    Dropout {                                                \
        row_ids, column_ids, p, seed, epoch, layer, reversed \
    }

// Attention dropout by original ids; `reversed`: rows are sources and columns destinations. Off
// where row_ids is null.
struct Dropout {
    const i64* row_ids;
    const i64* column_ids;
    double p;
    u64 seed, epoch, layer;
    int reversed;
};

// Factors of one row's weights: 0 or 1 / (1 - p); 1 without dropout.
template <class A, bool EXTRAS>
class Mask {
  public:
    __device__ __forceinline__ Mask(const Dropout& dropout, i64 row)
        : ids_(dropout.row_ids ? dropout.column_ids : nullptr), reversed_(dropout.reversed) {
        if (!EXTRAS || !ids_) return;
        key_ = hpcgnn_stream(dropout.seed, dropout.epoch, dropout.layer);
        threshold_ = hpcgnn_threshold(dropout.p);
        scale_ = static_cast<A>(1 / (1 - dropout.p));
        const u64 id = dropout.row_ids[row];
        row_ = reversed_ ? hpcgnn_node_state(key_, id) : hpcgnn_destination_state(key_, id);
    }

    __device__ __forceinline__ A of(i64 column, int head) const {
        if (!EXTRAS || !ids_) return A(1);
        const u64 id = __ldg(ids_ + column);
        const u64 state =
            row_ + (reversed_ ? hpcgnn_destination_state(key_, id) : hpcgnn_node_state(key_, id));
        return hpcgnn_random_bits(state, head) >= threshold_ ? scale_ : A(0);
    }

  private:
    const i64* ids_;
    int reversed_;
    u64 key_ = 0, row_ = 0;
    u32 threshold_ = 0;
    A scale_ = 1;
};

#define EDGE_TERM \
    const Sum<X>*edge_vector, i64 edge_vector_stride, const float *features, int feature_width
#define GIVEN_EDGE_TERM                                          \
    EdgeTerm<Sum<X>, EXTRAS> {                                   \
        edge_vector, edge_vector_stride, features, feature_width \
    }

// The score that an edge's own features add; 0 where edge_vector is null.
template <class A, bool EXTRAS>
struct EdgeTerm {
    const A* vector;
    i64 stride;
    const float* features;
    int width;

    __device__ __forceinline__ A of(i64 edge, int head) const {
        A term = 0;
        if (EXTRAS && vector)
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
