using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Autograd;

public sealed class FlaFunctionTests
{
    [Fact]
    public void Gradients_flow_to_the_inputs_that_want_them()
    {
        using var scope = NewDisposeScope();
        var a = tensor(new float[] { 1, 2, 3 }, requires_grad: true);
        var b = tensor(new float[] { 4, 5, 6 });
        var product = new Multiply().Run(a, b, null)[0]!;
        product.sum().Backward();
        Assert.Equal([4f, 5f, 6f], a.grad!.data<float>().ToArray());
        Assert.Null(b.grad);
    }

    [Fact]
    public void An_exception_in_backward_reaches_the_caller()
    {
        using var scope = NewDisposeScope();
        var a = ones(3, requires_grad: true);
        var loss = new Multiply { FailBackward = true }.Run(a, a, null)[0]!.sum();
        var thrown = Assert.Throws<InvalidOperationException>(() => loss.Backward());
        Assert.Equal("planned", thrown.Message);

        // After a plain backward() the next operation reports it, once.
        new Multiply { FailBackward = true }.Run(a, a, null)[0]!.sum().backward();
        Assert.Equal("planned", Assert.Throws<InvalidOperationException>(() => new Multiply().Run(a, a, null)).Message);
        new Multiply().Run(a, a, null)[0]!.sum().Backward();
    }

    /// <summary>Without a copy: the memory that backward returned is the leaf's from then on, and freed with it.</summary>
    [Fact]
    public void A_leaf_takes_over_the_memory_of_its_gradient()
    {
        Assert.SkipUnless(NativeMemory.CanMeasure, "Needs glibc 2.33 to measure.");
        const int Megabytes = 16;
        using var scope = NewDisposeScope();
        var a = ones(Megabytes << 18, requires_grad: true);
        var b = full(Megabytes << 18, 3f, requires_grad: true);
        var before = NativeMemory.Megabytes();
        for (var step = 1; step <= 2; step++) // the second one adds to what is there
        {
            using var steps = NewDisposeScope();
            var pointer = TensorPointer.Of(a.grad);
            var function = new Multiply();
            function.Run(a, b, null)[0]!.sum().Backward();
            Assert.Equal(step == 1 ? function.Returned[0] : pointer, TensorPointer.Of(a.grad));
            Assert.Equal(step * 3f, a.grad![^1].item<float>());
        }
        Assert.InRange(NativeMemory.Megabytes() - before, 2 * Megabytes - 1, 2 * Megabytes + 1);
        (a.grad, b.grad) = (null, null);
        Assert.InRange(NativeMemory.Megabytes() - before, -1, 1);
    }

    [Fact]
    public void Leaves_do_not_share_the_memory_of_gradients()
    {
        using var scope = NewDisposeScope();
        var (a, b, c) = (ones(3, requires_grad: true), ones(3, requires_grad: true), ones(3, requires_grad: true));
        var given = tensor(new float[] { 1, 2, 3 });
        new Share().Run(a, b, c)[0]!.Backward(given);
        var tensors = new[] { given, a, b, c, a.grad!, b.grad!, c.grad! };
        Assert.Equal(tensors.Length, tensors.Select(x => TensorPointer.Of(x)).Distinct().Count());
        a.grad!.zero_();
        Assert.Equal([1f, 2f, 3f], b.grad!.data<float>().ToArray());
        Assert.Equal([1f, 1f, 1f], c.grad!.data<float>().ToArray());
    }

    /// <summary>The gradient comes from a view of the leaf, and so in its order of dimensions.</summary>
    [Fact]
    public void A_leaf_that_is_not_dense_has_a_gradient_like_it()
    {
        using var scope = NewDisposeScope();
        var a = arange(6, ScalarType.Float32).view(2, 3).t().requires_grad_();
        var b = arange(6, ScalarType.Float32).view(3, 2);
        new Multiply().Run(a, b, null)[0]!.sum().Backward();
        Assert.Equal(a.stride(), a.grad!.stride());
        Assert.Equal([0f, 1f, 2f, 3f, 4f, 5f], a.grad.contiguous().data<float>().ToArray());
    }

    /// <summary>a + b + 0 c, whose gradients are those of the output, twice, and a saved tensor.</summary>
    private sealed class Share : FlaFunction
    {
        protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
        {
            saved?.Save(inputs[2]);
            return [stack([inputs[0]!, inputs[1]!]).sum(dim: 0)];
        }

        protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs) =>
            [gradOutputs[0], gradOutputs[0], saved[0]];
    }

    private sealed class Multiply : FlaFunction
    {
        public bool FailBackward { get; init; }

        /// <summary>Where the gradients lie that backward returned.</summary>
        public nint[] Returned { get; private set; } = [];

        protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
        {
            saved?.Save(inputs[0], inputs[1]);
            return [inputs[0]! * inputs[1]!];
        }

        protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
        {
            if (FailBackward)
                throw new InvalidOperationException("planned");
            var (a, b) = (gradOutputs[0]! * saved[1]!, gradOutputs[0]! * saved[0]!);
            Returned = [TensorPointer.Of(a), TensorPointer.Of(b)];
            return [a, b, null];
        }
    }
}
