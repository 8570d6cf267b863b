// Distribution of rows over threads, and prefetching of rows of x.
#pragma once

#include "buffer.h"

namespace HPCGNN_ISA {

// Calls body(piece, first, last) once per thread for consecutive ranges of rows with about as many
// edges each. The ranges depend on the requested number of threads, not on the actual number.
template <typename Body>
inline void for_each_piece(const Edges& edges, const Body& body) {
    const int64_t ROW_COST = 4;
    const int64_t rows = edges.last - edges.first;
    const int64_t pieces = edges.threads < rows ? edges.threads : rows;
    if (pieces <= 1) {
        if (rows > 0) body(0, edges.first, edges.last);
        return;
    }
    int64_t total = 0;
    for (int64_t k = edges.first; k < edges.last; k++)
        total += edges.end[k] - edges.begin[k] + ROW_COST;
    Buffer<int64_t> bounds;
    int64_t done = 0;
    for (int64_t k = edges.first; k < edges.last; k++) {
        while (bounds.size() < pieces && done * pieces >= bounds.size() * total) bounds.add(k);
        done += edges.end[k] - edges.begin[k] + ROW_COST;
    }
    while (bounds.size() <= pieces) bounds.add(edges.last);
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(pieces))
    for (int64_t p = 0; p < pieces; p++)
        if (bounds[p] < bounds[p + 1]) body(p, bounds[p], bounds[p + 1]);
}

// Calls body(first, last) for equal ranges of 0 .. count - 1.
template <typename Body>
inline void for_each_range(int64_t count, int64_t threads, const Body& body) {
    const int64_t pieces = threads < count ? threads : count;
    if (pieces <= 1) {
        if (count > 0) body(0, count);
        return;
    }
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(pieces))
    for (int64_t p = 0; p < pieces; p++) body(p * count / pieces, (p + 1) * count / pieces);
}

// Walks the columns of rows first .. last - 1 a few edges ahead of the loop that uses them.
class Lookahead {
  public:
    HPCGNN_INLINE Lookahead(const Edges& edges, int64_t first, int64_t last)
        : edges_(edges), row_(first), last_(last), edge_(edges.begin[first]) {}

    // The next column, or after the last edge the last column again.
    HPCGNN_INLINE int64_t next() {
        while (edge_ == edges_.end[row_]) {
            if (row_ + 1 == last_) return column_;
            edge_ = edges_.begin[++row_];
        }
        return column_ = edges_.columns[edge_++] - edges_.column_offset;
    }

    HPCGNN_INLINE void skip(int64_t count) {
        for (int64_t i = 0; i < count; i++) next();
    }

    HPCGNN_INLINE Lookahead& operator=(const Lookahead& other) {
        row_ = other.row_, edge_ = other.edge_, column_ = other.column_;
        return *this;
    }
    Lookahead(const Lookahead&) = default;

  private:
    const Edges& edges_;
    int64_t row_, last_, edge_, column_ = 0;
};

// The first row from this column on. Without rows there is no address to count from: null.
template <typename T>
HPCGNN_INLINE const T* from_column(const Matrix& matrix, int64_t column) {
    return matrix.data ? static_cast<const T*>(matrix.data) + column : nullptr;
}

// Calls body(from, to) for the edges of a row, at most LONGEST at a time.
template <typename Body>
HPCGNN_INLINE void for_each_part(int64_t begin, int64_t end, const Body& body) {
    for (int64_t from = begin; from < end; from += LONGEST)
        body(from, end - from < LONGEST ? end : from + LONGEST);
}

// sum = total of add(ahead, from, to, part) over a row of more than LONGEST edges. Separate, with
// its own copy of `ahead` and its own array, so that ordinary rows keep theirs in registers.
template <typename T, int N, int U, typename Add>
__attribute__((noinline)) Lookahead sum_of_parts(int64_t begin, int64_t end, Vec<T, N> (&sum)[U],
                                                 Lookahead ahead, const Add& add) {
    Vec<double, N> total[U] = {};
    for_each_part(begin, end, [&](int64_t from, int64_t to) {
        Vec<T, N> part[U] = {};
        add(ahead, from, to, part);
        for (int u = 0; u < U; u++) total[u] += convert<double, T, N>(part[u]);
    });
    for (int u = 0; u < U; u++) sum[u] = convert<T, double, N>(total[u]);
    return ahead;
}

// The number of edges ahead to prefetch rows of this many bytes.
constexpr int64_t edges_ahead(int64_t row_bytes) {
    const int64_t count = 16384 / (row_bytes + 1);
    return count < 4 ? 4 : count > 64 ? 64 : count;
}

HPCGNN_INLINE int64_t local_row(const Edges& edges, int64_t k) {
    return edges.rows ? edges.rows[k] : k;
}

}  // namespace HPCGNN_ISA
