using FlaSharp.Autograd;
using FlaSharp.Ops;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

public sealed class SplitFunctionTests
{
    [Fact]
    public void Parts_are_those_of_split_and_so_are_the_gradients()
    {
        using var scope = NewDisposeScope();
        Tensor[] Gradient(Func<Tensor, Tensor[]> split)
        {
            manual_seed(1);
            var x = randn(2, 3, 10, requires_grad: true);
            var parts = split(x * 1);
            var loss = (parts[0] * parts[0]).sum() + (parts[1].transpose(-1, -2) * arange(6).view(3, 2)).sum();
            TensorBackward.Backward(loss);
            return [.. parts, x.grad!];
        }
        var expected = Gradient(x =>
        {
            var parts = x.split([3, 6, 1], -1);
            return [parts[0], parts[1].view(2, 3, 2, 3), parts[2]];
        });
        var actual = Gradient(x => SplitFunction.Split(x, [3], [2, 3], [1]));
        foreach (var (one, other) in expected.Zip(actual))
            Assert.True(one.allclose(other, 0, 0));
    }

    [Fact]
    public void An_operation_writes_its_gradient_into_that_of_the_whole()
    {
        using var scope = NewDisposeScope();
        var x = randn(2, 3, 8, requires_grad: true);
        var whole = x * 1;
        var parts = SplitFunction.Split(whole, [6], [2]);
        var kept = new List<bool>();
        var left = new Scaling(kept).Run(parts[0])[0]!;
        var right = new Scaling(kept).Run(parts[1])[0]!;
        TensorBackward.Backward(left.sum() + right.sum());
        Assert.Equal([true, true], kept);
        Assert.True(x.grad!.allclose(full_like(x, 2), 0, 0));
    }

    [Fact]
    public void A_part_that_is_used_twice_has_the_sum_of_both_gradients()
    {
        using var scope = NewDisposeScope();
        var x = randn(2, 3, 8, requires_grad: true);
        var parts = SplitFunction.Split(x, [6], [2]);
        var kept = new List<bool>();
        var sum = new Scaling(kept).Run(parts[0])[0]! + new Scaling(kept).Run(parts[0])[0]!;
        TensorBackward.Backward(sum.sum());
        Assert.Equal([false, true], kept.Order());
        Assert.True(x.grad!.allclose(cat([full([2, 3, 6], 4), zeros(2, 3, 2)], -1), 0, 0));
    }

    [Fact]
    public void Without_gradients_the_parts_are_views()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var x = zeros(2, 3, 8).transpose(0, 1);
        SplitFunction.Split(x, [4], [2, 2])[1].fill_(1);
        Assert.True(x.allclose(cat([zeros(3, 2, 4), ones(3, 2, 4)], -1), 0, 0));
    }

    /// <summary>Twice x; notes whether its gradient lies in a larger tensor.</summary>
    private sealed class Scaling(List<bool> isPlaced) : FlaFunction
    {
        protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
        {
            saved?.Save(inputs[0]);
            return [inputs[0]! * 2];
        }

        protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
        {
            var gradient = saved.NewGradient(0, saved[0]!);
            isPlaced.Add(gradient.stride(1) == 8);
            gradient.copy_(gradOutputs[0]! * 2);
            return [gradient];
        }
    }
}
