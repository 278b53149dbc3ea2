using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class TensorViewTests
{
    [Theory]
    [InlineData(4096, 1024, 128, 64, 64)]
    [InlineData(4096 + 8, 1024, 128, 64, 4)] // the address: 8 bytes, 4 elements
    [InlineData(4096, 1024, 132, 64, 4)]
    [InlineData(4096, 1024, 128, 33, 1)]
    public void Multiples_end_with_what_divides_address_and_strides(int data, long batch, long time, long head, long divisor)
    {
        var multiples = new TensorView(data, batch, time, head).Multiples(ElementType.BFloat16);
        Assert.Equal(divisor, multiples & -multiples);
    }
}
