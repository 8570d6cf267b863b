// GATv2 attention, backward: one pass over the destinations' rows, one over the sources'.
#include "gatv2.h"

namespace HPCGNN_ISA {
namespace {

struct Backward2 {
    Matrix zl, zr, g, lse, d, grad, edge_matrix, grad_att, grad_edge_matrix;
    const void* att;
    int64_t num_heads, channels;
    int64_t grad_att_step;          // elements between two threads' partial sums
    int64_t grad_edge_matrix_step;  // likewise
    double slope;
    const Dropout* dropout;
};

// With q = leaky'(zl[j] + zr[i] + edge term), per column: to += att * sum of dl q, by column also the
// sum of weight g[i]; by row grad_att += dl leaky(...), grad_edge_matrix += dl att q features.
template <typename T, typename Tile, Direction DIRECTION>
struct GradientScatter {
    static void run(const Chunk2<T>& chunk, Lookahead&, int64_t channels, int64_t lane,
                    int64_t column, int64_t last) {
        constexpr int N = Tile::N, U = Tile::U, M = Tile::M;
        const Columns<Tile> at(channels, last);
        const T* source = static_cast<const T*>(chunk.gathered.data) + column;
        const T* source_g = static_cast<const T*>(chunk.gathered_g.data) + column;
        const T *att = chunk.att + column, *own = chunk.own + column;
        Vec<T, N> slopes[M][U] = {}, extra[M][U];
        for (int m = 0; m < M; m++)
            for (int u = 0; u < U; u++)
                extra[m][u] = DIRECTION == BY_ROW ? load<T, N>(chunk.grad_att + column + at(m, u))
                                                  : Vec<T, N>{};
        for (int64_t i = 0; i < chunk.count; i++) {
            const int64_t here = chunk.columns[i];
            const T* from = source + here * chunk.gathered.stride;
#pragma GCC unroll 8  // see Score
            for (int m = 0; m < M; m++) {
                const T dl = chunk.dl[i * chunk.lanes + lane + m];
                const T weight = chunk.weight[i * chunk.lanes + lane + m];
                Vec<T, N> value[U];
                for (int u = 0; u < U; u++)
                    value[u] = load<T, N>(from + at(m, u)) + load<T, N>(own + at(m, u));
                add_edge_term<T, Tile>(chunk, at, column, i, m, value);
                Vec<T, N> step[U];
                for (int u = 0; u < U; u++) {
                    const Vec<T, N> one = Vec<T, N>{} + T(1), slope = Vec<T, N>{} + chunk.slope;
                    step[u] = dl * (value[u] > 0 ? one : slope);
                    slopes[m][u] += step[u];
                    if (DIRECTION == BY_ROW)
                        extra[m][u] += step[u] * value[u];
                    else
                        extra[m][u] += weight * load<T, N>(source_g +
                                                           here * chunk.gathered_g.stride + at(m, u));
                }
                if (DIRECTION == BY_ROW) add_to_edge_matrix(chunk, at, column, i, m, step);
            }
        }
        T* to = chunk.to + column;
        for (int m = 0; m < M; m++) {
            Vec<T, N> grad[U];
            for (int u = 0; u < U; u++) {
                grad[u] = load<T, N>(to + at(m, u)) + load<T, N>(att + at(m, u)) * slopes[m][u];
                if (DIRECTION == BY_COLUMN) grad[u] += extra[m][u];
            }
            for (int u = 0; u < U; u++) store<T, N>(to + at(m, u), grad[u]);
            if (DIRECTION == BY_ROW)
                for (int u = 0; u < U; u++)
                    store<T, N>(chunk.grad_att + column + at(m, u), extra[m][u]);
        }
    }

    static HPCGNN_INLINE void add_to_edge_matrix(const Chunk2<T>& chunk, const Columns<Tile>& at,
                                                 int64_t column, int64_t edge, int m,
                                                 const Vec<T, Tile::N> (&step)[Tile::U]) {
        constexpr int N = Tile::N, U = Tile::U;
        if (!chunk.grad_edge_matrix.data) return;
        for (int64_t d = 0; d < chunk.depth; d++) {
            const T feature = static_cast<T>(chunk.features[edge * chunk.depth + d]);
            T* to = row_of<T>(chunk.grad_edge_matrix, d) + column;
            Vec<T, N> sums[U];
            for (int u = 0; u < U; u++)
                sums[u] = load<T, N>(to + at(m, u)) +
                          feature * step[u] * load<T, N>(chunk.att + column + at(m, u));
            for (int u = 0; u < U; u++) store<T, N>(to + at(m, u), sums[u]);
        }
    }
};
template <typename T, Direction DIRECTION>
struct GradientScatter<T, void, DIRECTION> {
    using Chunk = Chunk2<T>;
    static constexpr int MAX = sizeof(T) == 4 ? MAX_VECTORS / 4 : 2;
};

template <Direction DIRECTION>
struct Loops {
    template <typename T, typename Tile>
    using Scores = Score<T, Tile, DIRECTION>;
    template <typename T, typename Tile>
    using GradientScatters = GradientScatter<T, Tile, DIRECTION>;
};

template <typename T, int P, Direction DIRECTION>
void attend2_backward(const Edges& edges, const Backward2& b, Heads heads, int64_t piece,
                      int64_t first, int64_t last) {
    constexpr int V = FLAT<T, P>;
    const EdgeMask mask(b.dropout);
    const TileJobs<T, Loops<DIRECTION>::template Scores> score_jobs(heads, b.channels);
    const TileJobs<T, Loops<DIRECTION>::template GradientScatters> scatter_jobs(heads, b.channels);
    alignas(64) T score[CHUNK2 * P + V], dot[CHUNK2 * P + V], weight[CHUNK2 * P + V];
    int64_t columns[CHUNK2];
    Chunk2<T> chunk{};
    chunk.lanes = P, chunk.columns = columns, chunk.score = score, chunk.dot = dot;
    chunk.weight = weight, chunk.dl = score;
    chunk.gathered = DIRECTION == BY_ROW ? b.zl : b.zr;
    chunk.gathered_g = b.g, chunk.edge_matrix = b.edge_matrix;
    chunk.att = static_cast<const T*>(b.att), chunk.slope = static_cast<T>(b.slope);
    chunk.depth = b.edge_matrix.data ? edges.feature_width : 0;
    const int64_t low = heads.first * b.channels, high = low + heads.count * b.channels;
    LongSum<T> long_row(1, low, high), long_att(1, low, high), long_matrix(chunk.depth, low, high);
    if (b.grad_att.data) chunk.grad_att = row_of<T>(long_att.part(), 0);
    if (b.grad_edge_matrix.data) chunk.grad_edge_matrix = long_matrix.part();
    Lookahead ahead(edges, first, last);
    ahead.skip(edges_ahead(b.num_heads * b.channels * sizeof(T) * (DIRECTION == BY_ROW ? 1 : 2)));
    for (int64_t k = first; k < last; k++) {
        if (edges.begin[k] == edges.end[k]) continue;
        const int64_t row = local_row(edges, k);
        chunk.own = row_of<T>(DIRECTION == BY_ROW ? b.zr : b.zl, row);
        chunk.own_g = DIRECTION == BY_ROW ? row_of<T>(b.g, row) : nullptr;
        const bool is_long = edges.end[k] - edges.begin[k] > LONGEST;
        chunk.to = is_long ? row_of<T>(long_row.part(), 0) : row_of<T>(b.grad, row);
        for_each_part(edges.begin[k], edges.end[k], [&](int64_t begin, int64_t end) {
            for (int64_t from = begin; from < end; from += CHUNK2) {
                const int64_t left = end - from;
                const int count = left < CHUNK2 ? static_cast<int>(left) : CHUNK2;
                for (int i = 0; i < count; i++) {
                    columns[i] = edges.columns[from + i] - edges.column_offset;
                    const int64_t target = DIRECTION == BY_ROW ? row : columns[i];
                    store<T, P>(score + i * P, -load_heads<T, P>(b.lse, target, heads));
                    store<T, P>(dot + i * P, Vec<T, P>{});
                }
                chunk.count = count;
                chunk.features = edges.features + from * chunk.depth;
                score_jobs.run(chunk, ahead);
                for (int at = 0; at < count * P; at += V) {
                    const Vec<T, V> a = exponential<T, V>(load<T, V>(score + at));
                    store<T, V>(score + at, a);
                    store<T, V>(weight + at, a);
                }
                mask.apply<T, P>(weight, columns, count, row, heads.first);
                for (int i = 0; i < count; i++) {
                    const int at = i * P;
                    const int64_t target = DIRECTION == BY_ROW ? row : columns[i];
                    const Vec<T, P> d = load_heads<T, P>(b.d, target, heads);
                    store<T, P>(score + at, load<T, P>(weight + at) * load<T, P>(dot + at) -
                                                load<T, P>(score + at) * d);
                }
                Lookahead unused = ahead;
                scatter_jobs.run(chunk, unused);
                long_att.count(count);
                long_matrix.count(count);
            }
            if (is_long) long_row.settle();
        });
        if (is_long) long_row.add_to(Matrix{row_of<T>(b.grad, row), 0});
    }
    if (b.grad_att.data) long_att.add_to(part_of<T>(b.grad_att, piece * b.grad_att_step));
    if (b.grad_edge_matrix.data)
        long_matrix.add_to(part_of<T>(b.grad_edge_matrix, piece * b.grad_edge_matrix_step));
}

template <typename T, Direction DIRECTION>
void gatv2_backward(const Edges& edges, const Backward2& b) {
    for_each_piece(edges, [&](int64_t piece, int64_t first, int64_t last) {
        for_each_group(b.num_heads, [&](Heads heads, auto padded) {
            constexpr int P = decltype(padded)::LANES;
            attend2_backward<T, P, DIRECTION>(edges, b, heads, piece, first, last);
        });
    });
}

}  // namespace
}  // namespace HPCGNN_ISA

// The gradients of zr (`grad`), of att and of the edge matrix; rows are destinations.
HPCGNN_EXPORT(gatv2_backward_rows)(const Edges* edges, int64_t is_double, Matrix zl, Matrix zr,
                                        Matrix g, Matrix lse, Matrix d, Matrix grad,
                                        Matrix edge_matrix, Matrix grad_att,
                                        Matrix grad_edge_matrix, const void* att,
                                        int64_t num_heads, int64_t channels, int64_t grad_att_step,
                                        int64_t grad_edge_matrix_step, double slope,
                                        const Dropout* dropout) {
    using namespace HPCGNN_ISA;
    const Backward2 b{zl, zr, g, lse, d, grad, edge_matrix, grad_att, grad_edge_matrix, att,
                      num_heads, channels, grad_att_step, grad_edge_matrix_step, slope, dropout};
    if (is_double)
        gatv2_backward<double, BY_ROW>(*edges, b);
    else
        gatv2_backward<float, BY_ROW>(*edges, b);
}

// The gradient of zl (`grad`); rows are sources, columns destinations.
HPCGNN_EXPORT(gatv2_backward_columns)(const Edges* edges, int64_t is_double, Matrix zl,
                                           Matrix zr, Matrix g, Matrix lse, Matrix d, Matrix grad,
                                           Matrix edge_matrix, const void* att, int64_t num_heads,
                                           int64_t channels, double slope, const Dropout* dropout) {
    using namespace HPCGNN_ISA;
    const Matrix none{nullptr, 0};
    const Backward2 b{zl, zr, g, lse, d, grad, edge_matrix, none, none, att,
                      num_heads, channels, 0, 0, slope, dropout};
    if (is_double)
        gatv2_backward<double, BY_COLUMN>(*edges, b);
    else
        gatv2_backward<float, BY_COLUMN>(*edges, b);
}
