using System.IO.Compression;
using FlaSharp.Tests.TestSupport;
using Xunit;

namespace FlaSharp.Tests.Packaging;

/// <summary>What a user gets from the packages, with nothing of this repository around.</summary>
public sealed class PackageTests(PackedFlaSharp packed) : IClassFixture<PackedFlaSharp>
{
    private static readonly string s_runtime = Path.Combine("runtimes", "linux-x64", "native", "libLibTorchSharp.so");

    [Theory]
    [InlineData("FlaSharp")]
    [InlineData("FlaSharp.Kernels")]
    public void A_package_has_its_documents_and_symbols(string id)
    {
        _ = packed.Application;
        using var package = ZipFile.OpenRead(Path.Combine(packed.Feed, $"{id}.{packed.Version}.nupkg"));
        var files = package.Entries.Select(entry => entry.FullName).ToList();
        Assert.Contains("README.md", files);
        Assert.Contains($"lib/net10.0/{id}.dll", files);
        Assert.Contains($"lib/net10.0/{id}.xml", files);
        using var specification = new StreamReader(package.GetEntry($"{id}.nuspec")!.Open());
        Assert.Contains("<license type=\"expression\">MIT</license>", specification.ReadToEnd());

        using var symbols = ZipFile.OpenRead(Path.Combine(packed.Feed, $"{id}.{packed.Version}.snupkg"));
        Assert.Contains($"lib/net10.0/{id}.pdb", symbols.Entries.Select(entry => entry.FullName));
    }

    [Fact]
    public void An_application_that_references_the_package_alone_runs()
    {
        RequireLinux();
        packed.Clean();
        Assert.Contains("the last step sums to 160", DotNet.Run(packed.Application, "run", "-c", "Release")); // 2 heads, 4 values, 5 steps of 4
    }

    [Fact]
    public void One_flag_of_the_native_library_changes_and_building_again_changes_nothing()
    {
        RequireLinux();
        packed.Clean();
        DotNet.Run(packed.Application, "build", "-c", "Release", "-p:FlaSharpWeakenGlibcxx=always");
        var weakened = Path.Combine(packed.Application, "obj", "Release", "net10.0", "FlaSharp", "always", "libLibTorchSharp.so");
        AssertWeakened(weakened);
        AssertWeakened(Path.Combine(packed.Application, "bin", "Release", "net10.0", s_runtime));

        var written = File.GetLastWriteTimeUtc(weakened);
        DotNet.Run(packed.Application, "build", "-c", "Release", "-p:FlaSharpWeakenGlibcxx=always");
        Assert.Equal(written, File.GetLastWriteTimeUtc(weakened));
    }

    [Fact]
    public void The_change_can_be_switched_off()
    {
        RequireLinux();
        packed.Clean();
        DotNet.Run(packed.Application, "build", "-c", "Release", "-p:FlaSharpWeakenGlibcxx=never");
        Assert.False(Directory.Exists(Path.Combine(packed.Application, "obj", "Release", "net10.0", "FlaSharp")));
        Assert.Equal(File.ReadAllBytes(PackedFlaSharp.OriginalLibrary),
            File.ReadAllBytes(Path.Combine(packed.Application, "bin", "Release", "net10.0", s_runtime)));
    }

    [Fact]
    public void A_self_contained_application_gets_the_changed_library()
    {
        RequireLinux();
        packed.Clean();
        DotNet.Run(packed.Application, "publish", "-c", "Release", "-r", "linux-x64", "--self-contained", "-o", "bin/published",
            "-p:FlaSharpWeakenGlibcxx=always", "-p:WithoutLibtorch=true");
        AssertWeakened(Path.Combine(packed.Application, "bin", "published", "libLibTorchSharp.so"));
    }

    private static void RequireLinux() => Assert.SkipUnless(
        OperatingSystem.IsLinux() && System.Runtime.InteropServices.RuntimeInformation.OSArchitecture
            == System.Runtime.InteropServices.Architecture.X64, "The change concerns 64-bit Linux.");

    /// <summary>The bit VER_FLG_WEAK, and none but it, differs from the library in the package cache.</summary>
    private static void AssertWeakened(string path)
    {
        var original = File.ReadAllBytes(PackedFlaSharp.OriginalLibrary);
        var changed = File.ReadAllBytes(path);
        Assert.Equal(original.Length, changed.Length);
        var different = Enumerable.Range(0, original.Length).Where(i => original[i] != changed[i]).ToList();
        var position = Assert.Single(different);
        Assert.Equal(original[position] | 2, changed[position]);
    }
}
