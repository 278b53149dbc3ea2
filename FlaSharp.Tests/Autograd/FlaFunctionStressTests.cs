using System.Runtime.CompilerServices;
using FlaSharp.Autograd;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Autograd;

/// <summary>
/// What a plain TorchSharp function fails: the garbage collector at any moment, threads, memory, exceptions. A mistake here
/// tends to end the test process.
/// </summary>
public sealed class FlaFunctionStressTests
{
    private const int BlockMegabytes = 16;
    private const long BlockElements = BlockMegabytes << 18;

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Steps_survive_a_thread_that_collects(bool backwardOnAnotherThread)
    {
        UndefinedGradients.Taken();
        var before = NativeMemory.LiveTensors();
        using (var worker = new Worker())
        using (var collector = new CollectingThread())
        {
            for (var step = 0; step < 10_000 || collector.Collections < 1000; step++)
            {
                collector.NextStep();
                using var scope = NewDisposeScope();
                var (x, y) = (step % 7 + 1f, step % 5 + 1f);
                var a = tensor([x, x, x], requires_grad: true);
                var b = tensor([y, y, y], requires_grad: true);
                var (product, sum) = Arithmetic.Apply(a, b);
                var (last, _) = Arithmetic.Apply(product, sum!); // a * b * (a + b)
                var loss = last.sum();
                if (backwardOnAnotherThread)
                    worker.Run(() => loss.Backward());
                else
                    loss.Backward();

                if (step % 10 != 0)
                    continue;
                Assert.All(a.grad!.data<float>().ToArray(), value => Assert.Equal(2 * x * y + y * y, value));
                Assert.All(b.grad!.data<float>().ToArray(), value => Assert.Equal(2 * x * y + x * x, value));
            }
        }
        Assert.InRange(NativeMemory.LiveTensors() - UndefinedGradients.Taken(), 0, before);
    }

    /// <summary>
    /// Native code copies a returned gradient only after the callback. The moment is too short for the collector to hit often, so
    /// this asks directly: nothing but the parking place holds the gradient after backward, until the thread's next operation.
    /// </summary>
    [Fact]
    public void Returned_gradients_outlive_the_callback()
    {
        using var scope = NewDisposeScope();
        var a = ones(3, requires_grad: true);
        var function = new Arithmetic();
        Arithmetic.Apply(a, a, function).product.sum().backward(); // TorchSharp's own, which returns straight from native code
        NativeMemory.LiveTensors();
        Assert.True(function.Returned!.TryGetTarget(out var gradient) && !gradient.IsInvalid);
        Arithmetic.Apply(a, a);
        Assert.True(gradient.IsInvalid);
    }

    [Fact]
    public void Graphs_that_die_without_backward_leave_nothing()
    {
        var before = NativeMemory.LiveTensors();
        for (var step = 0; step < 500; step++)
        {
            using var scope = NewDisposeScope();
            var a = ones(3, requires_grad: true);
            var (product, sum) = Arithmetic.Apply(a, a);
            Arithmetic.Apply(product, sum!);
        }
        Assert.InRange(NativeMemory.LiveTensors(), 0, before);
    }

    [Fact]
    public void Outputs_exist_once_and_inputs_are_not_copied()
    {
        Assert.SkipUnless(NativeMemory.CanMeasure, "Needs glibc 2.33 to measure.");
        using var scope = NewDisposeScope();
        var a = ones(BlockElements, requires_grad: true);
        var b = ones(BlockElements, requires_grad: true);
        var before = NativeMemory.Megabytes();
        Arithmetic.Apply(a, b);
        Assert.InRange(NativeMemory.Megabytes() - before, 2 * BlockMegabytes - 1, 2 * BlockMegabytes + 1); // two outputs
    }

    [Fact]
    public void Saved_tensors_are_freed_while_backward_goes_on()
    {
        Assert.SkipUnless(NativeMemory.CanMeasure, "Needs glibc 2.33 to measure.");
        const int Length = 6;
        using var scope = NewDisposeScope();
        var inUse = new List<long>();
        var chain = ones(1, requires_grad: true);
        for (var i = 0; i < Length; i++)
            chain = new Hoard(inUse).Run(chain)[0]!;
        chain.sum().Backward();
        Assert.Equal(Length, inUse.Count);
        Assert.InRange(inUse[0] - inUse[^1], (Length - 1) * BlockMegabytes - 1, long.MaxValue);
    }

    [Fact]
    public void An_exception_in_forward_leaves_nothing()
    {
        var before = NativeMemory.LiveTensors();
        var functions = Enumerable.Range(0, 100).Select(_ => FailForward()).ToList();
        Assert.InRange(NativeMemory.LiveTensors(), 0, before);
        Assert.All(functions, function => Assert.False(function.IsAlive));

        [MethodImpl(MethodImplOptions.NoInlining)]
        static WeakReference FailForward()
        {
            using var scope = NewDisposeScope();
            var function = new Arithmetic { FailForward = true };
            Assert.Throws<InvalidOperationException>(() => function.Run(ones(3, requires_grad: true), ones(3)));
            return new WeakReference(function);
        }
    }

    [Fact]
    public void An_exception_in_backward_reaches_the_caller_and_leaves_nothing()
    {
        var before = NativeMemory.LiveTensors();
        using (var worker = new Worker())
        using (var collector = new CollectingThread())
        {
            for (var step = 0; step < 500; step++)
            {
                collector.NextStep();
                using var scope = NewDisposeScope();
                var a = ones(3, requires_grad: true);
                var (product, sum) = Arithmetic.Apply(a, a, new Arithmetic { FailBackward = true });
                var loss = (product * sum!).sum();
                var thrown = Assert.Throws<InvalidOperationException>(() => worker.Run(() => loss.Backward()));
                Assert.Equal("planned", thrown.Message);
                Assert.Equal([0f, 0f, 0f], a.grad!.data<float>().ToArray());
            }
            // The engine's own thread runs the nodes of a GPU: what fails there waits for the thread that asks.
            worker.Run(() => BackwardFailure.Set(new InvalidOperationException("on the engine's thread")));
            using (NewDisposeScope())
                Assert.Throws<InvalidOperationException>(() => ones(3, requires_grad: true).sum().Backward());
        }
        Assert.InRange(NativeMemory.LiveTensors(), 0, before);
    }

    [GpuFact]
    public void An_exception_on_the_thread_of_a_gpu_reaches_the_caller()
    {
        using var scope = NewDisposeScope();
        var a = ones(3, device: CUDA, requires_grad: true);
        var loss = Arithmetic.Apply(a, a, new Arithmetic { FailBackward = true }).product.sum();
        Assert.Equal("planned", Assert.Throws<InvalidOperationException>(() => loss.Backward()).Message);
    }

    [Fact]
    public void A_second_backward_is_refused()
    {
        using var scope = NewDisposeScope();
        var a = ones(3, requires_grad: true);
        var loss = Arithmetic.Apply(a, a).product.sum();
        autograd.backward([loss], retain_graph: true);
        Assert.Contains("ran twice", Assert.Throws<InvalidOperationException>(() => loss.Backward()).Message);
        Assert.Equal([2f, 2f, 2f], a.grad!.data<float>().ToArray());
    }

    /// <summary><c>torch.autograd.grad</c> has no way to report a missing gradient but to end the process.</summary>
    [Fact]
    public void A_second_derivative_is_refused()
    {
        using var scope = NewDisposeScope();
        var a = ones(3, requires_grad: true);
        var gradients = autograd.grad([Arithmetic.Apply(a, a).product.sum()], [a], create_graph: true);
        Assert.Equal([0f, 0f, 0f], gradients[0].data<float>().ToArray());
        Assert.Contains("create_graph", Assert.Throws<NotSupportedException>(() => Arithmetic.Apply(a, a)).Message);
        Assert.Equal([2f, 2f, 2f], autograd.grad([Arithmetic.Apply(a, a).product.sum()], [a])[0].data<float>().ToArray());
    }

    [Fact]
    public void Absent_inputs_and_outputs_keep_their_places()
    {
        using var scope = NewDisposeScope();
        var b = full(3, 2f, requires_grad: true);
        var outputs = new Arithmetic { OmitProduct = true }.Run(null, b);
        Assert.Null(outputs[0]);
        outputs[1]!.sum().Backward();
        Assert.Equal([1f, 1f, 1f], b.grad!.data<float>().ToArray());
    }

    [Fact]
    public void An_output_that_nobody_uses_has_no_gradient()
    {
        using var scope = NewDisposeScope();
        var a = full(3, 2f, requires_grad: true);
        var b = full(3, 5f);
        using (NewDisposeScope()) // closed before backward: the unused output is gone by then
        {
            var (product, _) = Arithmetic.Apply(a, b);
            product.MoveToOuterDisposeScope();
            var live = scope.DisposablesCount;
            product.sum().Backward();
            Assert.Equal(live, scope.DisposablesCount);
        }
        Assert.Equal([5f, 5f, 5f], a.grad!.data<float>().ToArray());
        Assert.Null(b.grad);
    }

    [Fact]
    public void Without_gradients_nothing_is_recorded()
    {
        using var scope = NewDisposeScope();
        var a = ones(3, requires_grad: true);
        var bypassed = new Arithmetic();
        using (no_grad())
            Assert.False(Arithmetic.Apply(a, a, bypassed).product.requires_grad);
        Assert.False(bypassed.Saved);
        Assert.False(Arithmetic.Apply(ones(3), ones(3), bypassed).product.requires_grad);
        Assert.False(bypassed.Saved);
        Assert.True(Arithmetic.Apply(a, a, bypassed).product.requires_grad);
        Assert.True(bypassed.Saved);
    }

    /// <summary>
    /// TorchSharp counts a wrapper of an undefined tensor when it is made, and not when it is disposed. Backward gets one for each
    /// output without gradient, so a balance of live tensors must know them.
    /// </summary>
    private static class UndefinedGradients
    {
        private static long s_count;

        public static void Add(Tensor?[] gradients) => Interlocked.Add(ref s_count, gradients.Count(gradient => gradient is null));

        public static long Taken() => Interlocked.Exchange(ref s_count, 0);
    }

    /// <summary>Product and sum of two tensors; an absent one counts as 0.</summary>
    /// <remarks>
    /// No operation here takes a <see cref="Scalar"/>, and so not <c>a + b</c>: TorchSharp does not keep it alive during the native
    /// call, which then reads freed memory if the collector runs just then.
    /// </remarks>
    private sealed class Arithmetic : FlaFunction
    {
        public bool FailForward { get; init; }
        public bool FailBackward { get; init; }
        public bool OmitProduct { get; init; }
        public bool Saved { get; private set; }
        public WeakReference<Tensor>? Returned { get; private set; }

        public static (Tensor product, Tensor? sum) Apply(Tensor a, Tensor b, Arithmetic? function = null)
        {
            var outputs = (function ?? new Arithmetic()).Run(a, b);
            return (outputs[0]!, outputs[1]);
        }

        protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
        {
            saved?.Save(inputs[0], inputs[1]);
            Saved = saved is not null;
            if (FailForward)
                throw new InvalidOperationException("planned");
            var (a, b) = (inputs[0], inputs[1]!);
            return [OmitProduct ? null : a! * b, a is null ? b.clone() : Sum(a, b)];
        }

        private static Tensor Sum(Tensor x, Tensor y) => stack([x, y]).sum(dim: 0);

        protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
        {
            if (FailBackward)
                throw new InvalidOperationException("planned");
            var (product, sum) = (gradOutputs[0], gradOutputs[1]);
            if (!OmitProduct)
                UndefinedGradients.Add(gradOutputs);
            var gradient = Gradient(saved[1]!);
            Returned = new WeakReference<Tensor>(gradient!);
            return [gradient, Gradient(saved[0])];

            // d(a b) = b da, d(a + b) = da; the incoming gradient itself may be handed on
            Tensor? Gradient(Tensor? other) =>
                product is null ? sum : sum is null ? product * other! : Sum(product * other!, sum);
        }
    }

    /// <summary>Saves a tensor of its own, and notes the memory in use when its backward starts.</summary>
    private sealed class Hoard(List<long> inUse) : FlaFunction
    {
        protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
        {
            saved?.Save(ones(BlockElements));
            return [inputs[0]! * 2];
        }

        protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
        {
            inUse.Add(NativeMemory.Megabytes());
            return [gradOutputs[0]! * 2];
        }
    }
}
