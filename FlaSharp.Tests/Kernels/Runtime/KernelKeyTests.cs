using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class KernelKeyTests
{
    private static readonly KernelSource s_source = WithHeaders(("fla/b.cuh", "b"), ("fla/c.cuh", "c"));
    private static readonly KernelVariant s_variant = new("Op/a.cu", "a", ["K=64"], 256, 0);
    private static readonly Version s_version = new(12, 4);

    [Fact]
    public void The_same_inputs_give_the_same_key() =>
        Assert.Equal(Key(s_source, s_variant, CompilerTarget.Sm80, s_version),
            Key(s_source with { }, s_variant with { Defines = ["K=64"] }, CompilerTarget.Sm80, new Version(12, 4)));

    [Fact]
    public void Every_input_changes_the_key()
    {
        string[] keys =
        [
            Key(s_source, s_variant, CompilerTarget.Sm80, s_version),
            Key(s_source with { Name = "Op/b.cu" }, s_variant, CompilerTarget.Sm80, s_version),
            Key(s_source with { Text = "code " }, s_variant, CompilerTarget.Sm80, s_version),
            Key(WithHeaders(("fla/b.cuh", "b"), ("fla/c.cuh", "d")), s_variant, CompilerTarget.Sm80, s_version),
            Key(WithHeaders(("fla/b.cuh", "b"), ("fla/d.cuh", "c")), s_variant, CompilerTarget.Sm80, s_version),
            Key(WithHeaders(("fla/b.cuh", "b")), s_variant, CompilerTarget.Sm80, s_version),
            Key(WithHeaders(("fla/b.cu", "hb"), ("fla/c.cuh", "c")), s_variant, CompilerTarget.Sm80, s_version),
            Key(s_source, s_variant with { Entry = "b" }, CompilerTarget.Sm80, s_version),
            Key(s_source, s_variant with { Defines = ["K=65"] }, CompilerTarget.Sm80, s_version),
            Key(s_source, s_variant with { Defines = ["K=64", "V=64"] }, CompilerTarget.Sm80, s_version),
            Key(s_source, s_variant, CompilerTarget.Sm86, s_version),
            Key(s_source, s_variant, CompilerTarget.Ptx80, s_version),
            Key(s_source, s_variant, CompilerTarget.Sm80, new Version(12, 5)),
            Key(s_source, s_variant, CompilerTarget.Sm80, new Version(13, 4)),
        ];
        Assert.Equal(keys.Length, keys.Distinct().Count());
        Assert.All(keys, key => Assert.Matches("^[0-9a-f]{64}$", key));
    }

    private static KernelSource WithHeaders(params (string name, string text)[] headers) =>
        new("Op/a.cu", "code", [.. headers.Select(header => KeyValuePair.Create(header.name, header.text))]);

    private static string Key(KernelSource source, KernelVariant variant, CompilerTarget target, Version compiler)
    {
        var options = KernelCompiler.Options(variant, target, compiler);
        return Convert.ToHexStringLower(KernelKey.Of(source, variant.Entry, options, compiler));
    }
}
