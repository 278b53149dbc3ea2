using FlaSharp.Interop;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Interop;

public sealed class TensorHeaderTests
{
    [Fact]
    public void Sizes_and_strides_are_those_of_TorchSharp()
    {
        using var scope = NewDisposeScope();
        var x = zeros(2, 3, 4);
        Tensor[] tensors =
            [x, x.transpose(0, 2), x.narrow(1, 1, 2), x[.., .., ..1].expand(2, 3, 5), x[1, 2, 3], zeros(0, 7)];
        foreach (var tensor in tensors)
        {
            Assert.Equal(tensor.dim(), tensor.Rank());
            Assert.Equal(tensor.shape, tensor.Sizes(new long[8]).ToArray());
            Assert.Equal(tensor.stride(), Enumerable.Range(0, tensor.Rank()).Select(i => tensor.Stride(i)).ToArray());
        }
        Assert.Equal(4, x.LastSize());
        Assert.Equal((x.device_type, x.device_index), x.Place());
        Assert.Throws<InvalidOperationException>(() =>
        {
            x.Dispose();
            return x.Rank();
        });
    }
}
