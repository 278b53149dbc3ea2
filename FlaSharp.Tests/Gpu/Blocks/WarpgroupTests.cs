using FlaSharp.Kernels.Runtime;
using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

/// <summary>Hopper's products of four warps, for every way in which their operands can lie.</summary>
public sealed class WarpgroupTests
{
    private const int Rows = 128; // as in warpgroup_products.cu
    private static readonly int[] s_cols = [32, 64, 128, 256];
    private static readonly int[] s_depths = [16, 32, 64, 128]; // panels of 32, 64 and 128 bytes, and two of these

    [GpuTheory]
    [InlineData(false, false, false)]
    [InlineData(false, false, true)]
    [InlineData(false, true, false)]
    [InlineData(false, true, true)]
    [InlineData(true, false, false)]
    [InlineData(true, false, true)]
    public void Operands_as_they_lie_and_transposed(bool inRegisters, bool leftTransposed, bool rightTransposed)
    {
        RequireHopper();
        foreach (var cols in s_cols)
            foreach (var depth in s_depths)
            {
                using var scope = NewDisposeScope();
                var (a, b, z) = (Codes(5, 11, Rows, depth), Codes(3, 13, depth, cols), NaN(Rows, cols));
                Run(BlockKernels.WarpgroupProducts(cols, depth, inRegisters, leftTransposed, rightTransposed),
                    (leftTransposed ? a.t() : a).to(bfloat16).contiguous(), (rightTransposed ? b : b.t()).to(bfloat16).contiguous(), z);
                Exact(z, 1 + (2 * a.mm(b)), $"{cols} columns, depth {depth}");
            }
    }

    [GpuFact]
    public void Matrices_of_8_x_8_are_stored_transposed()
    {
        RequireHopper();
        using var scope = NewDisposeScope();
        var (x, z) = (Indices(int16, 16, 16), zeros(16, 16, dtype: int16));
        Run(BlockKernels.StoredMatrices, x, z: z);
        Exact(z, x.t());
    }

    private static void RequireHopper() => Assert.SkipUnless(GpuDevice.Get(0).Target!.IsHopper, "The GPU is no Hopper.");
}
