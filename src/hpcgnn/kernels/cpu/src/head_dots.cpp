// Inner products of two matrices' rows, head by head, the second less a vector.
#include "schedule.h"

namespace HPCGNN_ISA {
namespace {

template <typename T>
void head_dots(Matrix a, Matrix b, const T* minus, Matrix out, int64_t num_heads, int64_t channels,
               int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        const T* left = row_of<T>(a, row);
        const T* right = row_of<T>(b, row);
        for (int64_t h = 0; h < num_heads; h++, left += channels, right += channels) {
            T dot = 0;
            if (minus) {
                const T* less = minus + h * channels;
#pragma omp simd reduction(+ : dot)
                for (int64_t c = 0; c < channels; c++) dot += left[c] * (right[c] - less[c]);
            } else {
#pragma omp simd reduction(+ : dot)
                for (int64_t c = 0; c < channels; c++) dot += left[c] * right[c];
            }
            row_of<T>(out, row)[h] = dot;
        }
    }
}

}  // namespace
}  // namespace HPCGNN_ISA

// out[row, h] = <a[row, h, :], b[row, h, :] - minus[h, :]> for rows 0 .. count - 1.
HPCGNN_EXPORT(head_dots)(int64_t is_double, Matrix a, Matrix b, const void* minus, Matrix out,
                         int64_t count, int64_t num_heads, int64_t channels, int64_t threads) {
    HPCGNN_ISA::for_each_range(count, threads, [&](int64_t first, int64_t last) {
        if (is_double)
            HPCGNN_ISA::head_dots(a, b, static_cast<const double*>(minus), out, num_heads, channels,
                                  first, last);
        else
            HPCGNN_ISA::head_dots(a, b, static_cast<const float*>(minus), out, num_heads, channels,
                                  first, last);
    });
}
