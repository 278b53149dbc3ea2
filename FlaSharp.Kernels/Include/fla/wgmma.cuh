// Hopper's products of matrices by groups of four warps, with operands in shared memory. They run in the background: registers of
// a product are touched only after a wait, and what ordinary stores wrote is visible to them after a fence. sm_90a only.
#pragma once
#include "fla/shared_operand.cuh"

namespace fla {

// Shows this thread's ordinary writes to shared memory to the products of threads that it meets at a barrier afterwards.
__device__ __forceinline__ void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Keeps the compiler from moving work on registers across.
__device__ __forceinline__ void pin(float& x) { asm volatile("" : "+f"(x)::"memory"); }
__device__ __forceinline__ void pin(u32& x) { asm volatile("" : "+r"(x)::"memory"); }
template <class T, int N> __device__ __forceinline__ void pin(T (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) pin(x[i]);
}

// Before products that use registers written otherwise: all their registers.
template <class... Registers> __device__ __forceinline__ void begin_products(Registers&... registers) {
    (pin(registers), ...);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// The products since the last call are a group.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most PENDING groups are under way; `sums` are those of the others.
template <int PENDING, class... Sums> __device__ __forceinline__ void wait_products(Sums&... sums) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    (pin(sums), ...);
}

// d += a b, or d = a b without `add`, with d [64 x N] and b [16 x N], an operand's transpose, of numbers of type T. A warp holds
// 16 rows of d and of a, blocks of 8 columns as those of mma_m16n8k16. TRANSPOSED tells how the operands in shared memory lie.
#define FLA_SUMS_1(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define FLA_SUMS_2(n) FLA_SUMS_1(n), FLA_SUMS_1(n + 1)
#define FLA_SUMS_4(n) FLA_SUMS_2(n), FLA_SUMS_2(n + 2)
#define FLA_SUMS_8(n) FLA_SUMS_4(n), FLA_SUMS_4(n + 4)
#define FLA_SUMS_10(n) FLA_SUMS_8(n), FLA_SUMS_2(n + 8)
#define FLA_SUMS_16(n) FLA_SUMS_8(n), FLA_SUMS_8(n + 8)
#define FLA_SUMS_22(n) FLA_SUMS_16(n), FLA_SUMS_4(n + 16), FLA_SUMS_2(n + 20)
#define FLA_SUMS_32(n) FLA_SUMS_16(n), FLA_SUMS_16(n + 16)
#define FLA_PRODUCT_OF(COLUMNS, TYPE, D, OPERANDS, ADD) \
    "{ .reg .pred p; setp.ne.b32 p, " ADD ", 0; "                                                                                \
    "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." TYPE "." TYPE " {" D "}, " OPERANDS "; }"
// COLUMNS of d, as blocks of 8; the names of its registers, and of the operands that follow.
#define FLA_PRODUCT(COLUMNS, BLOCKS, D, N0, N1, N2, N3, N4, N5, N6)                                                              \
    template <int A_TRANSPOSED, int B_TRANSPOSED, class T = bf16>                                                                \
    __device__ __forceinline__ void product(float (&d)[BLOCKS][4], u64 a, u64 b, bool add = true) {                              \
        if constexpr (same<T, bf16>())                                                                                           \
            asm volatile(FLA_PRODUCT_OF(COLUMNS, "bf16", D, N0 ", " N1 ", p, 1, 1, " N2 ", " N3, N4)                             \
                         : FLA_SUMS_##BLOCKS(0)                                                                                  \
                         : "l"(a), "l"(b), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED), "r"((int)add)                                   \
                         : "memory");                                                                                            \
        else                                                                                                                     \
            asm volatile(FLA_PRODUCT_OF(COLUMNS, "f16", D, N0 ", " N1 ", p, 1, 1, " N2 ", " N3, N4)                              \
                         : FLA_SUMS_##BLOCKS(0)                                                                                  \
                         : "l"(a), "l"(b), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED), "r"((int)add)                                   \
                         : "memory");                                                                                            \
    }                                                                                                                            \
    template <int B_TRANSPOSED, class T = bf16>                                                                                  \
    __device__ __forceinline__ void product(float (&d)[BLOCKS][4], const u32 (&a)[4], u64 b, bool add = true) {                  \
        if constexpr (same<T, bf16>())                                                                                           \
            asm volatile(FLA_PRODUCT_OF(COLUMNS, "bf16", D, "{" N0 ", " N1 ", " N2 ", " N3 "}, " N4 ", p, 1, 1, " N5, N6)        \
                         : FLA_SUMS_##BLOCKS(0)                                                                                  \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(B_TRANSPOSED), "r"((int)add)                  \
                         : "memory");                                                                                            \
        else                                                                                                                     \
            asm volatile(FLA_PRODUCT_OF(COLUMNS, "f16", D, "{" N0 ", " N1 ", " N2 ", " N3 "}, " N4 ", p, 1, 1, " N5, N6)         \
                         : FLA_SUMS_##BLOCKS(0)                                                                                  \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(B_TRANSPOSED), "r"((int)add)                  \
                         : "memory");                                                                                            \
    }
#define FLA_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define FLA_NAMES_32 FLA_NAMES_16 ", " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FLA_NAMES_40 FLA_NAMES_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39"
#define FLA_NAMES_64 FLA_NAMES_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FLA_NAMES_88 FLA_NAMES_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87"
#define FLA_NAMES_128 FLA_NAMES_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
FLA_PRODUCT(32, 4, FLA_NAMES_16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
FLA_PRODUCT(64, 8, FLA_NAMES_32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
FLA_PRODUCT(80, 10, FLA_NAMES_40, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
FLA_PRODUCT(128, 16, FLA_NAMES_64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
FLA_PRODUCT(176, 22, FLA_NAMES_88, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
FLA_PRODUCT(256, 32, FLA_NAMES_128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")
#undef FLA_NAMES_16
#undef FLA_NAMES_32
#undef FLA_NAMES_40
#undef FLA_NAMES_64
#undef FLA_NAMES_88
#undef FLA_NAMES_128
#undef FLA_PRODUCT
#undef FLA_PRODUCT_OF
#undef FLA_SUMS_32
#undef FLA_SUMS_22
#undef FLA_SUMS_16
#undef FLA_SUMS_10
#undef FLA_SUMS_8
#undef FLA_SUMS_4
#undef FLA_SUMS_2
#undef FLA_SUMS_1

} // namespace fla
