// GATv2 attention: l = <att, leaky_relu(zl[j] + zr[i] (+ edge features times a matrix))>.
//
// The score needs all channels, so every chunk of edges takes two passes: for the scores and
// for their use; the second pass finds the gathered rows in the cache.
#pragma once

#include "gat.h"
#include "tiles.h"

namespace HPCGNN_ISA {

// FORWARD and BY_ROW: rows are destinations and zl is gathered. BY_COLUMN: rows are sources (the
// block is transposed), and zr and g are gathered.
enum Direction { FORWARD, BY_ROW, BY_COLUMN };

constexpr int CHUNK2 = 16;

template <typename T>
struct Chunk2 {
    int64_t lanes;           // P
    int64_t count;           // edges
    const int64_t* columns;  // count
    Matrix gathered;         // zl or, by column, zr
    const T* own;            // this row of zr or, by column, of zl
    Matrix gathered_g;       // by column
    const T* own_g;          // by row
    const T* att;            // heads x channels
    const float* features;   // of the first edge; null without edge term
    int64_t depth;           // edge features, 0 without edge term
    Matrix edge_matrix;      // depth x (heads x channels)
    T slope;
    T* score;         // count x P
    T* dot;           // count x P: <g[i], zl[j]>
    const T* weight;  // count x P: softmax times mask
    const T* dl;      // count x P: gradient of the score
    T* to;            // this row of the gradient of zr or, by column, of zl
    T* grad_att;      // by row: heads x channels
    Matrix grad_edge_matrix;
};

// The vectors zl[j] + zr[i] + edge term of one edge, for one head of a tile.
template <typename T, typename Tile>
HPCGNN_INLINE void add_edge_term(const Chunk2<T>& chunk, const Columns<Tile>& at, int64_t column,
                                 int64_t edge, int m, Vec<T, Tile::N> (&value)[Tile::U]) {
    for (int64_t d = 0; d < chunk.depth; d++) {
        const T feature = static_cast<T>(chunk.features[edge * chunk.depth + d]);
        const T* row = row_of<T>(chunk.edge_matrix, d) + column;
        for (int u = 0; u < Tile::U; u++)
            value[u] += feature * load<T, Tile::N>(row + at(m, u));
    }
}

// score += <att, leaky_relu(...)> and, backward, dot += <g, zl>, for one tile.
template <typename T, typename Tile, Direction DIRECTION>
struct Score {
    static void run(const Chunk2<T>& chunk, Lookahead& cursor, int64_t channels, int64_t lane,
                    int64_t column, int64_t last) {
        constexpr int N = Tile::N, U = Tile::U, M = Tile::M;
        const Columns<Tile> at(channels, last);
        const T* source = static_cast<const T*>(chunk.gathered.data) + column;
        const T* source_g = from_column<T>(chunk.gathered_g, column);
        const T* factor = DIRECTION == BY_ROW ? chunk.own_g : chunk.own;
        Vec<T, N> own[M][U], att[M][U], other[M][U];
        for (int m = 0; m < M; m++) {
            for (int u = 0; u < U; u++) {
                own[m][u] = load<T, N>(chunk.own + column + at(m, u));
                att[m][u] = load<T, N>(chunk.att + column + at(m, u));
                if (DIRECTION != FORWARD) other[m][u] = load<T, N>(factor + column + at(m, u));
            }
            att[m][U - 1] = without_first<T, N>(att[m][U - 1], at.shared());
            if (DIRECTION != FORWARD)
                other[m][U - 1] = without_first<T, N>(other[m][U - 1], at.shared());
        }
        Lookahead ahead = cursor;
        for (int64_t i = 0; i < chunk.count; i++) {
            const int64_t next = ahead.next(), here = chunk.columns[i];
            at.prefetch_tile(source + next * chunk.gathered.stride);
            if (DIRECTION == BY_COLUMN) at.prefetch_tile(source_g + next * chunk.gathered_g.stride);
            const T* from = source + here * chunk.gathered.stride;
            Vec<T, N> score[M] = {}, dot[M] = {};
#pragma GCC unroll 8  // otherwise the loop over edge features keeps these arrays in memory
            for (int m = 0; m < M; m++) {
                Vec<T, N> value[U];
                for (int u = 0; u < U; u++) {
                    const Vec<T, N> z = load<T, N>(from + at(m, u));
                    value[u] = z + own[m][u];
                    if (DIRECTION == BY_ROW) dot[m] += other[m][u] * z;
                    if (DIRECTION == BY_COLUMN)
                        dot[m] += other[m][u] * load<T, N>(source_g + here * chunk.gathered_g.stride +
                                                           at(m, u));
                }
                add_edge_term<T, Tile>(chunk, at, column, i, m, value);
                for (int u = 0; u < U; u++)
                    score[m] += att[m][u] * leaky<T, N>(value[u], chunk.slope);
            }
            add_sums<T, N, M>(chunk.score + i * chunk.lanes + lane, score);
            if (DIRECTION != FORWARD) add_sums<T, N, M>(chunk.dot + i * chunk.lanes + lane, dot);
        }
        cursor = ahead;
    }
};
template <typename T, Direction DIRECTION>
struct Score<T, void, DIRECTION> {
    using Chunk = Chunk2<T>;
    static constexpr int MAX = sizeof(T) == 4 ? MAX_VECTORS / 4 : 2;
};

}  // namespace HPCGNN_ISA
