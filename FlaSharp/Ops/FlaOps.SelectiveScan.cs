using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Kernels.SelectiveScan;
using FlaSharp.Ops.Reference;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

public static partial class FlaOps
{
    /// <summary>
    /// The selective scan of Mamba (Gu and Dao, 2023, <see href="https://arxiv.org/abs/2312.00752"/>), per channel e:
    /// <c>h[t] = exp(delta[t] * a) h[t-1] + delta[t] * u[t] * b[t]</c> and
    /// <c>y[t] = (h[t] . c[t] + d * u[t]) * silu(z[t])</c>, with a state h of N numbers. All inputs and states have gradients.
    /// </summary>
    /// <param name="u">[B, T, E], float32, float16 or bfloat16; any strides, as for all inputs.</param>
    /// <param name="delta">[B, T, E], the step sizes, in the dtype of u.</param>
    /// <param name="a">[E, N], float32, the decay rates themselves, negative, or see <paramref name="aIsLog"/>.</param>
    /// <param name="b">
    /// [B, T, N], or [B, T, G, N] where G divides E and channel e uses group e / (E / G); in the dtype of u.
    /// </param>
    /// <param name="c">Like <paramref name="b"/>.</param>
    /// <param name="d">[E], float32: the skip connection.</param>
    /// <param name="z">[B, T, E], in the dtype of u: the gate.</param>
    /// <param name="deltaBias">[E], float32: added to delta.</param>
    /// <param name="deltaSoftplus">Whether delta, after the bias, goes through softplus.</param>
    /// <param name="initialState">
    /// float32 [S, E, N], the state before the first token; S is B, or the number of packed sequences.
    /// </param>
    /// <param name="outputFinalState">Whether to return the state after the last token.</param>
    /// <param name="cuSeqlens">
    /// int32 or int64 [S + 1]: B is 1, and sequence s holds the tokens from cuSeqlens[s] up to cuSeqlens[s + 1]. Sequences do not
    /// see each other; an empty one keeps its state.
    /// </param>
    /// <param name="updateState">
    /// Whether the state after the last token is written over <paramref name="initialState"/>, which a decoding step needs no
    /// longer; then it is the final state that is returned. The CUDA kernel does that in place, all else by a copy. Not while
    /// gradients are recorded, nor before the backward pass of an earlier call with that state.
    /// </param>
    /// <param name="aIsLog">
    /// Whether a holds log(-a), as the parameter A_log of a Mamba checkpoint does; its gradient is by that, then.
    /// </param>
    /// <returns>output [B, T, E] in the dtype of u; finalState float32 [S, E, N], or null.</returns>
    /// <exception cref="ArgumentException">A shape, dtype, device or <paramref name="cuSeqlens"/> does not fit; or a state to
    /// update is absent, not contiguous or requires a gradient.</exception>
    /// <exception cref="InvalidOperationException">A state is to be updated while gradients are recorded.</exception>
    /// <exception cref="NotSupportedException">Its CUDA kernel cannot run, and <see cref="CudaKernels.Strict"/> is set.
    /// </exception>
    public static (Tensor output, Tensor? finalState) SelectiveScan(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c,
        Tensor? d = null, Tensor? z = null, Tensor? deltaBias = null, bool deltaSoftplus = false,
        Tensor? initialState = null, bool outputFinalState = false, Tensor? cuSeqlens = null, bool updateState = false,
        bool aIsLog = false)
    {
        Guard.Shape(u, "[B, T, E]", [-1, -1, -1]);
        Guard.NotEmpty(u, "[B, T, E]");
        Guard.Floating(u);
        long batch = u.size(0), time = u.size(1), channels = u.size(2);
        Guard.Shape(delta, "[B, T, E]", [batch, time, channels]);
        Guard.Shape(a, "[E, N]", [channels, -1]);
        Guard.NotEmpty(a, "[E, N]");
        var states = a.size(1);
        ArgumentNullException.ThrowIfNull(b);
        var grouped = b.dim() == 4;
        var letters = grouped ? "[B, T, G, N]" : "[B, T, N]";
        long[] shape = grouped ? [batch, time, b.size(2), states] : [batch, time, states];
        Guard.Shape(b, letters, shape);
        Guard.NotEmpty(b, letters);
        Guard.Shape(c, letters, shape);
        if (grouped && channels % b.size(2) != 0)
            throw new ArgumentException(
                $"G must divide E, but b has G = {b.size(2)} groups for E = {channels} channels.", nameof(b));
        Guard.ShapeIfGiven(d, "[E]", [channels]);
        Guard.ShapeIfGiven(z, "[B, T, E]", [batch, time, channels]);
        Guard.ShapeIfGiven(deltaBias, "[E]", [channels]);
        var sequences = Sequences.Of(batch, time, cuSeqlens);
        Guard.ShapeIfGiven(initialState, "[S, E, N]", [sequences.Count, channels, states]);
        Guard.SameDtype(u, nameof(u), (delta, nameof(delta)), (b, nameof(b)), (c, nameof(c)), (z, nameof(z)));
        Guard.Float32IfGiven(a);
        Guard.Float32IfGiven(d);
        Guard.Float32IfGiven(deltaBias);
        Guard.Float32IfGiven(initialState);
        Guard.Operands(u, nameof(u), (delta, nameof(delta)), (a, nameof(a)), (b, nameof(b)), (c, nameof(c)), (d, nameof(d)),
            (z, nameof(z)), (deltaBias, nameof(deltaBias)), (initialState, nameof(initialState)));

        if (updateState)
            CheckUpdate(initialState, is_grad_enabled()
                && Array.Exists([u, delta, a, b, c, d, z, deltaBias], tensor => tensor is { requires_grad: true }));

        using var scope = NewDisposeScope();
        var wanted = outputFinalState || updateState;
        var hasKernel = CudaOperation.HasKernel(nameof(SelectiveScan), u);
        FlaFunction function = hasKernel
            ? new SelectiveScanCudaFunction(sequences, deltaSoftplus, wanted, updateState, aIsLog)
            : u.device_type == DeviceType.CPU
                ? new SelectiveScanFunction(sequences, deltaSoftplus, wanted)
                : new SelectiveScanComposed(sequences, deltaSoftplus, wanted);
        if (!hasKernel)
        {
            a = aIsLog ? -a.exp() : a;
            (b, c) = grouped ? (b, c) : (b.unsqueeze(2), c.unsqueeze(2));
        }
        var outputs = function.Run(u, delta, a, b, c, d, z, deltaBias, initialState);
        var output = outputs[0]!.MoveToOuterDisposeScope();
        if (!updateState)
            return (output, outputs[1]?.MoveToOuterDisposeScope());
        if (outputs[1] is { } finalState)
            initialState!.copy_(finalState);
        return (output, outputFinalState ? initialState : null);
    }

    /// <summary>What computes <see cref="SelectiveScan"/> for such inputs, and into how many parts time is cut.</summary>
    /// <param name="u">[B, T, E]: device, sizes and dtype.</param>
    /// <param name="groups">G, of b and c.</param>
    /// <param name="cuSeqlens">The packed sequences that <see cref="SelectiveScan"/> is called with.</param>
    /// <exception cref="ArgumentException">u has no such shape, or cuSeqlens does not fit it.</exception>
    public static OperationPath PlanSelectiveScan(Tensor u, long groups = 1, Tensor? cuSeqlens = null)
    {
        Guard.Shape(u, "[B, T, E]", [-1, -1, -1]);
        Guard.NotEmpty(u, "[B, T, E]");
        Guard.Divides(u.Size(2), groups, "E of u", nameof(groups));
        var sequences = Sequences.Of(u.Size(0), u.Size(1), cuSeqlens);
        var plan = OperationPaths.On(u.device).Single(path => path.Operation == nameof(SelectiveScan));
        if (plan.Path != CudaPath)
            return plan;
        var gpu = GpuDevice.Get(Math.Max(0, u.device_index));
        var (count, length, multiprocessors) = (sequences.Count, sequences.MaxLength, gpu.Info.MultiprocessorCount);
        var forward = SelectiveScanCut.Forward(u.Size(2), groups, count, length, multiprocessors);
        var backward = SelectiveScanCut.Backward(u.Size(2), groups, count, length, multiprocessors, u.dtype.Element()!.Value);
        return plan with
        {
            Reason = $"{plan.Reason} To keep {gpu.Info.MultiprocessorCount} multiprocessors busy, time is cut into "
                + $"{forward.Segments} parts{(forward.IsNarrow ? " and blocks are narrow" : "")}; backward into "
                + $"{backward.Segments}.",
        };
    }
}
