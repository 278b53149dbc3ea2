// What the kernels of softmax attention's backward pass share. Each block has a tile of keys, and adds its part of the gradients
// of the queries that see them to float32 sums in global memory, in turns: those of a tile of queries begin with its lowest, or
// highest, keys.
#pragma once
#include "fla/attention.cuh"
#include "fla/shared_tile.cuh"

namespace fla {

struct AttentionBackward {
    AttentionShape shape;
    TensorView q, k, v, grad_output, grad_k, grad_v;
    const float* logs;    // of a query's denominator, to base 2; infinite for those that see nothing or do not exist
    const float* deltas;  // the product of its output and that one's gradient
    float* sums;          // of its gradient
    int* turns;           // of a tile of queries, or of a part of it
    int lines, together;  // sequences times heads of k and v; how many of these take turns
    int key_tiles;        // of the longest sequence
    int descending;       // of so many lines, the first ones, the highest keys come first
};

// What is stored for queries lies in blocks of so many of a sequence and head, so that no tile has those of two sequences.
constexpr int QUERY_BLOCK = 128;

// The place of a query of a sequence and head among those stored.
__device__ __forceinline__ i64 stored_query(const AttentionShape& shape, const Sequence& sequence, int head, int query) {
    int first = shape.queries.offsets ? (int)(sequence.start / QUERY_BLOCK) + sequence.index
                                      : sequence.index * ((sequence.length + QUERY_BLOCK - 1) / QUERY_BLOCK);
    return ((i64)(first + query / QUERY_BLOCK) * shape.heads + head) * QUERY_BLOCK + query % QUERY_BLOCK;
}

// Tiles of KEYS keys and of QUERIES queries.
template <int KEYS, int QUERIES> struct BackwardTiles {
    static_assert(QUERY_BLOCK % QUERIES == 0);

    // The tiles of queries that see some of a tile of keys.
    static __device__ __forceinline__ Range seeing(const AttentionShape& shape, const AttentionSequence& sequence, Range keys) {
        Range queries = sequence.seeing(shape, keys);
        return {queries.first / QUERIES, queries.end > queries.first ? (queries.end + QUERIES - 1) / QUERIES : 0};
    }
    // The tiles of keys that see, in this sense, a tile of queries.
    static __device__ __forceinline__ Range seen(const AttentionShape& shape, const AttentionSequence& sequence, int tile) {
        int all = (sequence.keys.length + KEYS - 1) / KEYS, first = tile * QUERIES + sequence.ahead; // position among the keys
        return {shape.window ? max(0, first + 1 - shape.window) / KEYS : 0,
                shape.causal ? min(all, max(0, first + QUERIES + KEYS - 1) / KEYS) : all};
    }
};

// A block's part of a call: a tile of keys, and for each head of queries that reads them the tiles that see them. Where it waits
// for another block's turn, that one has a lower number.
template <int KEYS, int QUERIES_> struct BackwardWork {
    static constexpr int QUERIES = QUERIES_;
    typedef BackwardTiles<KEYS, QUERIES> Tiles;

    const AttentionBackward& p;
    int line, tile; // of keys
    AttentionSequence sequence;
    int kv_head;
    Range keys, tiles; // of queries

    __device__ __forceinline__ BackwardWork(const AttentionBackward& p)
        : p(p), line(place(p).first), tile(place(p).end), sequence(p.shape, line / (p.shape.heads / p.shape.group)),
          kv_head(line % (p.shape.heads / p.shape.group)),
          keys{tile * KEYS, min(sequence.keys.length, tile * KEYS + KEYS)}, tiles{0, 0} {
        if (keys.first < keys.end) tiles = Tiles::seeing(p.shape, sequence, keys);
    }
    __device__ __forceinline__ int steps() const { return max(0, tiles.end - tiles.first) * p.shape.group; }
    // A head's first tile of queries, and the one after another, or the next head's first one. Under a causal mask, blocks that
    // begin together with the highest keys first meet nowhere: each begins with the first tile that sees its keys.
    __device__ __forceinline__ int first() const { return is_descending() ? tiles.first : tiles.end - 1; }
    __device__ __forceinline__ int next(int tile) const {
        if (is_descending()) return tile + 1 < tiles.end ? tile + 1 : tiles.first;
        return tile > tiles.first ? tile - 1 : tiles.end - 1;
    }
    // Visits (step, head, tile of queries).
    template <class Visit> __device__ __forceinline__ void each(Visit visit) const {
        int steps = this->steps(), head = kv_head * p.shape.group, tile = first();
        for (int n = 0; n < steps; n++) {
            visit(n, head, tile);
            tile = next(tile);
            if (tile == first()) head++;
        }
    }
    // Whether all of a tile of queries see all of the keys.
    __device__ __forceinline__ bool all_seen(int tile) const {
        int first = tile * QUERIES, end = min(first + QUERIES, sequence.queries.length);
        Range all = sequence.seen_by_all(p.shape, {first, end});
        return keys.first >= all.first && keys.first + KEYS <= all.end;
    }
    // The queries that see a key, counted from `first` on.
    __device__ __forceinline__ Range seeing(int key, int first) const {
        if (key >= sequence.keys.length) return {0, 0};
        Range queries = sequence.seeing(p.shape, {key, key + 1});
        return {queries.first - first, queries.end - first};
    }
    // Whether rows of the next sequence follow in the tile of keys, or in one of queries. They weigh 0, which would not hide what
    // is not finite.
    __device__ __forceinline__ bool mixes_keys() const {
        return p.shape.keys.offsets && keys.first + KEYS > sequence.keys.length;
    }
    __device__ __forceinline__ bool mixes_queries(int tile) const {
        return p.shape.queries.offsets && tile * QUERIES + QUERIES > sequence.queries.length;
    }
    // The place of a tile of queries among those stored.
    __device__ __forceinline__ i64 stored(int head, int tile) const {
        return stored_query(p.shape, sequence.queries, head, tile * QUERIES);
    }
    // The block's turn to add to the sums of a tile of queries.
    __device__ __forceinline__ int turn(int queries) const {
        Range seen = Tiles::seen(p.shape, sequence, queries);
        return is_descending() ? seen.end - 1 - tile : tile - seen.first;
    }

private:
    __device__ __forceinline__ bool is_descending() const { return line < p.descending; }
    // The block's line and tile.
    static __device__ __forceinline__ Range place(const AttentionBackward& p) {
        int whole = p.key_tiles * p.together, block = blockIdx.x, first = block / whole * p.together;
        int width = min(p.together, p.lines - first), tile = block % whole / width;
        return {first + block % whole % width, first < p.descending ? p.key_tiles - 1 - tile : tile};
    }
};

// Writes a warp's 16 rows of sums, from `row` and `col` of a tile on, to there and on to global memory, those that exist.
template <class Tile, class T, int BLOCKS>
__device__ __forceinline__ void store_rows(const Tile& tile, int row, int col, float (&sums)[BLOCKS][4], float factor,
                                           const Rows<T>& target, int rows, int size, int lane) {
#pragma unroll
    for (int j = 0; j < BLOCKS; j++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            Tile::store(tile.at(row + half * 8 + lane / 4, col + j * 8 + lane % 4 * 2), sums[j][2 * half] * factor,
                        sums[j][2 * half + 1] * factor);
    __syncwarp();
    constexpr int DOWN = 32 / BLOCKS;
    int piece = col + lane % BLOCKS * 8;
#pragma unroll
    for (int down = lane / BLOCKS; down < 16; down += DOWN)
        if (row + down < rows && piece < size)
            *reinterpret_cast<uint4*>(target[row + down] + piece) = shared_load<uint4>(tile.at(row + down, piece));
}

} // namespace fla
