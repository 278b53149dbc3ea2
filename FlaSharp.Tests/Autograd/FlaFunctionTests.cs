using FlaSharp.Autograd;
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

    private sealed class Multiply : FlaFunction
    {
        public bool FailBackward { get; init; }

        protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
        {
            saved?.Save(inputs[0], inputs[1]);
            return [inputs[0]! * inputs[1]!];
        }

        protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
        {
            if (FailBackward)
                throw new InvalidOperationException("planned");
            return [gradOutputs[0]! * saved[1]!, gradOutputs[0]! * saved[0]!, null];
        }
    }
}
