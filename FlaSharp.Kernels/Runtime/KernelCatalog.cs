using FlaSharp.Kernels.Gla;

namespace FlaSharp.Kernels.Runtime;

/// <summary>Every kernel that this library can ask for: the tests compile them all, on a machine without a GPU.</summary>
internal static class KernelCatalog
{
    // Each operation's launcher adds the function that lists its own.
    private static readonly Func<CompilerTarget, IEnumerable<KernelVariant>>[] s_operations = [GlaRecurrentKernels.Variants];

    public static IEnumerable<KernelVariant> AllVariants(CompilerTarget target) =>
        s_operations.SelectMany(variants => variants(target)).Distinct();
}
