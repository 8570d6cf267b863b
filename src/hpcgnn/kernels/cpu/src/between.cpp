// Narrows a block to a range of its columns.
#include <algorithm>

#include "schedule.h"

// `begin` and `end` (int64, one per row) become the edges whose column is in low .. high - 1, by
// binary search: columns ascend in each row.
HPCGNN_EXPORT(between)(const Edges* edges, int64_t low, int64_t high, int64_t* begin, int64_t* end) {
    const int32_t* columns = edges->columns;
#pragma omp parallel for schedule(static) num_threads(edges->threads)
    for (int64_t k = edges->first; k < edges->last; k++) {
        const int32_t* first = columns + edges->begin[k];
        const int32_t* last = columns + edges->end[k];
        first = std::lower_bound(first, last, low);
        begin[k] = first - columns;
        end[k] = std::lower_bound(first, last, high) - columns;
    }
}
