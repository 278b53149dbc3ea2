using FlaSharp.Interop;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Interop;

public sealed class KernelTensorTests
{
    public static TheoryData<string, bool, long> Views() => new()
    {
        { "whole", true, 8 },
        { "columns", true, 8 },
        { "one column", true, 8 },
        { "one row", true, 3 },
        { "every other row", true, 48 },
        { "repeated rows", true, 0 },
        { "some of each batch", false, 8 },
        { "transposed", false, 8 },
        { "every other column", false, 4 },
    };

    [Theory]
    [MemberData(nameof(Views))]
    public void A_matrix_of_even_rows_stays_where_it_is(string view, bool stays, long expectedRow)
    {
        using var scope = NewDisposeScope();
        var x = arange(4 * 6 * 8, ScalarType.Float32).view(4, 6, 8);
        var part = view switch
        {
            "columns" => x[.., .., 2..5],
            "one column" => x[.., .., 3..4],
            "one row" => x[1..2, 2..3, 2..5],
            "every other row" => x[.., 1..2],
            "repeated rows" => x[0, 0].expand(4, 6, 8),
            "some of each batch" => x[.., 1..4],
            "transposed" => x.transpose(0, 1),
            "every other column" => x[.., .., TensorIndex.Slice(step: 2)],
            _ => x,
        };
        var dense = part.DenseRows(out var row);
        Assert.Equal(stays, TensorPointer.Of(dense) == TensorPointer.Of(part));
        Assert.Equal(expectedRow, row);
        var rows = dense.numel() / dense.size(-1);
        var read = dense.as_strided([rows, dense.size(-1)], [row, 1], dense.storage_offset());
        Assert.True(read.equal(part.reshape(rows, -1)).all().ToBoolean());
    }

    [Fact]
    public void Expanded_dimensions_are_copied_where_rows_must_lie_apart()
    {
        using var scope = NewDisposeScope();
        var x = randn(2, 1, 3, 4);
        Assert.Same(x, x.DenseRowsApart()); // a dimension of one element has no stride
        Assert.Same(x, x.DenseRows());
        var part = x.transpose(1, 2)[.., .., .., ..2];
        Assert.Same(part, part.DenseRowsApart());
        foreach (var expanded in new[]
            { x.expand(-1, 5, -1, -1), x[.., .., ..1].expand(-1, -1, 3, -1), x[..1].expand(6, -1, -1, -1) })
        {
            Assert.Same(expanded, expanded.DenseRows());
            var dense = expanded.DenseRowsApart();
            Assert.True(dense.is_contiguous());
            Assert.True(dense.equal(expanded).all().ToBoolean());
        }
    }

    [Fact]
    public void Nothing_stays_nothing() => Assert.Null(((Tensor?)null).DenseRows(out _));
}
