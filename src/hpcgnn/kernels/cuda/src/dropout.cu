// Dropout of node features, optionally after a rectifier, and its gradient.
#include "common.cuh"

// A block of threads processes THREADS >> lanes_log rows, with 2^lanes_log lanes each.
struct Patch {
    i64 row;
    int column, step;
};

template <int V>
DEVICE Patch patch_of(int lanes_log) {
    const i64 row = (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) >> lanes_log;
    const int lane = threadIdx.x & ((1 << lanes_log) - 1);
    return Patch{row, lane * V, V << lanes_log};
}

// First x is divided by `divisor`, which has a value per row and `channels` columns, and `bias`
// is added; either may be null.
template <class X, class O, int V>
KERNEL(8)
dropout(const X* x, i64 x_stride, O* out, i64 out_stride, const i64* ids, i64 rows, int width,
        const Sum<X>* divisor, i64 divisor_stride, int channels, const Sum<X>* bias, u64 key,
        u32 threshold, Sum<X> scale, int relu, unsigned char* passed, int lanes_log) {
    typedef Sum<X> A;
    const Patch patch = patch_of<V>(lanes_log);
    if (patch.row >= rows) return;
    const u64 state = threshold ? hpcgnn_node_state(key, ids[patch.row]) : 0;
    for (int column = patch.column; column < width; column += patch.step) {
        const Pack<X, V> value = load<X, V>(x + patch.row * x_stride + column);
        Pack<O, V> result;
        unsigned bits = 0;
#pragma unroll
        for (int v = 0; v < V; v++) {
            A from = widen(value, v);
            if (divisor) from /= __ldg(divisor + patch.row * divisor_stride + (column + v) / channels);
            if (bias) from += __ldg(bias + column + v);
            const bool kept = threshold == 0 || hpcgnn_random_bits(state, column + v) >= threshold;
            const bool passes = kept && !(relu && from <= 0);
            narrow(passes ? from * scale : A(0), result.at[v]);
            bits |= static_cast<unsigned>(passes) << v;
        }
        store<O, V>(out + patch.row * out_stride + column, result);
        if (passed) passed[(patch.row * width + column) / V] = static_cast<unsigned char>(bits);
    }
}

// out = g / (1 - p) where `passed`, as `dropout` writes it: a byte for V columns, a bit for each.
template <class X, int V>
KERNEL(8)
passed_backward(const unsigned char* passed, const X* g, i64 g_stride, X* out, i64 out_stride,
                i64 rows, int width, Sum<X> scale, int lanes_log) {
    typedef Sum<X> A;
    const Patch patch = patch_of<V>(lanes_log);
    if (patch.row >= rows) return;
    for (int column = patch.column; column < width; column += patch.step) {
        const unsigned bits = __ldg(passed + (patch.row * width + column) / V);
        Pack<X, V> grad = load<X, V>(g + patch.row * g_stride + column);
#pragma unroll
        for (int v = 0; v < V; v++)
            narrow(bits >> v & 1 ? widen(grad, v) * scale : A(0), grad.at[v]);
        store<X, V>(out + patch.row * out_stride + column, grad);
    }
}

// out = g / (1 - p) where y, the output of dropout after a rectifier, is above 0.
template <class X, int V>
KERNEL(8)
relu_dropout_backward(const X* y, i64 y_stride, const X* g, i64 g_stride, X* out, i64 out_stride,
                      i64 rows, int width, Sum<X> scale, int lanes_log) {
    typedef Sum<X> A;
    const Patch patch = patch_of<V>(lanes_log);
    if (patch.row >= rows) return;
    for (int column = patch.column; column < width; column += patch.step) {
        const Pack<X, V> value = load<X, V>(y + patch.row * y_stride + column);
        Pack<X, V> grad = load<X, V>(g + patch.row * g_stride + column);
#pragma unroll
        for (int v = 0; v < V; v++)
            narrow(widen(value, v) <= 0 ? A(0) : widen(grad, v) * scale, grad.at[v]);
        store<X, V>(out + patch.row * out_stride + column, grad);
    }
}
