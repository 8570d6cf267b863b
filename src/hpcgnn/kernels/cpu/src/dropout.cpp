// Dropout of node features, optionally after a rectifier, and its gradient.
#include "../../random.h"
#include "schedule.h"

namespace HPCGNN_ISA {
namespace {

template <typename T, bool RELU>
void drop(Matrix x, Matrix out, const int64_t* ids, int64_t rows, int64_t width, double p,
          Stream stream, int64_t threads) {
    const uint64_t key = hpcgnn_stream(stream.seed, stream.epoch, stream.layer);
    const uint32_t threshold = hpcgnn_threshold(p);
    const T scale = static_cast<T>(1 / (1 - p));
    for_each_range(rows, threads, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++) {
            const T* from = row_of<T>(x, row);
            T* to = row_of<T>(out, row);
            const uint64_t state = hpcgnn_node_state(key, ids[row]);
            const uint32_t low = static_cast<uint32_t>(state);
            const uint32_t high = static_cast<uint32_t>(state >> 32);
#pragma omp simd
            for (int64_t column = 0; column < width; column++) {
                uint32_t bits;
                HPCGNN_RANDOM_BITS(bits, low, high, static_cast<uint32_t>(column));
                const T value = from[column];
                const bool kept = bits >= threshold && (!RELU || !(value <= 0));
                to[column] = kept ? value * scale : T(0);
            }
        }
    });
}

template <typename T>
void scale_where_positive(Matrix y, Matrix g, Matrix out, int64_t rows, int64_t width, double p,
                          int64_t threads) {
    const T scale = static_cast<T>(1 / (1 - p));
    for_each_range(rows, threads, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++) {
            const T *value = row_of<T>(y, row), *from = row_of<T>(g, row);
            T* to = row_of<T>(out, row);
#pragma omp simd
            for (int64_t column = 0; column < width; column++)
                to[column] = !(value[column] <= 0) ? from[column] * scale : T(0);
        }
    });
}

template <typename T>
void dropout(Matrix x, Matrix out, const int64_t* ids, int64_t rows, int64_t width, double p,
             Stream stream, bool relu, int64_t threads) {
    if (relu)
        drop<T, true>(x, out, ids, rows, width, p, stream, threads);
    else
        drop<T, false>(x, out, ids, rows, width, p, stream, threads);
}

}  // namespace
}  // namespace HPCGNN_ISA

HPCGNN_EXPORT(dropout)(int64_t is_double, Matrix x, Matrix out, const int64_t* ids, int64_t rows,
                       int64_t width, double p, Stream stream, int64_t relu, int64_t threads) {
    if (is_double)
        HPCGNN_ISA::dropout<double>(x, out, ids, rows, width, p, stream, relu, threads);
    else
        HPCGNN_ISA::dropout<float>(x, out, ids, rows, width, p, stream, relu, threads);
}

HPCGNN_EXPORT(relu_dropout_backward)(int64_t is_double, Matrix y, Matrix g, Matrix out, int64_t rows,
                                     int64_t width, double p, int64_t threads) {
    if (is_double)
        HPCGNN_ISA::scale_where_positive<double>(y, g, out, rows, width, p, threads);
    else
        HPCGNN_ISA::scale_where_positive<float>(y, g, out, rows, width, p, threads);
}
