using FlaSharp.Interop;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Interop;

public sealed class MemoryRangeTests
{
    [Fact]
    public void Parts_overlap_where_they_share_bytes()
    {
        using var scope = NewDisposeScope();
        var x = zeros(4, 6);
        Assert.Equal(4 * 6 * sizeof(float), Length(x));
        Assert.Equal(4 * 6 * sizeof(float), Length(x.t()));
        Assert.Equal((3 * 6 + 1) * sizeof(float), Length(x.select(1, 0)));
        Assert.Equal(sizeof(double), Length(zeros(1, ScalarType.Float64).expand(5, 5)));
        Assert.Equal(0, Length(x.narrow(0, 2, 0)));

        Assert.True(Overlap(x, x.narrow(0, 3, 1)));
        Assert.True(Overlap(x.narrow(0, 0, 3), x.narrow(0, 2, 2)));
        Assert.True(Overlap(x.select(1, 0), x.select(1, 1))); // between each other's elements
        Assert.False(Overlap(x.narrow(0, 0, 2), x.narrow(0, 2, 2)));
        Assert.False(Overlap(x, x.clone()));
        Assert.False(Overlap(x, x.narrow(0, 2, 0)));
    }

    private static long Length(Tensor tensor)
    {
        var (start, end) = MemoryRange.Of(tensor);
        return end - start;
    }

    private static bool Overlap(Tensor a, Tensor b) =>
        MemoryRange.Of(a).Overlaps(MemoryRange.Of(b)) && MemoryRange.Of(b).Overlaps(MemoryRange.Of(a));
}
