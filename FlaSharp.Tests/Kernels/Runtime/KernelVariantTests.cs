using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class KernelVariantTests
{
    private static readonly KernelVariant s_variant = new("Op/a.cu", "a", ["K=64", "V=128"], 256, 1024);

    [Fact]
    public void Equal_contents_are_equal()
    {
        var same = new KernelVariant("Op/a.cu", "a", new List<string> { "K=64", "V=128" }, 256, 1024);
        Assert.Equal(s_variant, same);
        Assert.Equal(s_variant.GetHashCode(), same.GetHashCode());
    }

    [Fact]
    public void Any_other_content_is_another_variant()
    {
        KernelVariant[] others =
        [
            s_variant with { Source = "Op/b.cu" },
            s_variant with { Entry = "b" },
            s_variant with { Defines = ["K=64", "V=129"] },
            s_variant with { Defines = ["K=64"] },
            s_variant with { Threads = 128 },
            s_variant with { SharedBytes = 2048 },
        ];
        Assert.All(others, other => Assert.NotEqual(s_variant, other));
        Assert.Equal(others.Length, others.Distinct().Count());
    }
}
