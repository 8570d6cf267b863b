// The score of GATv2, <att, leaky(zl_j + zr_i + edge)>, of which every lane of a head sums its
// channels.
#pragma once

#include "gat.cuh"

#define GIVEN_EDGE_MATRIX                                        \
    EdgeMatrix<Sum<X>, EXTRAS> {                                 \
        edge_vector, edge_vector_stride, features, feature_width \
    }

// The term of an edge's features for each channel: features times a matrix, a row per feature.
template <class A, int EXTRAS>
struct EdgeMatrix {
    const A* rows;
    i64 stride;
    const float* features;
    int width;

    template <int V>
    __device__ __forceinline__ void add_to(Pack<A, V>& x, i64 edge, int column) const {
        if constexpr (EXTRAS == FEATURES) {
            for (int f = 0; f < width; f++) {
                const A factor = static_cast<A>(features[edge * width + f]);
                const Pack<A, V> row = gather<A, V>(rows + f * stride + column);
#pragma unroll
                for (int v = 0; v < V; v++) x.at[v] += factor * row.at[v];
            }
        }
    }
};

// zl + zr + edge, over the V channels from `column`.
template <class X, int V, int EXTRAS>
DEVICE Pack<Sum<X>, V> inside_of(const Pack<X, V>& left, const Pack<X, V>& right,
                                 const EdgeMatrix<Sum<X>, EXTRAS>& matrix, i64 edge, int column) {
    Pack<Sum<X>, V> x;
#pragma unroll
    for (int v = 0; v < V; v++) x.at[v] = widen(left, v) + widen(right, v);
    matrix.add_to(x, edge, column);
    return x;
}

template <class A, int V>
DEVICE A score_of(const Pack<A, V>& x, const Pack<A, V>& att, A slope) {
    A sum = 0;
#pragma unroll
    for (int v = 0; v < V; v++) sum += att.at[v] * leaky(x.at[v], slope);
    return sum;
}

// This lane's part of the score over the channels of a head, which begins at column `head`, of the
// other launches.
template <class X, int V, int EXTRAS>
DEVICE Sum<X> score_elsewhere(const X* left, const X* right, const Sum<X>* att,
                              const EdgeMatrix<Sum<X>, EXTRAS>& matrix, i64 edge, int head,
                              Sum<X> slope, int channels, int first_channel) {
    Sum<X> sum = 0;
    for (int from = 0; from < channels; from += WARP * V) {
        const int channel = from + static_cast<int>(threadIdx.x % WARP) * V;
        if (from == first_channel || channel >= channels) continue;
        const Pack<Sum<X>, V> x =
            inside_of(gather<X, V>(left + channel), gather<X, V>(right + channel), matrix, edge,
                      head + channel);
        sum += score_of(x, gather<Sum<X>, V>(att + head + channel), slope);
    }
    return sum;
}

// The values of an edge in backward once its two inner products are summed over the lanes.
template <class A>
struct EdgeGradient {
    A weight, score;  // times g: into grad zl; gradient of the score
};

template <class A>
DEVICE EdgeGradient<A> gradient_of(bool valid, A score, A dot, A lse, A d, A mask) {
    const A a = valid ? exponential(score - lse) : A(0);
    return EdgeGradient<A>{a * mask, a * (mask * dot - d)};
}
