using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Autograd;

/// <summary>
/// One differentiable operation with a hand-written backward: the only place that touches TorchSharp's autograd.
/// An instance is one call; its fields hold the sizes and options, which both passes may read.
/// </summary>
/// <remarks>
/// <para>A plain <c>torch.autograd.MultiTensorFunction</c> lets the garbage collector free tensors that native code still reads,
/// keeps a copy of every output and all saved tensors until the graph dies, and ends the process when backward throws.
/// What is done about it here:</para>
/// <list type="bullet">
/// <item><see cref="Forward"/> runs before the graph node is made, so an exception in it leaves nothing behind.</item>
/// <item>TorchSharp's node gets only finished outputs, inside a dispose scope that frees the copies it makes of them.</item>
/// <item>Saved tensors are detached aliases held by <see cref="SavedTensors"/> and freed at the end of backward. Hence a graph
/// can be walked once: <c>retain_graph</c> is refused with an exception.</item>
/// <item>Gradients handed to native code stay alive until this thread's next callback: see <see cref="ParkedGradients"/>.</item>
/// <item>A leaf takes a gradient without a copy only if nothing else refers to that tensor object, as the parking place does. So
/// the graph goes to a leaf through a view of it, whose own node makes an object of the same memory for it.</item>
/// <item>An exception in <see cref="Backward"/> is kept and thrown by <see cref="TensorBackward.Backward"/>, or, after a plain
/// <c>loss.backward()</c>, by the next FlaSharp operation; the failed node's gradients are zero.</item>
/// </list>
/// </remarks>
internal abstract class FlaFunction
{
    /// <summary>Computes the outputs (a null output stays null) and saves what backward needs. Runs without grad mode.</summary>
    /// <param name="inputs">What was given to <see cref="Run"/>; absent optional inputs are null.</param>
    /// <param name="saved">Null when no gradient can be asked for: then nothing need be kept.</param>
    protected abstract Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved);

    /// <summary>Computes one gradient per input. Runs without grad mode, on a thread of the autograd engine's choice.</summary>
    /// <param name="saved">What <see cref="Forward"/> saved. Freed afterwards.</param>
    /// <param name="gradOutputs">One per output; null where nothing flowed into that output. Owned by the caller.</param>
    /// <returns>One per input; null where there is none, or where <see cref="SavedTensors.NeedsGrad"/> is false.</returns>
    protected abstract Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs);

    /// <summary>Runs the operation and, if an input requires a gradient, records it in the graph.</summary>
    /// <returns>The outputs, in the caller's dispose scope.</returns>
    public Tensor?[] Run(params Tensor?[] inputs)
    {
        BackwardFailure.ThrowIfAny();
        ParkedGradients.Release();

        var gradMode = is_grad_enabled();
        var saved = gradMode && Array.Exists(inputs, NeedsGrad) ? new SavedTensors(inputs) : null;

        using var scope = NewDisposeScope();
        Tensor?[] outputs;
        try
        {
            using (gradMode ? no_grad() : null)
                outputs = Forward(inputs, saved);
            if (saved is not null)
                outputs = Node.Attach(this, saved, inputs, outputs);
        }
        catch
        {
            saved?.Dispose();
            throw;
        }
        foreach (var output in outputs)
            output?.MoveToOuterDisposeScope();
        GC.KeepAlive(inputs);
        return outputs;

        static bool NeedsGrad(Tensor? input) => input is { requires_grad: true };
    }

    /// <summary>What TorchSharp sees: a function whose forward hands over outputs that are there already.</summary>
    private sealed class Node : autograd.MultiTensorFunction<Node>
    {
        private const string CallKey = "call";

        public override string Name => nameof(FlaFunction);

        public static Tensor?[] Attach(FlaFunction function, SavedTensors saved, Tensor?[] inputs, Tensor?[] outputs)
        {
            var present = new List<Tensor>(outputs.Length);
            foreach (var output in outputs)
                if (output is not null)
                    present.Add(output);
            var wanted = new TensorLayout?[inputs.Length];
            for (var i = 0; i < inputs.Length; i++)
                wanted[i] = saved.NeedsGrad[i] ? TensorLayout.Of(inputs[i]!) : null;
            var call = new Call(function, saved, Array.ConvertAll(outputs, output => output is not null), wanted);
            var arguments = new object?[2 + inputs.Length];
            (arguments[0], arguments[1]) = (call, present);
            for (var i = 0; i < inputs.Length; i++)
                arguments[2 + i] = wanted[i] is { } layout && inputs[i]!.is_leaf ? inputs[i]!.view(layout.Shape) : inputs[i];
            var wrapped = apply(arguments!);
            GC.KeepAlive(present);

            var next = 0;
            return Array.ConvertAll(outputs, output => output is null ? null : wrapped[next++]);
        }

        public override List<Tensor> forward(autograd.AutogradContext ctx, params object[] vars)
        {
            ctx.set_materialize_grads(false);
            ctx.save_data(CallKey, vars[0]);
            return (List<Tensor>)vars[1];
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, List<Tensor> grad_outputs)
        {
            ParkedGradients.Release();
            var call = (Call)ctx.get_data(CallKey);
            Tensor?[] gradients;
            try
            {
                gradients = call.Backward(grad_outputs);
            }
            catch (Exception exception) // a managed exception must not reach the native frames above
            {
                BackwardFailure.Set(exception);
                gradients = call.Zeros();
            }
            finally
            {
                foreach (var gradient in grad_outputs)
                    gradient.DetachFromDisposeScope().Dispose(); // an undefined one stays in its scope otherwise
            }
            ParkedGradients.Park(gradients);
            List<Tensor?> result = [null, null, .. gradients]; // the first two arguments of apply are no tensors
            return result!;
        }

        /// <summary>One recorded call: the operation, what it saved, and which of its outputs exist.</summary>
        private sealed class Call(FlaFunction function, SavedTensors saved, bool[] outputExists, TensorLayout?[] wanted)
        {
            public Tensor?[] Backward(List<Tensor> present)
            {
                using var _ = saved;
                if (is_grad_enabled())
                    throw new NotSupportedException(
                        $"{function.GetType().Name} has no second derivative: call backward without create_graph.");
                if (saved.IsDisposed)
                    throw new InvalidOperationException(
                        $"backward through {function.GetType().Name} ran twice. Its saved tensors are freed by the first pass " +
                        "(retain_graph is not supported): run the forward pass again.");

                using var scope = NewDisposeScope();
                using var noGrad = no_grad();
                var next = 0;
                var gradOutputs = Array.ConvertAll(outputExists,
                    exists => exists && present[next++] is { IsInvalid: false } gradient ? gradient : null);
                var gradients = function.Backward(saved, gradOutputs);
                if (gradients.Length != wanted.Length)
                    throw new InvalidOperationException(
                        $"{function.GetType().Name} returned {gradients.Length} gradients for {wanted.Length} inputs.");
                return Released(gradients, present);
            }

            /// <summary>
            /// What a failed pass hands to native code: <c>torch.autograd.grad</c> ends the process if a gradient is missing.
            /// </summary>
            public Tensor?[] Zeros()
            {
                using var noGrad = no_grad();
                return Array.ConvertAll(wanted, layout => layout?.Zeros().DetachFromDisposeScope());
            }

            /// <summary>The gradients outside every scope, each in memory of its own: a leaf keeps it and adds to it.</summary>
            private Tensor?[] Released(Tensor?[] gradients, List<Tensor> present)
            {
                var others = new List<MemoryRange>();
                foreach (var other in present)
                    if (!other.IsInvalid)
                        others.Add(MemoryRange.Of(other));
                saved.AddRanges(others);

                var released = new Tensor?[gradients.Length];
                for (var i = 0; i < gradients.Length; i++)
                {
                    if (wanted[i] is null || gradients[i] is not { } gradient)
                        continue;
                    if (saved.Owns(gradient))
                    {
                        released[i] = gradient.DetachFromDisposeScope();
                        continue;
                    }
                    var range = MemoryRange.Of(gradient);
                    released[i] = (others.Exists(range.Overlaps) ? gradient.clone() : gradient).DetachFromDisposeScope();
                    others.Add(range);
                }
                return released;
            }
        }
    }
}
