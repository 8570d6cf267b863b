// Loops over the channels of heads, which are kept in registers during a chunk of edges.
#pragma once

#include "schedule.h"

namespace HPCGNN_ISA {

// Runs over a chunk of a row's edges for one tile. `lane` is its first head within the group, `column`
// its first column, `last` the first column of a head's last vector, relative to the head's first.
template <typename Chunk>
using TileFunction = void (*)(const Chunk&, Lookahead&, int64_t channels, int64_t lane,
                              int64_t column, int64_t last);

template <typename Chunk>
struct TileJob {
    TileFunction<Chunk> run;
    int64_t lane, column, last;
};

// A tile of U vectors of N lanes for each of M heads; EXACT: a head has exactly U * N channels. Double
// precision and heads wider than a tile take one head at a time, for fewer loops to compile.
template <int N_, int U_, int M_, bool EXACT_>
struct HeadTile {
    static constexpr int N = N_, U = U_, M = M_;
    static constexpr bool EXACT = EXACT_;
};

// The columns of a tile's vectors, relative to its first.
template <typename Tile>
struct Columns {
    int64_t width, last;
    HPCGNN_INLINE Columns(int64_t channels, int64_t last_)
        : width(Tile::EXACT ? Tile::U * Tile::N : channels),
          last(Tile::EXACT ? (Tile::U - 1) * Tile::N : last_) {}
    HPCGNN_INLINE int64_t operator()(int m, int u) const {
        return m * width + (u == Tile::U - 1 ? last : u * Tile::N);
    }
    // Columns that a head's last vector shares with the one before.
    HPCGNN_INLINE int64_t shared() const { return (Tile::U - 1) * Tile::N - last; }

    template <typename T>
    HPCGNN_INLINE void prefetch_tile(const T* first) const {
        constexpr int HEAD = Tile::U * Tile::N * sizeof(T);
        if (Tile::EXACT)
            prefetch<Tile::M * HEAD>(first);
        else
            for (int m = 0; m < Tile::M; m++) prefetch<HEAD>(first + m * width);
    }
};

// to[m] += sum of the lanes of values[m].
template <typename T, int N, int M>
HPCGNN_INLINE void add_sums(T* to, const Vec<T, N> (&values)[M]) {
    if constexpr (M % 4 == 0) {
        for (int m = 0; m < M; m += 4) {
            const Vec<T, 4> four =
                sum4<T, N>(values[m], values[m + 1], values[m + 2], values[m + 3]);
            store<T, 4>(to + m, load<T, 4>(to + m) + four);
        }
    } else {
        for (int m = 0; m < M; m++) to[m] += sum<T, N>(values[m]);
    }
}

// Chooses jobs that cover all heads of a group. `Loop<T, Tile>::run` is the tile's function,
// Loop<T, void>::MAX the number of vectors it can keep in registers, Chunk its input.
template <typename T, template <typename, typename> class Loop>
class TileJobs {
  public:
    using Chunk = typename Loop<T, void>::Chunk;

    TileJobs(Heads heads, int64_t channels) : heads_(heads), channels_(channels) {
        for_each_tile<LANES<T>, MAX>(channels, [&](auto tile) {
            using Tile = decltype(tile);
            int64_t lane = 0;
            if (tile.column == 0 && (Tile::U - 1) * Tile::N + Tile::N >= channels) {
                lane = add<Tile, 8>(lane, tile);
                lane = add<Tile, 4>(lane, tile);
                lane = add<Tile, 2>(lane, tile);
            }
            add<Tile, 1>(lane, tile);
        });
    }

    // Runs every job on a chunk; each prefetches the same columns.
    HPCGNN_INLINE void run(const Chunk& chunk, Lookahead& ahead) const {
        const Lookahead start = ahead;
        for (int64_t i = 0; i < jobs_.size(); i++) {
            ahead = start;
            const TileJob<Chunk>& job = jobs_[i];
            job.run(chunk, ahead, channels_, job.lane, job.column, job.last);
        }
    }

  private:
    static constexpr int MAX = Loop<T, void>::MAX;

    template <typename Tile, int M>
    int64_t add(int64_t lane, Tile tile) {
        if constexpr (M == 1 || (sizeof(T) == 4 && M * Tile::U <= MAX)) {
            TileFunction<Chunk> run = &Loop<T, HeadTile<Tile::N, Tile::U, M, false>>::run;
            if constexpr (M > 1)
                if (channels_ == Tile::U * Tile::N)
                    run = &Loop<T, HeadTile<Tile::N, Tile::U, M, true>>::run;
            for (; lane + M <= heads_.count; lane += M) {
                const int64_t column = (heads_.first + lane) * channels_ + tile.column;
                jobs_.add({run, lane, column, tile.last});
            }
        }
        return lane;
    }

    Heads heads_;
    int64_t channels_;
    Buffer<TileJob<Chunk>> jobs_;
};

// The inputs of the weighted sum of a chunk of a row's edges.
template <typename T>
struct SumChunk {
    int64_t lanes;           // P
    int64_t count;           // edges
    const int64_t* columns;  // count
    const T* weight;         // count x P
    const T* scale;          // P factors for the content of `to`
    Matrix gathered;         // z
    T* to;                   // this row of out
    const void* start;       // a row of z that replaces the content of `to`; null: none
};

// to = scale * to + sum over edges of weight * z[column], for one tile; z is stored as S.
template <typename T, typename S, typename Tile, bool FETCH>
struct Add {
    static void run(const SumChunk<T>& chunk, Lookahead& cursor, int64_t channels, int64_t lane,
                    int64_t column, int64_t last) {
        constexpr int N = Tile::N, U = Tile::U, M = Tile::M;
        const Columns<Tile> at(channels, last);
        const S* source = static_cast<const S*>(chunk.gathered.data) + column;
        const int64_t stride = chunk.gathered.stride, lanes = chunk.lanes;
        T* to = chunk.to + column;
        Lookahead ahead = cursor;
        Vec<T, N> sum[M][U] = {};
        for (int64_t i = 0; i < chunk.count; i++) {
            if (FETCH) at.prefetch_tile(source + ahead.next() * stride);
            const S* from = source + chunk.columns[i] * stride;
            const T* weight = chunk.weight + i * lanes + lane;
            for (int m = 0; m < M; m++)
                for (int u = 0; u < U; u++)
                    sum[m][u] += weight[m] * load_as<T, N, S>(from + at(m, u));
        }
        cursor = ahead;
        const S* start = static_cast<const S*>(chunk.start);
        for (int m = 0; m < M; m++) {
            const T scale = chunk.scale[lane + m];
            if (start)
                for (int u = 0; u < U; u++)
                    sum[m][u] += load_as<T, N, S>(start + column + at(m, u)) * scale;
            else
                for (int u = 0; u < U; u++) sum[m][u] += load<T, N>(to + at(m, u)) * scale;
            for (int u = 0; u < U; u++) store<T, N>(to + at(m, u), sum[m][u]);
        }
    }
};
template <typename T, typename S, bool FETCH>
struct Add<T, S, void, FETCH> {
    using Chunk = SumChunk<T>;
    static constexpr int MAX = sizeof(T) == 4 ? MAX_VECTORS : 4;
};

}  // namespace HPCGNN_ISA
