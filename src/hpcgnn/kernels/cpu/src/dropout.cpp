// Dropout of node features, optionally after a rectifier, and its gradient.
#include "../../random.h"
#include "schedule.h"

namespace HPCGNN_ISA {
namespace {

// Numbers that passed a rectifier and dropout, one bit each. LANES adjacent numbers use the same
// bit of LANES adjacent bytes, and 8 * LANES columns share these bytes.
const int64_t LANES = 16;

template <typename T>
void note_passed(const T* y, int64_t width, uint8_t* passed) {
    for (int64_t first = 0; first < width; first += 8 * LANES, passed += LANES) {
        uint8_t bytes[LANES] = {};
        for (int64_t bit = 0; bit < 8 && first + bit * LANES < width; bit++) {
            const T* from = y + first + bit * LANES;
            const int64_t count = width - first - bit * LANES;
            if (count >= LANES) {
#pragma omp simd
                for (int64_t i = 0; i < LANES; i++)
                    bytes[i] |= static_cast<uint8_t>(!(from[i] <= 0)) << bit;
            } else {
                for (int64_t i = 0; i < count; i++)
                    bytes[i] |= static_cast<uint8_t>(!(from[i] <= 0)) << bit;
            }
        }
        for (int64_t i = 0; i < LANES; i++) passed[i] = bytes[i];
    }
}

template <typename T>
void scale_passed(const uint8_t* passed, const T* g, T* out, int64_t width, T scale) {
    for (int64_t first = 0; first < width; first += 8 * LANES, passed += LANES)
        for (int64_t bit = 0; bit < 8 && first + bit * LANES < width; bit++) {
            const T* from = g + first + bit * LANES;
            T* to = out + first + bit * LANES;
            const int64_t count = width - first - bit * LANES;
            if (count >= LANES) {
#pragma omp simd
                for (int64_t i = 0; i < LANES; i++)
                    to[i] = passed[i] >> bit & 1 ? from[i] * scale : T(0);
            } else {
                for (int64_t i = 0; i < count; i++)
                    to[i] = passed[i] >> bit & 1 ? from[i] * scale : T(0);
            }
        }
}

template <typename T>
void rectify(const T* from, T* to, int64_t width) {
#pragma omp simd
    for (int64_t column = 0; column < width; column++)
        to[column] = !(from[column] <= 0) ? from[column] : T(0);
}

// A separate loop with nothing else in it: otherwise compilers don't vectorise it.
template <typename T>
void scale_kept(const T* from, T* to, int64_t width, uint64_t state, uint32_t threshold, T scale) {
    const uint32_t low = static_cast<uint32_t>(state), high = static_cast<uint32_t>(state >> 32);
#pragma omp simd
    for (int64_t column = 0; column < width; column++) {
        uint32_t bits;
        HPCGNN_RANDOM_BITS(bits, low, high, static_cast<uint32_t>(column));
        const T scaled = from[column] * scale;
        to[column] = bits >= threshold ? scaled : T(0);
    }
}

template <typename T, bool RELU>
void drop(Matrix x, Matrix out, const int64_t* ids, int64_t rows, int64_t width, double p,
          Stream stream, uint8_t* passed, int64_t passed_stride, int64_t threads) {
    const uint64_t key = hpcgnn_stream(stream.seed, stream.epoch, stream.layer);
    const uint32_t threshold = hpcgnn_threshold(p);
    const T scale = static_cast<T>(1 / (1 - p));
    for_each_range(rows, threads, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++) {
            const T* from = row_of<T>(x, row);
            T* to = row_of<T>(out, row);
            if (RELU && threshold == 0) {
                rectify(from, to, width);
                if (passed) note_passed(to, width, passed + row * passed_stride);
                continue;
            }
            const uint64_t state = hpcgnn_node_state(key, ids[row]);
            scale_kept(from, to, width, state, threshold, scale);
            if (RELU) rectify(to, to, width);
            if (passed) note_passed(to, width, passed + row * passed_stride);
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
void scale_where_passed(const uint8_t* passed, int64_t passed_stride, Matrix g, Matrix out,
                        int64_t rows, int64_t width, double p, int64_t threads) {
    const T scale = static_cast<T>(1 / (1 - p));
    for_each_range(rows, threads, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++)
            scale_passed(passed + row * passed_stride, row_of<T>(g, row), row_of<T>(out, row),
                         width, scale);
    });
}

template <typename T>
void dropout(Matrix x, Matrix out, const int64_t* ids, int64_t rows, int64_t width, double p,
             Stream stream, bool relu, uint8_t* passed, int64_t passed_stride, int64_t threads) {
    if (relu)
        drop<T, true>(x, out, ids, rows, width, p, stream, passed, passed_stride, threads);
    else
        drop<T, false>(x, out, ids, rows, width, p, stream, passed, passed_stride, threads);
}

}  // namespace
}  // namespace HPCGNN_ISA

HPCGNN_EXPORT(dropout)(int64_t is_double, Matrix x, Matrix out, const int64_t* ids, int64_t rows,
                       int64_t width, double p, Stream stream, int64_t relu, uint8_t* passed,
                       int64_t passed_stride, int64_t threads) {
    if (is_double)
        HPCGNN_ISA::dropout<double>(x, out, ids, rows, width, p, stream, relu, passed,
                                    passed_stride, threads);
    else
        HPCGNN_ISA::dropout<float>(x, out, ids, rows, width, p, stream, relu, passed,
                                   passed_stride, threads);
}

HPCGNN_EXPORT(passed_backward)(int64_t is_double, const uint8_t* passed, int64_t passed_stride,
                               Matrix g, Matrix out, int64_t rows, int64_t width, double p,
                               int64_t threads) {
    if (is_double)
        HPCGNN_ISA::scale_where_passed<double>(passed, passed_stride, g, out, rows, width, p,
                                               threads);
    else
        HPCGNN_ISA::scale_where_passed<float>(passed, passed_stride, g, out, rows, width, p,
                                              threads);
}

HPCGNN_EXPORT(relu_dropout_backward)(int64_t is_double, Matrix y, Matrix g, Matrix out, int64_t rows,
                                     int64_t width, double p, int64_t threads) {
    if (is_double)
        HPCGNN_ISA::scale_where_positive<double>(y, g, out, rows, width, p, threads);
    else
        HPCGNN_ISA::scale_where_positive<float>(y, g, out, rows, width, p, threads);
}
