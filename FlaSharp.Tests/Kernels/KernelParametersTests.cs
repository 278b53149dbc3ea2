using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels;

/// <summary>Sizes of parameters are compared where all is compiled, in <see cref="KernelCompilationTests"/>.</summary>
public sealed class KernelParametersTests
{
    [Fact]
    public void Every_kernel_has_its_structure() => Assert.Equal(
        CompilerTarget.Binary.SelectMany(KernelCatalog.AllVariants).Select(variant => variant.Source).Distinct()
            .Order(StringComparer.Ordinal),
        KernelParameters.Types.Keys.Order(StringComparer.Ordinal));

    [Fact]
    public void A_cubin_tells_the_size_of_its_parameter()
    {
        TestKernels.RequireNvrtc();
        var compiler = new KernelCompiler(TestKernels.Sources, CubinCache.Default);
        var cubin = compiler.Compile(TestKernels.Axpy, CompilerTarget.Sm90a).Image;
        Assert.Equal(KernelParameters.SizeOf(typeof(TestKernels.Parameters)),
            KernelParameters.SizeIn(cubin, TestKernels.Axpy.Entry));
        Assert.Equal(-1, KernelParameters.SizeIn(cubin, "another"));
    }
}
