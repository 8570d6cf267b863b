// The score of GATv2, <att, leaky(zl_j + zr_i)>, of which every lane of a head adds up its channels.
#pragma once

#include "attention.cuh"

template <class X, int V>
DEVICE Sum<X> score_of(const Pack<X, V>& left, const Pack<X, V>& right, const Pack<Sum<X>, V>& att,
                       Sum<X> slope) {
    Sum<X> sum = 0;
#pragma unroll
    for (int v = 0; v < V; v++)
        sum += att.at[v] * leaky(widen(left.at[v]) + widen(right.at[v]), slope);
    return sum;
}

// This lane's part of the score over the channels that other launches add up.
template <class X, int V>
DEVICE Sum<X> score_elsewhere(const X* left, const X* right, const Sum<X>* att, Sum<X> slope,
                              int channels, int first_channel) {
    Sum<X> sum = 0;
    for (int from = 0; from < channels; from += WARP * V) {
        const int channel = from + static_cast<int>(threadIdx.x % WARP) * V;
        if (from != first_channel && channel < channels)
            sum += score_of(gather<X, V>(left + channel), gather<X, V>(right + channel),
                            gather<Sum<X>, V>(att + channel), slope);
    }
    return sum;
}

// What backward knows of an edge once its two inner products are summed over the lanes.
template <class A>
struct EdgeGradient {
    A weight, score;  // times g: into grad zl; gradient of the score
};

template <class A>
DEVICE EdgeGradient<A> gradient_of(bool valid, A score, A dot, A lse, A d, A mask) {
    const A a = valid ? exponential(score - lse) : A(0);
    return EdgeGradient<A>{a * mask, a * (mask * dot - d)};
}

template <class A>
DEVICE A slope_at(A x, A slope) {
    return x > 0 ? A(1) : slope;
}
