// A minimum vertex cover of a bipartite graph (König 1931), from a maximum matching (Hopcroft and Karp
// 1973). The cover is the same for every maximum matching.
#include <cstdint>
#include <vector>

namespace {

struct Bipartite {
    int64_t num_rows, num_columns;
    const int64_t* begin;  // num_rows + 1
    const int32_t* column;
};

constexpr int32_t NONE = -1;

class Matching {
  public:
    explicit Matching(const Bipartite& graph)
        : graph_(graph), of_row_(graph.num_rows, NONE), of_column_(graph.num_columns, NONE),
          depth_(graph.num_rows), next_(graph.begin, graph.begin + graph.num_rows) {
        for (int64_t row = 0; row < graph.num_rows; row++)
            for (int64_t e = graph.begin[row]; e < graph.begin[row + 1]; e++)
                if (of_column_[graph.column[e]] == NONE) {
                    match(static_cast<int32_t>(row), graph.column[e]);
                    break;
                }
    }

    // Makes the matching maximum.
    void complete() {
        while (reaches_free_column()) {
            for (int64_t row = 0; row < graph_.num_rows; row++) next_[row] = graph_.begin[row];
            for (int64_t row = 0; row < graph_.num_rows; row++)
                if (of_row_[row] == NONE) augment(static_cast<int32_t>(row));
        }
    }

    // Whether an alternating path leads to the row from an unmatched one; after `complete`.
    bool is_reached(int64_t row) const { return depth_[row] != NONE; }

  private:
    void match(int32_t row, int32_t column) {
        of_row_[row] = column;
        of_column_[column] = row;
    }

    // Layers of rows by the length of alternating paths from unmatched rows.
    bool reaches_free_column() {
        std::vector<int32_t> here, there;
        for (int64_t row = 0; row < graph_.num_rows; row++) {
            depth_[row] = of_row_[row] == NONE ? 0 : NONE;
            if (of_row_[row] == NONE) here.push_back(static_cast<int32_t>(row));
        }
        bool found = false;
        for (int32_t depth = 1; !here.empty() && !found; depth++, here.swap(there)) {
            there.clear();
            for (const int32_t row : here)
                for (int64_t e = graph_.begin[row]; e < graph_.begin[row + 1]; e++) {
                    const int32_t partner = of_column_[graph_.column[e]];
                    if (partner == NONE) {
                        found = true;
                    } else if (depth_[partner] == NONE) {
                        depth_[partner] = depth;
                        there.push_back(partner);
                    }
                }
        }
        return found;
    }

    // Matches the row along a shortest path, if one is left; not recursive, since paths are long.
    void augment(int32_t first) {
        path_.assign(1, first);
        while (!path_.empty()) {
            const int32_t row = path_.back();
            if (next_[row] == graph_.begin[row + 1]) {
                path_.pop_back();
                if (!path_.empty()) next_[path_.back()]++;
                continue;
            }
            const int32_t partner = of_column_[graph_.column[next_[row]]];
            if (partner == NONE) {
                for (const int32_t on_path : path_) match(on_path, graph_.column[next_[on_path]++]);
                return;
            }
            if (depth_[partner] == depth_[row] + 1)
                path_.push_back(partner);
            else
                next_[row]++;
        }
    }

    const Bipartite& graph_;
    std::vector<int32_t> of_row_, of_column_, depth_, path_;
    std::vector<int64_t> next_;  // next edge to look at
};

}  // namespace

// Sets the flags (0 or 1) of the rows and columns that are in the cover.
extern "C" __attribute__((visibility("default"))) void hpcgnn_vertex_cover(
    int64_t num_rows, int64_t num_columns, const int64_t* begin, const int32_t* column,
    uint8_t* rows, uint8_t* columns) {
    const Bipartite graph{num_rows, num_columns, begin, column};
    Matching matching(graph);
    matching.complete();
    for (int64_t k = 0; k < num_columns; k++) columns[k] = 0;
    for (int64_t row = 0; row < num_rows; row++) {
        rows[row] = !matching.is_reached(row);
        if (!rows[row])
            for (int64_t e = begin[row]; e < begin[row + 1]; e++) columns[column[e]] = 1;
    }
}
