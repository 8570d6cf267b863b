// Reverse Cuthill-McKee order (Cuthill and McKee 1969; George 1971).
#include <algorithm>
#include <cstdint>
#include <vector>

// Nodes [n] in breadth-first order from each of `seeds` in turn, neighbours by ascending degree,
// those of equal degree in their order; all reversed. Neighbours are stored row after row.
extern "C" __attribute__((visibility("default"))) void hpcgnn_reverse_cuthill_mckee(
    int64_t num_nodes, const int64_t* begin, const int32_t* neighbour, const int32_t* degree,
    const int32_t* seeds, int32_t* order) {
    std::vector<char> found(num_nodes, 0);
    int64_t next = 0, last = 0;
    for (int64_t k = 0; k < num_nodes; k++) {
        if (found[seeds[k]]) continue;
        found[seeds[k]] = 1;
        order[last++] = seeds[k];
        for (; next < last; next++) {
            const int64_t first = last;
            for (int64_t e = begin[order[next]]; e < begin[order[next] + 1]; e++) {
                const int32_t node = neighbour[e];
                if (found[node]) continue;
                found[node] = 1;
                order[last++] = node;
            }
            std::stable_sort(order + first, order + last,
                             [=](int32_t a, int32_t b) { return degree[a] < degree[b]; });
        }
    }
    std::reverse(order, order + num_nodes);
}
