// Narrows a block to ranges of its columns.
#include <algorithm>

#include "schedule.h"

// For each of `count` rows k (picked[i], or first + i if that is null) rows[i] receives its local
// row, begin[i] and end[i] its edges with columns in low .. high - 1, by binary search: columns
// ascend in each row.
HPCGNN_EXPORT(between)(const Edges* edges, int64_t low, int64_t high, const int32_t* picked,
                       int64_t count, int32_t* rows, int64_t* begin, int64_t* end) {
    const int32_t* columns = edges->columns;
#pragma omp parallel for schedule(static) num_threads(edges->threads)
    for (int64_t i = 0; i < count; i++) {
        const int64_t k = picked ? picked[i] : edges->first + i;
        const int32_t* first = columns + edges->begin[k];
        const int32_t* last = columns + edges->end[k];
        first = std::lower_bound(first, last, low);
        rows[i] = static_cast<int32_t>(HPCGNN_ISA::local_row(*edges, k));
        begin[i] = first - columns;
        end[i] = std::lower_bound(first, last, high) - columns;
    }
}

// Rows with edges in each range of `most` columns: for range r from rows[pointer[r]] on, counted
// from the block's first and ascending. If `rows` is null, only pointer (ranges + 1 numbers).
HPCGNN_EXPORT(range_rows)(const Edges* edges, int64_t most, int64_t* pointer, int32_t* rows) {
    const int64_t ranges = (edges->num_columns + most - 1) / most;
    const auto for_each_pair = [&](const auto& body) {
        for (int64_t k = edges->first; k < edges->last; k++) {
            int64_t stop = 0;  // the first column beyond the previous edge's range
            for (int64_t e = edges->begin[k]; e < edges->end[k]; e++) {
                const int64_t column = edges->columns[e] - edges->column_offset;
                if (column < stop) continue;
                body(column / most, static_cast<int32_t>(k));
                stop = (column / most + 1) * most;
            }
        }
    };
    if (!rows) {
        for (int64_t r = 0; r <= ranges; r++) pointer[r] = 0;
        for_each_pair([&](int64_t range, int32_t) { pointer[range + 1]++; });
        for (int64_t r = 0; r < ranges; r++) pointer[r + 1] += pointer[r];
        return;
    }
    HPCGNN_ISA::Buffer<int64_t> next(ranges);
    for (int64_t r = 0; r < ranges; r++) next[r] = pointer[r];
    for_each_pair([&](int64_t range, int32_t row) { rows[next[range]++] = row; });
}
