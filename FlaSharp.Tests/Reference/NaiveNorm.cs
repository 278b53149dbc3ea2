using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Reference;

/// <summary>The norms as written in the papers; in the dtype of the inputs, float64 in the tests.</summary>
public static class NaiveNorm
{
    public static Tensor Rms(Tensor x, Tensor? weight, double eps) => Rms(x, weight, eps, x.size(-1));

    public static Tensor Gated(Tensor x, Tensor gate, Tensor? weight, double eps, string activation, bool normBeforeGate, long groupSize)
    {
        var a = activation == "sigmoid" ? 1 / (1 + exp(-gate)) : gate / (1 + exp(-gate));
        return normBeforeGate ? Rms(x, weight, eps, groupSize) * a : Rms(x * a, weight, eps, groupSize);
    }

    private static Tensor Rms(Tensor x, Tensor? weight, double eps, long groupSize)
    {
        var groups = Enumerable.Range(0, (int)(x.size(-1) / groupSize)).Select(i =>
        {
            var group = x.narrow(-1, i * groupSize, groupSize);
            return group / sqrt((group * group).sum(-1, keepdim: true) / groupSize + eps);
        }).ToArray();
        var normed = cat(groups, -1);
        return weight is null ? normed : normed * weight;
    }
}
