// Rotary positions: pairs of a head's first features turn by an angle that grows with the token's position.
// ELEMENT: of the tensors. VECTOR: neighbours that a thread reads at once. INTERLEAVED: whether pair i is (2 i, 2 i + 1),
// otherwise (i, i + pairs).
#pragma once
#include "fla/tensor.cuh"
#include "fla/vector.cuh"

namespace fla {

typedef ELEMENT Element;

constexpr int MAX_PAIRS = 128;

struct Rotary {
    u64 turns[MAX_PAIRS]; // how far a pair turns from one position to the next, in 2^-64 of a full turn
    int pairs;            // a multiple of VECTOR; 0 for no rotation
    float direction;      // 1, or -1 to turn back
};

// Cosine and sine of a pair's angle. The product leaves out whole turns, so a far position loses nothing.
__device__ __forceinline__ float2 rotation(const Rotary& rotary, i64 position, int pair) {
    u64 angle = (u64)position * rotary.turns[pair];
    float sin, cos;
    sincospif((float)(i64)angle * 0x1p-63f, &sin, &cos);
    return make_float2(cos, sin * rotary.direction);
}

// Those of some tokens, in shared memory.
template <int COUNT> struct Rotations {
    __align__(16) float cos[COUNT];
    __align__(16) float sin[COUNT];

    __device__ __forceinline__ void set(int i, float2 rotation) { cos[i] = rotation.x, sin[i] = rotation.y; }
};

// A head's features, in units of two vectors: those that turn, then those that do not.
struct RotaryHead {
    int pairs, size;

    __device__ __forceinline__ int units() const { return pairs / VECTOR + (size - 2 * pairs + 2 * VECTOR - 1) / (2 * VECTOR); }

    // Writes a unit to a place that may be its own, turned by the rotations from `first` on.
    template <int COUNT>
    __device__ __forceinline__ void move(const Element* from, Element* to, int unit, const Rotations<COUNT>& rotations,
                                         int first) const {
        int pair = unit * VECTOR;
        bool turns = pair < pairs;
        int left = turns && !INTERLEAVED ? pair : 2 * pair, right = turns && !INTERLEAVED ? pair + pairs : left + VECTOR;
        Vector<Element, VECTOR> a, b;
        a.load(from + left);
        if (right < size)
            b.load(from + right);
        else
            b.clear();
        if (turns) {
            Vector<float, VECTOR> cos, sin;
            cos.load(&rotations.cos[first + pair]);
            sin.load(&rotations.sin[first + pair]);
            turn(a, b, cos, sin);
        }
        a.store(to + left);
        if (right < size) b.store(to + right);
    }

private:
    static __device__ __forceinline__ void turn(Vector<Element, VECTOR>& a, Vector<Element, VECTOR>& b,
                                                const Vector<float, VECTOR>& cos, const Vector<float, VECTOR>& sin) {
        float x[2 * VECTOR];
#pragma unroll
        for (int i = 0; i < VECTOR; i++) x[i] = a[i], x[VECTOR + i] = b[i];
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            float &left = x[INTERLEAVED ? 2 * i : i], &right = x[INTERLEAVED ? 2 * i + 1 : VECTOR + i], before = left;
            left = left * cos[i] - right * sin[i];
            right = right * cos[i] + before * sin[i];
        }
        float first[VECTOR], second[VECTOR];
#pragma unroll
        for (int i = 0; i < VECTOR; i++) first[i] = x[i], second[i] = x[VECTOR + i];
        a.set(first);
        b.set(second);
    }
};

} // namespace fla
