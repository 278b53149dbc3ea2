using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

/// <summary>Matrix loads and products of a warp.</summary>
public sealed class MatrixTests
{
    private const int Size = 64, Row = 16, Column = 32; // as in matrices.cu

    [GpuFact]
    public void Operands_as_they_lie_and_transposed_give_the_products_of_whole_numbers()
    {
        using var scope = NewDisposeScope();
        var (x, y) = (Codes(5, 11, Size, Size), Codes(3, 13, Size, Size));
        var (a, b) = (Operand(x), Operand(y));
        foreach (var type in HalfTypes)
        {
            var z = NaN(4, 16, 16);
            Run(BlockKernels.Matrices("matrix_products", Element(type)), x.to(type), y.to(type), z);
            Exact(z, stack([a.mm(b), a.t().mm(b), a.mm(b.t()), a.t().mm(b.t())]), $"{type}");
        }
    }

    [GpuFact]
    public void A_product_becomes_an_operand()
    {
        using var scope = NewDisposeScope();
        var (x, y, z) = (Codes(5, 3, Size, Size), Codes(2, 3, Size, Size), NaN(16, 16));
        Run(BlockKernels.Matrices("chained_products"), x.to(bfloat16), y.to(bfloat16), z);
        var product = Operand(x).mm(Operand(y));
        Exact(z, product.mm(Operand(y)) + product);
    }

    [GpuFact]
    public void Matrices_of_8_x_8_are_transposed_and_loaded_in_order()
    {
        using var scope = NewDisposeScope();
        var (x, y) = (Indices(int16, 8, 8), Indices(int16, Size, Size));
        var (z, w) = (zeros(8, 8, dtype: int16), zeros(4, 8, 8, dtype: int16));
        Run(BlockKernels.Matrices("transposed_matrices"), x, y, z, w);
        Exact(z, x.t());
        var operand = Operand(y);
        Exact(w, stack([operand[..8, ..8], operand[8.., ..8], operand[..8, 8..], operand[8.., 8..]]));
    }

    private static Tensor Operand(Tensor x) => x.narrow(0, Row, 16).narrow(1, Column, 16);
}
