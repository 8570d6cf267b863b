// Code shared by all attention kernels: head and channels of a lane, dropout, running softmax.
#pragma once

#include "common.cuh"

#define WIDE (2 * WARP)

// A warp processes one row of the block, and `side` heads at a time (blockIdx.y counts these):
// `lanes` adjacent lanes have V channels each of a head, and groups of lanes * side lanes take
// the row's edges in turn; all of these are powers of two, given by their logarithms. LANES is
// `lanes` where the compiler knows it, else 0. A head of more than WARP * V channels (LANES is then
// WIDE) takes several launches, distinguished by `first_channel`; the last one, with `keep`, writes
// their common results.
//
// A group takes UNROLL edges at a time. Values per edge and head (score, exponential, mask)
// are computed by one lane of SHARING, which owns OWN edges, and passed to the others.
template <int LANES>
struct HeadPlace {
    static constexpr int SHARING = LANES >= UNROLL ? UNROLL : 1, OWN = UNROLL / SHARING;

    int head, channel, group, groups, width, given;
    bool inside;  // there is a head and a channel for this lane
    bool first;   // among the lanes with the same edges of an existing head, this one writes

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
        first = head < heads && (lane & (lanes() - 1)) < SHARING;
        head = min(head, heads - 1);
        channel = min(channel, channels - V);
    }

    __device__ __forceinline__ int lanes_log() const {
        constexpr int KNOWN = LANES < WARP ? LANES : WARP;
        if constexpr (LANES == 0) return given;
        return KNOWN == 4 ? 2 : KNOWN == 8 ? 3 : KNOWN == 16 ? 4 : 5;
    }

    __device__ __forceinline__ int lanes() const {
        return 1 << lanes_log();
    }

    // Whether this lane is its head's first.
    __device__ __forceinline__ bool leads() const {
        return (threadIdx.x & (lanes() - 1)) == 0;
    }

    // The index among UNROLL edges of this lane's i-th own edge.
    __device__ __forceinline__ int own(int i) const {
        return (threadIdx.x & (SHARING - 1)) + i * SHARING;
    }

    // Sums over the lanes of a head, to each lane those of its own edges; all lanes call.
    template <class A>
    __device__ __forceinline__ void add_lanes_of(A (&values)[UNROLL], A (&sums)[OWN]) const {
        // With each step half as many values are left, those of half of the lanes.
#pragma unroll
        for (int step = 1; step < SHARING; step *= 2)
#pragma unroll
            for (int i = 0; i < UNROLL / (2 * step); i++) {
                const bool odd = threadIdx.x & step;
                const A kept = odd ? values[2 * i + 1] : values[2 * i];
                const A given = odd ? values[2 * i] : values[2 * i + 1];
                values[i] = kept + __shfl_xor_sync(ALL, given, step);
            }
#pragma unroll
        for (int other = SHARING; other < lanes(); other *= 2)
#pragma unroll
            for (int i = 0; i < OWN; i++) values[i] += __shfl_xor_sync(ALL, values[i], other);
#pragma unroll
        for (int i = 0; i < OWN; i++) sums[i] = values[i];
    }

    // Distributes the lanes' values of their own edges to all of them; all lanes call.
    template <class A>
    __device__ __forceinline__ void hand_round(const A (&own)[OWN], A (&all)[UNROLL]) const {
        const int from = static_cast<int>(threadIdx.x % WARP) & ~(SHARING - 1);
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            all[u] = SHARING == 1 ? own[u % OWN] : __shfl_sync(ALL, own[0], from + u);
    }
};

// The UNROLL edges of a row that a group of lanes takes together, from `base` in the row. Past the
// row's end its last edge is repeated, and is not `valid`.
template <int LANES>
struct Batch {
    static constexpr int OWN = HeadPlace<LANES>::OWN;

    const HeadPlace<LANES>& place;
    i64 begin;
    int first, step, count;
    int at[UNROLL], own_at[OWN];  // the edges' columns

    // `ahead`: columns of this lane's own edges, which become those of the batch after this one:
    // they are loaded while the wide loads of this one are in flight.
    __device__ __forceinline__ Batch(const Row& row, const HeadPlace<LANES>& place, int base,
                                     const int (&ahead)[OWN])
        : place(place), begin(row.begin), first(base + place.group), step(place.groups),
          count(row.count) {
#pragma unroll
        for (int i = 0; i < OWN; i++) own_at[i] = ahead[i];
        place.hand_round(own_at, at);
    }

    __device__ __forceinline__ i64 edge(int u) const {
        return begin + min(first + u * step, count - 1);
    }

    __device__ __forceinline__ bool valid(int u) const {
        return first + u * step < count;
    }

    // This lane's own edge number i.
    __device__ __forceinline__ i64 own_edge(int i) const {
        return edge(place.own(i));
    }

    __device__ __forceinline__ bool own_valid(int i) const {
        return valid(place.own(i));
    }

    // The values at `from` of the edges' columns.
    template <class X, int V>
    __device__ __forceinline__ void read(Pack<X, V> (&value)[UNROLL], const X* from,
                                         i64 stride) const {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) value[u] = gather<X, V>(from + at[u] * stride);
    }

    // The same for this lane's own edges.
    template <class A>
    __device__ __forceinline__ void read(A (&value)[OWN], const A* from, i64 stride) const {
#pragma unroll
        for (int i = 0; i < OWN; i++) value[i] = __ldg(from + own_at[i] * stride);
    }
};

// Columns of this lane's own edges in the batch at `base`. The last of the row's edges, where there
// are `self_loops`, is the row's edge to itself and not in the block.
template <int LANES>
DEVICE void look_ahead(const Edges& edges, const Row& row, const HeadPlace<LANES>& place, int base,
                       int (&ahead)[HeadPlace<LANES>::OWN], int self_loops = 0) {
#pragma unroll
    for (int i = 0; i < HeadPlace<LANES>::OWN; i++) {
        const int edge = min(base + place.group + place.own(i) * place.groups, row.count - 1);
        ahead[i] = edge < row.count - self_loops ? column_of(edges, row.begin + edge)
                                            : static_cast<int>(row.local);
    }
}

// Kernels are instantiated three times: for plain attention, for attention whose edges
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
// least `threshold`. One end of the edge has the complement of the stream's key, so that i -> j and
// j -> i differ. Off if row_ids is null.
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

// The score added by an edge's features.
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
    for (int v = 0; v < V; v++) sum += widen(a, v) * widen(b, v);
    return sum;
}

// This lane's part of the inner product over the channels of the other launches.
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

    // Adds a batch of edges with the scores of this lane's own; those of minus infinity, and of what
    // is past the row's end, have weight 0. Until `join` each lane has its own edges' row_sum.
    template <class X, int LANES, int EXTRAS>
    __device__ __forceinline__ void add(const Batch<LANES>& batch,
                                        A (&score)[HeadPlace<LANES>::OWN],
                                        const Mask<A, EXTRAS>& mask,
                                        const Pack<X, V> (&z)[UNROLL]) {
        typedef HeadPlace<LANES> Place;
        A best = minus_infinity<A>(), part = 0, weight[UNROLL];
#pragma unroll
        for (int i = 0; i < Place::OWN; i++) {
            score[i] = batch.own_valid(i) ? score[i] : minus_infinity<A>();
            best = larger(best, score[i]);
        }
#pragma unroll
        for (int other = 1; other < Place::SHARING; other *= 2)
            best = larger(best, __shfl_xor_sync(ALL, best, other));
        raise(best);
#pragma unroll
        for (int i = 0; i < Place::OWN; i++) {
            const A own = score[i] == minus_infinity<A>() ? A(0) : exponential(score[i] - row_max);
            part += own;
            score[i] = own * mask.of(batch.own_at[i], batch.place.head);
        }
        row_sum += part;
        batch.place.hand_round(score, weight);
#pragma unroll
        for (int v = 0; v < V; v++) {
            A column = 0;
#pragma unroll
            for (int u = 0; u < UNROLL; u++) column += weight[u] * widen(z[u], v);
            sum[v] += column;
        }
    }

    // Sums the lanes' results of their own edges, and then those of groups; all lanes call.
    template <int LANES>
    __device__ __forceinline__ void join(const HeadPlace<LANES>& place) {
        row_sum = add_lanes(row_sum, 1, HeadPlace<LANES>::SHARING);
        for (int other = place.width; other < WARP; other *= 2) {
            raise(__shfl_xor_sync(ALL, row_max, other));
            row_sum += __shfl_xor_sync(ALL, row_sum, other);
#pragma unroll
            for (int v = 0; v < V; v++) sum[v] += __shfl_xor_sync(ALL, sum[v], other);
        }
    }
};

// The place of a destination's running softmax between blocks.
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

// Without `adds` it starts over no edges.
template <class A, int V, int LANES>
DEVICE Running<A, V> begin_row(const Sums<A>& sums, i64 row, const HeadPlace<LANES>& place,
                               int channels, int adds = 1) {
    Running<A, V> run;
    if (place.group > 0 || !adds) return run;
    run.row_max = sums.row_max[row * sums.row_max_stride + place.head];
    if (place.own(0) == 0) run.row_sum = sums.row_sum[row * sums.row_sum_stride + place.head];
    const Pack<A, V> pack =
        load<A, V>(sums.out + row * sums.out_stride + place.head * channels + place.channel);
#pragma unroll
    for (int v = 0; v < V; v++) run.sum[v] = pack.at[v];
    return run;
}

template <class A, int V, int LANES>
DEVICE void end_row(Running<A, V>& run, const Sums<A>& sums, i64 row, const HeadPlace<LANES>& place,
                    int channels, int keep) {
    run.join(place);
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
