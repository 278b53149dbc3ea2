using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Tests.Kernels;

/// <summary>
/// What <see cref="KernelCompilationTests"/> compiles for a GPU: every kernel at its extremes, and every variant that none of the
/// GPUs before it in <see cref="Targets"/> has. Registers and instructions hardly differ between them; tiles differ with the
/// shared memory, and so do the variants.
/// </summary>
internal static class CompiledVariants
{
    public static IReadOnlyList<CompilerTarget> Targets { get; } =
        [CompilerTarget.Sm90a, CompilerTarget.Sm86, CompilerTarget.Sm80, CompilerTarget.Sm89, CompilerTarget.Ptx80];

    public static IReadOnlyList<KernelVariant> Of(CompilerTarget target)
    {
        var before = Targets.TakeWhile(other => other != target).SelectMany(All).ToHashSet();
        var all = All(target);
        return [.. all.Where(variant => !before.Contains(variant)).Concat(all.GroupBy(Kernel).SelectMany(Extremes)).Distinct()];
    }

    /// <summary>How many there are, by kernel.</summary>
    public static IReadOnlyDictionary<string, int> Counts(CompilerTarget target) => Of(target)
        .GroupBy(Kernel).OrderBy(kernel => kernel.Key, StringComparer.Ordinal)
        .ToDictionary(kernel => kernel.Key, kernel => kernel.Count());

    /// <summary>All that a GPU has.</summary>
    public static List<KernelVariant> All(CompilerTarget target) =>
        [.. KernelCatalog.AllVariants(target).Append(TestKernels.Axpy).Append(TestKernels.BlockSum), .. BlockKernels.All(target)];

    /// <summary>Its source and entry point.</summary>
    public static string Kernel(KernelVariant variant) => $"{variant.Source}:{variant.Entry}";

    private static IEnumerable<KernelVariant> Extremes(IEnumerable<KernelVariant> variants)
    {
        var ordered = variants.OrderBy(variant => variant.SharedBytes).ThenBy(variant => variant.Threads).ToList();
        return [ordered[0], ordered[^1]];
    }
}
