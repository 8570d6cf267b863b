// Stable counting sorts, and sorts of short lists, that return the original place of each number.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

template <class Key, class Place>
void group(const Key* keys, int64_t count, int64_t num_keys, int64_t* starts, Place* order) {
    std::fill(starts, starts + num_keys + 1, 0);
    for (int64_t k = 0; k < count; k++) starts[keys[k] + 1]++;
    for (int64_t key = 0; key < num_keys; key++) starts[key + 1] += starts[key];
    for (int64_t k = 0; k < count; k++) order[starts[keys[k]]++] = static_cast<Place>(k);
    for (int64_t key = num_keys; key > 0; key--) starts[key] = starts[key - 1];
    starts[0] = 0;
}

template <class Column, class Place>
void sort_rows(const int64_t* begin, int64_t num_rows, Column* columns, Place* places) {
    std::vector<std::pair<Column, Place>> row;
    for (int64_t r = 0; r < num_rows; r++) {
        const int64_t first = begin[r], last = begin[r + 1];
        row.clear();
        for (int64_t e = first; e < last; e++)
            row.emplace_back(columns[e], static_cast<Place>(e));
        if (!std::is_sorted(row.begin(), row.end())) std::sort(row.begin(), row.end());
        for (int64_t e = first; e < last; e++) {
            columns[e] = row[e - first].first;
            places[e] = row[e - first].second;
        }
    }
}

}  // namespace

// keys [count] in 0 .. num_keys - 1 -> starts [num_keys + 1], order [count]; in 8 bytes each if
// `wide`, else in 4; starts always in 8.
EXPORT void hpcgnn_group_by(const void* keys, int64_t wide, int64_t count, int64_t num_keys,
                            int64_t* starts, void* order) {
    if (wide)
        group(static_cast<const int64_t*>(keys), count, num_keys, starts,
              static_cast<int64_t*>(order));
    else
        group(static_cast<const int32_t*>(keys), count, num_keys, starts,
              static_cast<int32_t*>(order));
}

// Sorts the columns of each row in place, stably; `places` receives where each column was.
EXPORT void hpcgnn_sort_columns(const int64_t* begin, int64_t num_rows, void* columns, void* places,
                                int64_t wide) {
    if (wide)
        sort_rows(begin, num_rows, static_cast<int64_t*>(columns), static_cast<int64_t*>(places));
    else
        sort_rows(begin, num_rows, static_cast<int32_t*>(columns), static_cast<int32_t*>(places));
}
