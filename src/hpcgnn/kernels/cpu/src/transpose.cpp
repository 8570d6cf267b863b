// Compresses a block by column instead of by row.
#include "schedule.h"

// `pointer` (int64, num_columns + 1) receives the begin of each column, `local_rows` and `order`
// (one per edge) the row and the edge of the block that each new edge comes from. Edges keep their
// order within a column.
HPCGNN_EXPORT(transpose)(const Edges* edges, int64_t* pointer, int32_t* local_rows, int64_t* order) {
    using HPCGNN_ISA::local_row;
    const int64_t columns = edges->num_columns;
    for (int64_t c = 0; c <= columns; c++) pointer[c] = 0;
    for (int64_t k = edges->first; k < edges->last; k++)
        for (int64_t e = edges->begin[k]; e < edges->end[k]; e++)
            pointer[edges->columns[e] - edges->column_offset + 1]++;
    for (int64_t c = 0; c < columns; c++) pointer[c + 1] += pointer[c];
    for (int64_t k = edges->first; k < edges->last; k++) {
        const int32_t row = static_cast<int32_t>(local_row(*edges, k));
        for (int64_t e = edges->begin[k]; e < edges->end[k]; e++) {
            const int64_t at = pointer[edges->columns[e] - edges->column_offset]++;
            local_rows[at] = row;
            order[at] = e;
        }
    }
    for (int64_t c = columns; c > 0; c--) pointer[c] = pointer[c - 1];
    pointer[0] = 0;
}
