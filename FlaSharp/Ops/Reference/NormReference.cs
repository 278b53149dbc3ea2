using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops.Reference;

/// <summary>The norms in plain TorchSharp, for devices without a kernel.</summary>
internal static class NormReference
{
    public static Tensor RmsNorm(Tensor x, Tensor? weight, double eps)
    {
        using var scope = NewDisposeScope();
        var normed = Normalize(x.InDtype(ScalarType.Float32), eps);
        return Weighted(normed, weight).to(x.dtype).MoveToOuterDisposeScope();
    }

    public static Tensor GatedRmsNorm(
        Tensor x, Tensor gate, Tensor? weight, double eps, bool isSwish, bool normBeforeGate, long groupSize)
    {
        using var scope = NewDisposeScope();
        var wideGate = gate.InDtype(ScalarType.Float32);
        var activated = isSwish ? nn.functional.silu(wideGate) : wideGate.sigmoid();
        var input = x.InDtype(ScalarType.Float32);
        if (!normBeforeGate)
            input = input * activated;
        var normed = Normalize(input.unflatten(input.dim() - 1, -1, groupSize), eps).flatten(-2);
        var output = Weighted(normed, weight);
        if (normBeforeGate)
            output = output * activated;
        return output.to(x.dtype).MoveToOuterDisposeScope();
    }

    private static Tensor Normalize(Tensor x, double eps) => x * ((x * x).mean([-1], keepdim: true) + eps).rsqrt();

    private static Tensor Weighted(Tensor x, Tensor? weight) =>
        weight is null ? x : x * weight.InDtype(ScalarType.Float32);
}
