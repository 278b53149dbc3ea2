using System.Collections.Concurrent;
using FlaSharp.Kernels.Interop;
using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels;

/// <summary>
/// Compiles every kernel for every GPU, as <see cref="CompiledVariants"/> says. The user's cache makes a second run fast; what a
/// compilation printed is kept with it.
/// </summary>
public sealed class KernelCompilationTests
{
    public static TheoryData<string> Targets => [.. CompiledVariants.Targets.Select(target => target.Architecture)];

    [Theory]
    [MemberData(nameof(Targets))]
    public void Every_variant_compiles_without_spills_and_serialisation(string architecture) =>
        Check(Target(architecture), CompiledVariants.Of);

    // Those of every GPU, which takes ten minutes: when a kernel's constants change.
    [Theory(Explicit = true)]
    [MemberData(nameof(Targets))]
    public void Every_variant_of_every_GPU(string architecture) => Check(Target(architecture), CompiledVariants.All);

    [Fact]
    public void Every_kernel_is_compiled_for_every_GPU_that_has_it_and_every_variant_for_one()
    {
        Assert.Equal([.. CompilerTarget.Binary, CompilerTarget.Ptx80], CompiledVariants.Targets.OrderBy(target => target.IsPtx)
            .ThenBy(target => target.Number));
        var missing = CompiledVariants.Targets.SelectMany(KernelCatalog.AllVariants).ToHashSet();
        missing.ExceptWith(CompiledVariants.Targets.SelectMany(CompiledVariants.Of));
        Assert.Empty(missing);
        foreach (var target in CompiledVariants.Targets)
        {
            var (counts, all) = (CompiledVariants.Counts(target), CompiledVariants.All(target));
            Assert.Equal(all.Select(CompiledVariants.Kernel).Distinct().Order(StringComparer.Ordinal), counts.Keys);
            var lines = counts.Select(count => $"{count.Value,6} {count.Key}").Prepend(
                $"{target}: {counts.Values.Sum()} of {all.Count}");
            TestContext.Current.TestOutputHelper!.WriteLine(string.Join('\n', lines));
        }
    }

    private static CompilerTarget Target(string architecture) =>
        CompiledVariants.Targets.Single(target => target.Architecture == architecture);

    private static void Check(CompilerTarget target, Func<CompilerTarget, IEnumerable<KernelVariant>> variants)
    {
        TestKernels.RequireNvrtc();
        var compiler = new KernelCompiler(TestKernels.Sources, CubinCache.Default);
        var problems = new ConcurrentBag<string>();
        Parallel.ForEach(variants(target), variant =>
        {
            foreach (var problem in Problems(compiler, variant, target))
                problems.Add($"{variant}: {problem}");
        });
        Assert.True(problems.IsEmpty, $"{problems.Count} problems for {target}:\n{string.Join('\n', problems.Order())}");
    }

    /// <summary>
    /// Bytes of a thread that may lie in local memory: none, with exceptions that are known.
    /// </summary>
    private static int AllowedSpillBytes(KernelVariant variant) => variant.Source switch
    {
        // What the warps that load and scale need for decays too strong for a frame, and only then.
        "Gla/chunk_forward.cu" when variant.Defines.Contains("PRODUCER_REGISTERS=80") => 448,
        // Sums over the state take up to 192 registers: a few numbers that a whole chunk of some 7,000 cycles needs once wait there.
        "Gla/chunk_forward.cu" or "Gla/chunk_backward.cu" => 160,
        // A few numbers of the unaligned form, before Hopper.
        "Gla/small_backward.cu" when variant.Defines.Contains("VECTOR=1") => 24,
        // Only chunks with decays too strong for a frame come here; the larger heads hold more sums than there are registers.
        "Gla/chunk_backward_pairs.cu" => 2560,
        // Rows of more than 8,192 leave each thread of a block few registers.
        "Norm/rms_norm_backward.cu" when variant.Threads == 1024 => 384,
        "Norm/rms_norm_backward.cu" when variant.Defines.Contains("PER_THREAD=24") => 96,
        // Addresses and numbers of a whole tile wait there while registers hold the states and decays of eight steps.
        "SelectiveScan/scan_backward.cu" => 64,
        // Sums of states and outputs, or of gradients, take almost all registers: a few numbers that a chunk needs once wait there.
        "Ssd/chunk_scan.cu" or "Ssd/chunk_backward.cu" => 128,
        // Numbers of the unaligned forms for rows of 1,024.
        "Norm/rms_norm_forward.cu" or "Norm/rms_norm_backward.cu" => 16,
        _ => 0,
    };

    private static List<string> Problems(KernelCompiler compiler, KernelVariant variant, CompilerTarget target)
    {
        CompiledKernel compiled;
        try
        {
            compiled = compiler.Compile(variant, target);
        }
        catch (NvrtcException e)
        {
            return [e.Message];
        }
        var report = CompileReport.Parse(compiled.Log, variant.Entry);
        var problems = report.Problems(AllowedSpillBytes(variant)).ToList();
        var shared = variant.SharedBytes + report.StaticSharedBytes;
        if (shared > target.MaxSharedBytes)
            problems.Add($"{shared} bytes of shared memory, but a block has {target.MaxSharedBytes}");
        if (!target.IsPtx && report.Registers == 0)
            problems.Add($"the log does not say how many registers it needs:\n{compiled.Log}");
        if (!target.IsPtx && KernelParameters.Types.TryGetValue(variant.Source, out var structure))
        {
            var (passed, taken) = (KernelParameters.SizeOf(structure), KernelParameters.SizeIn(compiled.Image, variant.Entry));
            if (passed != taken)
                problems.Add($"{structure} has {passed} bytes, the kernel's parameter {taken}");
        }
        return problems;
    }
}
