// The decays of one chunk of gated linear attention, and the operands scaled by them.
//
// With G the sum of the log-decays from the chunk's first token, a pair of tokens i >= j decays by 2^(G_i - G_j) in each key
// channel. Products of matrices need that split into a factor of the query and one of the key:
//   frame   q 2^(G - r) and k 2^(r - G) with r = G in the middle of the chunk. Exact as long as neither leaves bfloat16's range.
//   edges   q 2^G and k 2^(e - G) with e = G at the end: at most 1 whatever the decays are, right for the state only.
// The pairs of a chunk whose decays are too strong for a frame come by binary splitting: a pair belongs to the one level at which
// i and j lie in two halves of one block; there G at the border between the halves serves as a reference, and both factors are at
// most 1.
#pragma once
#include "fla/terms.cuh"

namespace fla {

// 2^-150 is 0 in float32: from here on a decay is a reset, and differences of sums stay finite even for -inf.
constexpr float MIN_LOG2_DECAY = -150.f;
constexpr float MIN_LOG_DECAY = -104.f; // the same to base e, which every type has
// What a frame may reach on either side: leaves 2^24 of bfloat16's range for the numbers themselves.
constexpr float MAX_FRAME = 104.f;
// Smaller powers of 2 than 2^-MAX_FACTOR come out as 0.
constexpr float MAX_FACTOR = 125.f;

// Log-decays as stored to base 2, limited. NaN stays NaN.
__device__ __forceinline__ float log2_decay(float g) { return max_nan(g * LOG2E, MIN_LOG2_DECAY); }

__device__ __forceinline__ bool is_limited(float g) { return g * LOG2E < MIN_LOG2_DECAY; }

// Two neighbouring log-decays of a tile.
template <class G, int ROWS, int COLS>
__device__ __forceinline__ float2 load_gates(const PlainTile<G, ROWS, COLS>& tile, int row, int col) {
    if constexpr (sizeof(G) == 4) {
        return shared_load<float2>(tile.at(row, col));
    } else {
        u32 pair = shared_load<u32>(tile.at(row, col));
        return make_float2(Pair<G>::low(pair), Pair<G>::high(pair));
    }
}

// The same from global memory as they are stored, two of `cols` with VEC known to be aligned.
template <int VEC, class G> __device__ __forceinline__ typename Pair<G>::Type load_pair(const G* from, int cols) {
    if constexpr (VEC > 1)
        return *reinterpret_cast<const typename Pair<G>::Type*>(from);
    else if constexpr (sizeof(G) == 4)
        return make_float2(from[0], cols > 1 ? from[1] : 0.f);
    else
        return from[0].bits | (cols > 1 ? (u32)from[1].bits << 16 : 0);
}

// One thread's part of a chunk's decays: two neighbouring key channels over a strip of rows. THREADS threads cover C x K.
template <int C, int K, int THREADS> struct ChunkGates {
    static constexpr int STRIPS = 2 * THREADS / K, ROWS = C / STRIPS;
    typedef PlainTile<float, STRIPS, K> Totals;
    static_assert(STRIPS * K == 2 * THREADS && ROWS * STRIPS == C && (STRIPS == 1 || STRIPS % 2 == 0));

    int col, row;          // the first channel and the first row
    float sum[ROWS][2];    // sums of log-decays from the strip's first row on
    float before[2];       // ... of the strips before
    float middle[2];       // r, the sum at row C / 2 - 1
    float end[2];          // e, the sum over the chunk

    __device__ __forceinline__ explicit ChunkGates(int thread) : col(thread % (K / 2) * 2), row(thread / (K / 2) * ROWS) {}

    // Sums the strip. `load` gives the log-decays of one row as stored.
    template <class Load> __device__ __forceinline__ void sum_up(Load load) {
        float running[2] = {0.f, 0.f};
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            float2 g = load(row + i, col);
            sum[i][0] = running[0] += log2_decay(g.x);
            sum[i][1] = running[1] += log2_decay(g.y);
        }
    }

    // Shows the strip's total to the others, in shared memory.
    __device__ __forceinline__ void store_totals(const Totals& totals) const {
        shared_store(totals.at(row / ROWS, col), make_float2(sum[ROWS - 1][0], sum[ROWS - 1][1]));
    }

    // After a barrier: where the strip stands in the chunk.
    __device__ __forceinline__ void join(const Totals& totals) {
#pragma unroll
        for (int c = 0; c < 2; c++) before[c] = end[c] = 0.f, middle[c] = STRIPS == 1 ? sum[C / 2 - 1][c] : 0.f;
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            float2 total = shared_load<float2>(totals.at(s, col));
            float both[2] = {total.x, total.y};
#pragma unroll
            for (int c = 0; c < 2; c++) {
                if (s * ROWS < row) before[c] += both[c];
                if (STRIPS > 1 && s < STRIPS / 2) middle[c] += both[c];
                end[c] += both[c];
            }
        }
    }

    // Sums each channel from every row to the strip's end, in place, and adds to `beyond` what the later strips hold. `sync`
    // joins the threads; what they wrote to `totals` before is lost.
    template <class Sync>
    __device__ __forceinline__ void sum_to_end(float (&x)[ROWS][2], float2& beyond, const Totals& totals, Sync sync) const {
#pragma unroll
        for (int i = ROWS - 2; i >= 0; i--) x[i][0] += x[i + 1][0], x[i][1] += x[i + 1][1];
        sync();
        shared_store(totals.at(row / ROWS, col), make_float2(x[0][0], x[0][1]));
        sync();
        for (int s = row / ROWS + 1; s < STRIPS; s++) {
            float2 total = shared_load<float2>(totals.at(s, col));
            beyond.x += total.x, beyond.y += total.y;
        }
    }

    // Whether a frame would leave the range, before or after the middle: for queries and for keys. NaN counts as in range and so
    // stays visible.
    __device__ __forceinline__ bool queries_too_strong(const float (&middle)[2]) const {
        return before[0] + sum[0][0] - middle[0] > MAX_FRAME || before[1] + sum[0][1] - middle[1] > MAX_FRAME;
    }
    __device__ __forceinline__ bool keys_too_strong() const {
        return middle[0] - before[0] - sum[ROWS - 1][0] > MAX_FRAME || middle[1] - before[1] - sum[ROWS - 1][1] > MAX_FRAME;
    }
    __device__ __forceinline__ bool too_strong() const { return queries_too_strong(middle) || keys_too_strong(); }

    // Where the scaled queries and keys have the factor 1: in the middle, or at the edges.
    __device__ __forceinline__ void origins(bool at_start, bool at_end, float (&of_queries)[2], float (&of_keys)[2]) const {
#pragma unroll
        for (int c = 0; c < 2; c++) of_queries[c] = at_start ? 0.f : middle[c], of_keys[c] = at_end ? end[c] : middle[c];
    }

    // 2^(sign (G - origin)) of row `i` of the strip.
    __device__ __forceinline__ float2 decay(int i, float sign, const float (&origin)[2]) const {
        return make_float2(pow2(sign * (sum[i][0] + (before[0] - origin[0]))),
                           pow2(sign * (sum[i][1] + (before[1] - origin[1]))));
    }

    // x 2^(sign (G - origin)) factor, in place: from numbers of type T to operands.
    template <class T, class Tile>
    __device__ __forceinline__ void scale(const Tile& x, float sign, const float (&origin)[2], float factor) const {
        constexpr int BATCH = ROWS < 8 ? ROWS : 8; // loads under way at once: none passes a store
        typedef typename Pair<T>::Type Loaded;
        u32 top = x.at(row, col), operand_top = x.operand_at(row, col);
#pragma unroll
        for (int first = 0; first < ROWS; first += BATCH) {
            Loaded pairs[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) pairs[i] = shared_load<Loaded>(x.step(top, first + i, 0));
            if constexpr (sizeof(T) == 4) __syncwarp(); // a thread's operands take the place of its neighbours' numbers
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                float2 by = decay(first + i, sign, origin);
                x.store(x.step(operand_top, first + i, 0), Pair<T>::low(pairs[i]) * by.x * factor,
                        Pair<T>::high(pairs[i]) * by.y * factor);
            }
        }
    }

    // Visits the rows at one level of binary splitting, where blocks of 2 * half rows have keys in their first half and queries
    // in the second one: visit(row of the strip, whether it is a query, its decays to or from the border between the halves).
    template <class Visit> __device__ __forceinline__ void visit_level(int half, const Totals& totals, Visit visit) const {
        float border[2] = {0.f, 0.f}; // relative to the strip's start; blocks larger than a strip have it outside
        if (half >= ROWS) {
            int last = (row & ~(2 * half - 1)) + half; // the rows before it are the first half
            for (int s = 0; s < STRIPS; s++) {
                float2 total = shared_load<float2>(totals.at(s, col));
                float sign = s * ROWS >= row && s * ROWS < last ? 1.f : s * ROWS < row && s * ROWS >= last ? -1.f : 0.f;
                border[0] += sign * total.x, border[1] += sign * total.y;
            }
        }
#pragma unroll
        for (int i = ROWS - 1; i >= 0; i--) {
            int place = (row + i) & (2 * half - 1);
            if (place == half - 1) border[0] = sum[i][0], border[1] = sum[i][1];
            if (place < half) visit(i, false, make_float2(pow2(border[0] - sum[i][0]), pow2(border[1] - sum[i][1])));
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int place = (row + i) & (2 * half - 1);
            if (place == half - 1) border[0] = sum[i][0], border[1] = sum[i][1];
            if (place >= half) visit(i, true, make_float2(pow2(sum[i][0] - border[0]), pow2(sum[i][1] - border[1])));
        }
    }

    // The operand of that level: keys and queries with their decays.
    template <class T, class Tile>
    __device__ __forceinline__ void split(const Tile& x, const Tile& q, const Tile& k, int half, float scale,
                                          const Totals& totals) const {
        typedef typename Pair<T>::Type Loaded;
        // Loads before any store, which none of them passes, as registers allow.
        constexpr int FIRST = ROWS * sizeof(Loaded) <= 128 ? ROWS : 0;
        u32 top = x.operand_at(row, col), query_top = q.at(row, col), key_top = k.at(row, col);
        auto load = [&](int i, bool query) { return shared_load<Loaded>(x.step(query ? query_top : key_top, i, 0)); };
        Loaded pairs[ROWS];
#pragma unroll
        for (int i = 0; i < FIRST; i++) pairs[i] = load(i, (row + i) & half);
        visit_level(half, totals, [&](int i, bool query, float2 decay) {
            Loaded pair = i < FIRST ? pairs[i] : load(i, query);
            float factor = query ? scale : 1.f;
            x.store(x.step(top, i, 0), Pair<T>::low(pair) * decay.x * factor, Pair<T>::high(pair) * decay.y * factor);
        });
    }
};

} // namespace fla
