using FlaSharp.Interop;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Ops.Reference;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

public static partial class FlaOps
{
    /// <summary>
    /// The state space duality of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060). Per head h_t = exp(a dt_t) h_{t-1} + dt_t x_t b_t^T,
    /// y_t = h_t c_t + d x_t, and, where <paramref name="z"/> is given, y_t silu(z_t). All floating-point inputs get gradients.
    /// </summary>
    /// <param name="x">[B, T, H, P], float32, float16 or bfloat16; any strides, here and below.</param>
    /// <param name="dt">[B, T, H], the step sizes in time units, in x's dtype or float32.</param>
    /// <param name="a">[H], the decay rate itself, negative, or see <paramref name="aIsLog"/>; x's dtype or float32.</param>
    /// <param name="b">[B, T, G, N] in x's dtype. G divides H; head h reads group h / (H / G).</param>
    /// <param name="c">[B, T, G, N] in x's dtype.</param>
    /// <param name="d">[H] or [H, P], the weight of the direct path; x's dtype or float32.</param>
    /// <param name="z">[B, T, H, P] in x's dtype, the output gate.</param>
    /// <param name="dtBias">[H], added to <paramref name="dt"/>; x's dtype or float32.</param>
    /// <param name="dtSoftplus">Take softplus of dt, after the bias.</param>
    /// <param name="dtLimit">Clamp dt to these bounds, after softplus. No gradient flows where a bound holds.</param>
    /// <param name="initialState">float32 [S, H, P, N], or null for zero. S is B, or the number of packed sequences.</param>
    /// <param name="outputFinalState">Whether to return the state after the last token of each sequence.</param>
    /// <param name="cuSeqlens">int32 or int64 [S + 1]: the sequences lie one after the other in a single row, sequence s from
    /// cuSeqlens[s] up to cuSeqlens[s + 1]; they may be empty. B must then be 1.</param>
    /// <param name="updateState">Whether the state after the last token is written over <paramref name="initialState"/>, which a
    /// decoding step needs no longer; then it is the final state that is returned. A few tokens on a GPU do that in place, all
    /// else by a copy. Not while gradients are recorded, nor before the backward pass of an earlier call with that state.</param>
    /// <param name="aIsLog">Whether a holds log(-a), as a checkpoint's A_log does; its gradient is by that, then.</param>
    /// <returns>The output [B, T, H, P] in x's dtype, and the final state, float32 [S, H, P, N], or null.</returns>
    /// <exception cref="ArgumentException">An input has another shape, dtype or device; or a state to update is absent, not
    /// contiguous or requires a gradient.</exception>
    /// <exception cref="InvalidOperationException">A state is to be updated while gradients are recorded.</exception>
    /// <exception cref="NotSupportedException">Its CUDA kernel cannot run, and <see cref="CudaKernels.Strict"/> is set.
    /// </exception>
    public static (Tensor output, Tensor? finalState) Ssd(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c,
        Tensor? d = null, Tensor? z = null, Tensor? dtBias = null, bool dtSoftplus = false, (double min, double max)? dtLimit = null,
        Tensor? initialState = null, bool outputFinalState = false, Tensor? cuSeqlens = null, bool updateState = false,
        bool aIsLog = false)
    {
        var sequences = CheckSsd(x, dt, a, b, c, d, z, dtBias, dtLimit, initialState, cuSeqlens);

        var gradients = is_grad_enabled() && HasGradient(x, dt, a, b, c, d, z, dtBias, initialState);
        if (updateState)
            CheckUpdate(initialState, gradients);
        var plan = SsdPlan.Of(x, b.Size(3), sequences, gradients);
        if (plan.Missing is not null)
            CudaRuntime.FallBack(nameof(Ssd), plan.Missing);

        var inPlace = updateState && plan.Path == CudaPath && plan.Tile is null;
        var (output, finalState) = plan.Path == CudaPath
            ? SsdOnGpu(plan, x, dt, a, b, c, d, z, dtBias, new(dtSoftplus, dtLimit, aIsLog), initialState, sequences,
                outputFinalState || updateState, inPlace, gradients)
            : SsdElsewhere(x, dt, a, b, c, d, z, dtBias, new(dtSoftplus, dtLimit, aIsLog), initialState, sequences,
                outputFinalState || updateState);
        if (!updateState || inPlace)
            return (output, outputFinalState ? finalState : null);
        using (finalState)
            initialState!.copy_(finalState!);
        return (output, outputFinalState ? initialState : null);
    }

    /// <summary>How <see cref="Ssd"/> runs for such inputs, and why.</summary>
    /// <param name="x">[B, T, H, P]: device, sizes, dtype, and whether a gradient is recorded.</param>
    /// <param name="stateSize">N.</param>
    /// <param name="cuSeqlens">The packed sequences that <see cref="Ssd"/> is called with.</param>
    /// <exception cref="ArgumentException">x has no such shape, or cuSeqlens does not fit it.</exception>
    public static OperationPath PlanSsd(Tensor x, long stateSize, Tensor? cuSeqlens = null)
    {
        Guard.Shape(x, "[B, T, H, P]", [-1, -1, -1, -1]);
        Guard.AtLeast(stateSize, 1);
        var sequences = Sequences.Of(x.Size(0), x.Size(1), cuSeqlens);
        var plan = SsdPlan.Of(x, stateSize, sequences, is_grad_enabled() && x.requires_grad);
        return new OperationPath(nameof(Ssd), plan.Path, plan.Reason);
    }

    private static bool HasGradient(params ReadOnlySpan<Tensor?> tensors)
    {
        foreach (var tensor in tensors)
            if (tensor is { requires_grad: true })
                return true;
        return false;
    }

    /// <summary>With the CUDA kernels, as planned.</summary>
    private static (Tensor output, Tensor? finalState) SsdOnGpu(SsdPlan plan, Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c,
        Tensor? d, Tensor? z, Tensor? dtBias, SsdStepOptions options, Tensor? initialState, Sequences sequences,
        bool outputFinalState, bool updateState, bool gradients)
    {
        using var scope = NewDisposeScope();
        var (rates, direct, bias) =
            (a.InDtype(ScalarType.Float32), d?.InDtype(ScalarType.Float32), dtBias?.InDtype(ScalarType.Float32));
        if (plan.Tile is not { } tile)
        {
            var (steps, state) = SsdSteps.Run(x, dt, rates, b, c, direct, z, bias, options, initialState, sequences,
                outputFinalState, updateState);
            return (steps.MoveToOuterDisposeScope(), updateState ? state : state?.MoveToOuterDisposeScope());
        }

        // Backward needs the output as it is before the gate, so with gradients the gate is an operation of its own.
        var outputs = new SsdChunkFunction(tile, options, sequences, outputFinalState, gradients ? null : z)
            .Run(x, dt, rates, b, c, direct, bias, initialState);
        var output = z is null || !gradients ? outputs[0]! : SwiGlu(z, outputs[0]!);
        return (output.MoveToOuterDisposeScope(), outputs[1]?.MoveToOuterDisposeScope());
    }

    /// <summary>With the CPU's kernels or TorchSharp's operations.</summary>
    private static (Tensor output, Tensor? finalState) SsdElsewhere(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d,
        Tensor? z, Tensor? dtBias, SsdStepOptions options, Tensor? initialState, Sequences sequences, bool outputFinalState)
    {
        using var scope = NewDisposeScope();
        var step = StepSizes(dt, dtBias, options);
        var rates = a.to(ScalarType.Float32);
        var logDecay = step * (options.IsLog ? -rates.exp() : rates);
        var (x32, b32, c32) = (x.to(ScalarType.Float32), b.to(ScalarType.Float32), c.to(ScalarType.Float32));
        var direct = d?.to(ScalarType.Float32);
        direct = direct?.dim() == 1 ? direct.unsqueeze(-1).expand(-1, x.size(3)) : direct;

        Tensor output;
        Tensor? finalState;
        if (x.device_type == DeviceType.CPU)
        {
            var outputs = new SsdFunction(sequences, outputFinalState).Run(x32, step, logDecay, b32, c32, direct, initialState);
            (output, finalState) = (outputs[0]!, outputs[1]);
        }
        else
        {
            (output, finalState) = SsdChunk.Run(x32, step, logDecay, b32, c32, initialState, sequences);
            output = direct is null ? output : output.add(direct * x32, HeldScalar.One);
        }
        if (z is not null)
            output *= nn.functional.silu(z.to(ScalarType.Float32));
        return (output.to(x.dtype).MoveToOuterDisposeScope(), outputFinalState ? finalState!.MoveToOuterDisposeScope() : null);
    }

    private static Tensor StepSizes(Tensor dt, Tensor? bias, SsdStepOptions options)
    {
        var step = dt.to(ScalarType.Float32);
        if (bias is not null)
            step += bias.to(ScalarType.Float32);
        if (options.Softplus)
            step = nn.functional.softplus(step);
        return options.Limit is var (min, max) ? step.clamp(min, max) : step;
    }

    private static Sequences CheckSsd(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? z, Tensor? dtBias,
        (double min, double max)? dtLimit, Tensor? initialState, Tensor? cuSeqlens)
    {
        Guard.Shape(x, "[B, T, H, P]", [-1, -1, -1, -1]);
        Guard.NotEmpty(x, "[B, T, H, P]");
        var (batch, time, heads, headSize) = (x.size(0), x.size(1), x.size(2), x.size(3));
        Guard.Shape(dt, "[B, T, H]", [batch, time, heads]);
        Guard.Shape(a, "[H]", [heads]);
        Guard.Shape(b, "[B, T, G, N]", [batch, time, -1, -1]);
        Guard.NotEmpty(b, "[B, T, G, N]");
        Guard.Divides(heads, b.size(2), "H", "G");
        Guard.Shape(c, "[B, T, G, N]", b.shape);
        if (d is not null && d.dim() != 1)
            Guard.Shape(d, "[H] or [H, P]", [heads, headSize]);
        else
            Guard.ShapeIfGiven(d, "[H] or [H, P]", [heads]);
        Guard.ShapeIfGiven(z, "[B, T, H, P]", x.shape);
        Guard.ShapeIfGiven(dtBias, "[H]", [heads]);
        if (dtLimit is var (min, max) && !(min <= max))
            throw new ArgumentException($"dtLimit must be (min, max) with min <= max, but is ({min}, {max}).", nameof(dtLimit));
        var sequences = Sequences.Of(batch, time, cuSeqlens);
        Guard.ShapeIfGiven(initialState, "[S, H, P, N]", [sequences.Count, heads, headSize, b.size(3)]);

        Guard.Floating(x);
        Guard.SameDtype(x, nameof(x), (b, nameof(b)), (c, nameof(c)), (z, nameof(z)));
        Guard.Float32IfGiven(initialState);
        foreach (var (tensor, name) in (ReadOnlySpan<(Tensor?, string)>)[(dt, nameof(dt)), (a, nameof(a)), (d, nameof(d)), (dtBias, nameof(dtBias))])
            if (tensor is not null && tensor.dtype != ScalarType.Float32)
                Guard.SameDtype(x, nameof(x), (tensor, name));
        Guard.Operands(x, nameof(x), (dt, nameof(dt)), (a, nameof(a)), (b, nameof(b)), (c, nameof(c)), (d, nameof(d)), (z, nameof(z)),
            (dtBias, nameof(dtBias)), (initialState, nameof(initialState)));
        return sequences;
    }
}
