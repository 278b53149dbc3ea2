using FlaSharp.Kernels.Activation;
using FlaSharp.Kernels.Attention;
using FlaSharp.Kernels.Conv;
using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Norm;
using FlaSharp.Kernels.Rotary;
using FlaSharp.Kernels.SelectiveScan;
using FlaSharp.Kernels.Ssd;

namespace FlaSharp.Kernels.Runtime;

/// <summary>Kernels that stand for all that this library can ask for: the tests compile them, without a GPU.</summary>
internal static class KernelCatalog
{
    // Each operation's launcher adds the function that lists its own.
    private static readonly Func<CompilerTarget, IEnumerable<KernelVariant>>[] s_operations =
    [
        GlaChunkKernels.Variants, GlaSmallKernels.Variants, GlaRecurrentKernels.Variants, DecayGateKernels.Variants,
        SwiGluKernels.Variants, RmsNormKernels.Variants, CausalConvKernels.Variants, SelectiveScanKernels.Variants,
        SsdChunkKernels.Variants, SsdRecurrenceKernel.Variants, RotaryKernels.Variants, AttentionForwardKernels.Variants,
        AttentionBackwardKernels.Variants, AttentionDecodeKernels.Variants, AttentionAppendKernels.Variants,
    ];

    public static IEnumerable<KernelVariant> AllVariants(CompilerTarget target) =>
        s_operations.SelectMany(variants => variants(target)).Distinct();
}
