// Rows of a message, gathered from those of nodes.
#include "schedule.h"

namespace HPCGNN_ISA {
namespace {

constexpr int64_t ROWS_AHEAD = 8;
constexpr int64_t MOST_FETCHED = 4096;  // bytes of a row; the hardware prefetches the rest

void fetch(const char* from, int64_t bytes) {
    const int64_t stop = bytes < MOST_FETCHED ? bytes : MOST_FETCHED;
    for (int64_t at = 0; at < stop; at += 64) __builtin_prefetch(from + at, 0, 2);
}

}  // namespace
}  // namespace HPCGNN_ISA

// out[i] = x[rows[i]] for i in 0 .. count - 1: rows of `bytes` bytes, strides in bytes too.
HPCGNN_EXPORT(pack)(const char* x, int64_t x_stride, const int32_t* rows, int64_t count, char* out,
                    int64_t out_stride, int64_t bytes, int64_t threads) {
    using namespace HPCGNN_ISA;
    for_each_range(count, threads, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const int64_t next = i + ROWS_AHEAD;
            if (next < last) fetch(x + rows[next] * x_stride, bytes);
            memcpy(out + i * out_stride, x + rows[i] * x_stride, bytes);
        }
    });
}
