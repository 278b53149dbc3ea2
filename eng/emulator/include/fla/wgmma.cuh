// On the CPU: what FlaSharp.Kernels/Include/fla/wgmma.cuh does with the machine's instructions. Each warp computes its rows, at
// once or as late as it may, by seed; until then its sums are NaN.
#pragma once
#include "fla/shared_operand.cuh"

namespace fla {

inline void fence_for_products() { emulator::fence_writes(); }

// The element of an operand in shared memory, `k` being its place in the sum.
template <class T> inline float operand_element(u64 operand, bool transposed, u32 row, u32 k) {
    u32 swizzle = operand >> 62, width = 256u >> swizzle, start = (operand & 0x3fff) << 4; // width: of the pattern, in bytes
    u32 lead = (operand >> 16 & 0x3fff) << 4, stride = (operand >> 32 & 0x3fff) << 4;
    if (operand & 0x3fffc000c000c000ull) emulator::fail("wgmma: the operand 0x%016llx is not one of ours", operand);
    u32 address = start;
    if (swizzle == 0) { // blocks of 8 x 8
        u32 within = transposed ? k % 8 * 16 + row % 8 * 2 : row % 8 * 16 + k % 8 * 2;
        address += row / 8 * stride + k / 8 * lead + within;
    } else {
        address += transposed ? row / (width / 2) * lead + k / 8 * stride + k % 8 * width + row % (width / 2) * 2
                              : row / 8 * stride + row % 8 * width + k * 2;
        address ^= (address >> 7 & (width / 16 - 1)) << 4;
    }
    u16 bits;
    address = emulator::own_address(address);
    memcpy(&bits, emulator::shared_pointer("wgmma", address, 2), 2);
    emulator::check_fenced("wgmma", address);
    return Pair<T>::low(bits);
}

// A lane's part: its sums, its registers of a or none, and the operands in shared memory.
struct ProductInput { float (*d)[4]; const u32* left; u64 a, b; bool add; };
struct ProductForm { int blocks; bool a_transposed, b_transposed; };

template <class T> inline void perform_product(const ProductForm& form, const std::vector<ProductInput>& lanes, int first_row) {
    float a[16][16];
    std::vector<std::array<float, 16>> b(form.blocks * 8);
    for (int lane = 0; lane < 32; lane++)
        for (int e = 0; e < 8; e++) {
            int i = lane / 4 + e / 2 % 2 * 8, k = lane % 4 * 2 + e / 4 * 8 + e % 2;
            const u32* left = lanes[lane].left;
            a[i][k] = !left ? operand_element<T>(lanes[0].a, form.a_transposed, first_row + i, k)
                            : e % 2 ? Pair<T>::high(left[e / 2]) : Pair<T>::low(left[e / 2]);
        }
    for (int j = 0; j < form.blocks * 8; j++)
        for (int k = 0; k < 16; k++) b[j][k] = operand_element<T>(lanes[0].b, form.b_transposed, j, k);
    for (int lane = 0; lane < 32; lane++)
        for (int n = 0; n < form.blocks; n++)
            for (int e = 0; e < 4; e++) {
                float sum = 0;
                for (int k = 0; k < 16; k++) sum += a[lane / 4 + e / 2 * 8][k] * b[n * 8 + lane % 4 * 2 + e % 2][k];
                lanes[lane].d[n][e] = (lanes[lane].add ? lanes[lane].d[n][e] : 0.f) + sum;
            }
}

template <class T, int BLOCKS, int A_TRANSPOSED, int B_TRANSPOSED>
inline void start_product(const void* const* in, void* const*, u32 mask) {
    using namespace emulator;
    if (mask != ~0u) fail("wgmma in a warp of fewer than 32 threads");
    std::vector<ProductInput> lanes;
    for (int lane = 0; lane < WARP; lane++) {
        lanes.push_back(input_of<ProductInput>(in, lane));
        if (lanes[lane].a != lanes[0].a || lanes[lane].b != lanes[0].b) fail("wgmma: lanes %d and 0 have unlike operands", lane);
    }
    Warp& warp = machine.warps[machine.current->warp];
    int first_row = machine.current->warp % 4 * 16;
    ProductForm form{BLOCKS, A_TRANSPOSED, B_TRANSPOSED};
    if (warp.open.empty() && warp.groups.empty() && machine.random.below(100) < machine.copy_at_once) {
        perform_product<T>(form, lanes, first_row);
        return;
    }
    std::vector<float> before; // none if the sums wait for another product already
    if (warp.awaited[lanes[0].d]++ == 0)
        for (auto& lane : lanes) {
            before.insert(before.end(), &lane.d[0][0], &lane.d[0][0] + BLOCKS * 4);
            memset(lane.d, 0xff, BLOCKS * 16);
        }
    warp.open.push_back([=] {
        for (int lane = 0; lane < WARP && !before.empty(); lane++) memcpy(lanes[lane].d, &before[lane * BLOCKS * 4], BLOCKS * 16);
        perform_product<T>(form, lanes, first_row);
        machine.warps[machine.current->warp].awaited[lanes[0].d]--;
    });
}

template <class... Registers> __forceinline__ void begin_products(Registers&...) { __syncwarp(); }

__forceinline__ void commit_products() {
    emulator::collective<int, int>("commit_products", 0, ~0u, 0, [](const void* const*, void* const*, u32) {
        auto& warp = emulator::machine.warps[emulator::machine.current->warp];
        warp.groups.push_back(std::move(warp.open));
        warp.open.clear();
    });
}

template <int PENDING, class... Sums> __forceinline__ void wait_products(Sums&...) {
    emulator::collective<int, int>("wait_products", PENDING, ~0u, 0, [](const void* const*, void* const*, u32) {
        auto& groups = emulator::machine.warps[emulator::machine.current->warp].groups;
        for (; (int)groups.size() > PENDING; groups.pop_front())
            for (auto& perform : groups.front()) perform();
    });
}

template <int BLOCKS>
constexpr bool is_product = BLOCKS == 4 || BLOCKS == 8 || BLOCKS == 10 || BLOCKS == 16 || BLOCKS == 22 || BLOCKS == 32;

template <int A_TRANSPOSED, int B_TRANSPOSED, class T = bf16, int BLOCKS>
__forceinline__ void product(float (&d)[BLOCKS][4], u64 a, u64 b, bool add = true) {
    static_assert(is_product<BLOCKS>);
    emulator::collective<ProductInput, int>(
        "product", 0, ~0u, {d, nullptr, a, b, add}, start_product<T, BLOCKS, A_TRANSPOSED, B_TRANSPOSED>);
}
template <int B_TRANSPOSED, class T = bf16, int BLOCKS>
__forceinline__ void product(float (&d)[BLOCKS][4], const u32 (&a)[4], u64 b, bool add = true) {
    static_assert(is_product<BLOCKS>);
    emulator::collective<ProductInput, int>("product", 1, ~0u, {d, a, 0, b, add}, start_product<T, BLOCKS, false, B_TRANSPOSED>);
}

} // namespace fla
