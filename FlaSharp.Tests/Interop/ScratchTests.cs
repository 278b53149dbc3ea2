using FlaSharp.Interop;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Interop;

public sealed class ScratchTests
{
    [Theory]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.Float16)]
    [InlineData(ScalarType.BFloat16)]
    public void Memory_is_poisoned_in_tests(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        var memory = Scratch.Empty([3, 5], dtype);
        Assert.Equal(dtype, memory.dtype);
        Assert.Equal([3, 5], memory.shape);
        Assert.True(memory.isnan().all().ToBoolean());
        Assert.True(Scratch.EmptyLike(zeros([2, 7], dtype)).isnan().all().ToBoolean());
    }

    [Fact]
    public void Memory_of_other_types_is_given_too() => Assert.Equal(4, Scratch.Empty([4], ScalarType.Int64).numel());
}
