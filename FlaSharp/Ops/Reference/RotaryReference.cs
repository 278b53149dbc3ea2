using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops.Reference;

/// <summary>The rotary embedding in plain TorchSharp, for devices without a kernel.</summary>
internal static class RotaryReference
{
    /// <summary>x [B, T, H, K], cos and sin [T or B, T, rotaryDim / 2].</summary>
    public static Tensor Rotate(Tensor x, Tensor cos, Tensor sin, bool interleaved)
    {
        using var scope = NewDisposeScope();
        var half = cos.size(-1);
        var (c, s) = (cos.unsqueeze(-2), sin.unsqueeze(-2)); // the same for all heads
        var turning = x.narrow(-1, 0, 2 * half).InDtype(ScalarType.Float32);
        var pairs = interleaved ? turning.unflatten(3, half, 2) : turning.unflatten(3, 2, half).transpose(-1, -2);
        var (a, b) = (pairs.select(-1, 0), pairs.select(-1, 1));
        Tensor[] turned = [a * c - b * s, (b * c).add(a * s, HeldScalar.One)];
        var y = (interleaved ? stack(turned, -1).flatten(-2) : cat(turned, -1)).to(x.dtype);
        var rest = x.size(-1) - 2 * half;
        return (rest == 0 ? y : cat([y, x.narrow(-1, 2 * half, rest)], -1)).MoveToOuterDisposeScope();
    }
}
