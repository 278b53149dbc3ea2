using FlaSharp.Tests.TestSupport;

namespace FlaSharp.Tests.Packaging;

/// <summary>
/// The packages, made from a copy of the sources under a version that no cache can know, and an application that has nothing
/// else of this repository. It stands in the system's temporary folder, so that no Directory.Build file of ours applies to it.
/// </summary>
public sealed class PackedFlaSharp : IDisposable
{
    private readonly TemporaryFolder _folder = new();
    private readonly string _version = $"0.1.0-test.{Guid.NewGuid():N}";
    private readonly Lazy<string> _application;

    public PackedFlaSharp()
    {
        Feed = Directory.CreateDirectory(_folder.File("feed")).FullName;
        _application = new(MakeApplication);
    }

    /// <summary>The folder of the packages.</summary>
    public string Feed { get; }

    /// <summary>The folder of an application that prints its result; made at first use.</summary>
    public string Application => _application.Value;

    public string Version => _version;

    private static string GlobalPackages => Environment.GetEnvironmentVariable("NUGET_PACKAGES")
        ?? Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".nuget", "packages");

    /// <summary>The native library as its package brings it.</summary>
    public static string OriginalLibrary => Path.Combine(
        GlobalPackages, "torchsharp", "0.107.0", "runtimes", "linux-x64", "native", "libLibTorchSharp.so");

    public void Dispose()
    {
        foreach (var package in new[] { "flasharp", "flasharp.kernels" })
            if (Path.Combine(GlobalPackages, package, _version) is var cached && Directory.Exists(cached))
                Directory.Delete(cached, recursive: true);
        _folder.Dispose();
    }

    /// <summary>Removes what earlier builds of the application left.</summary>
    public void Clean()
    {
        foreach (var output in new[] { "bin", "obj" })
            if (Directory.Exists(Path.Combine(Application, output)))
                Directory.Delete(Path.Combine(Application, output), recursive: true);
    }

    private string MakeApplication()
    {
        DotNet.RequireSdk();
        var source = Repository.Require();
        var copy = Directory.CreateDirectory(_folder.File("source")).FullName;
        foreach (var file in Directory.EnumerateFiles(source).Where(file => Path.GetExtension(file) is not ".sln"))
            File.Copy(file, Path.Combine(copy, Path.GetFileName(file)));
        foreach (var project in new[] { "FlaSharp", "FlaSharp.Kernels" })
            CopySources(Path.Combine(source, project), Path.Combine(copy, project));
        foreach (var project in new[] { "FlaSharp.Kernels", "FlaSharp" })
            DotNet.Run(copy, "pack", project, "-c", "Release", "-o", Feed, $"-p:Version={_version}");

        var application = Directory.CreateDirectory(_folder.File("application")).FullName;
        File.WriteAllText(Path.Combine(application, "nuget.config"),
            $"""<configuration><packageSources><add key="feed" value="{Feed}" /></packageSources></configuration>""");
        File.WriteAllText(Path.Combine(application, "Application.csproj"), $"""
            <Project Sdk="Microsoft.NET.Sdk">
              <PropertyGroup>
                <OutputType>Exe</OutputType>
                <TargetFramework>net10.0</TargetFramework>
                <CreateSymbolicLinksForCopyLocalIfPossible>true</CreateSymbolicLinksForCopyLocalIfPossible>
              </PropertyGroup>
              <ItemGroup>
                <PackageReference Include="FlaSharp" Version="[{_version}]" />
                <PackageReference Include="libtorch-cpu-linux-x64" Version="2.10.0" Condition="'$(WithoutLibtorch)' == ''" />
              </ItemGroup>
            </Project>
            """);
        File.WriteAllText(Path.Combine(application, "Program.cs"), """
            using FlaSharp.Ops;
            using static TorchSharp.torch;

            var x = ones(1, 5, 2, 4);
            var (output, _) = FlaOps.Gla(x, x, x, zeros_like(x), scale: 1);
            System.Console.WriteLine($"the last step sums to {output[0, 4].sum().item<float>()}");
            """);
        return application;
    }

    private static void CopySources(string from, string to)
    {
        Directory.CreateDirectory(to);
        foreach (var file in Directory.EnumerateFiles(from))
            File.Copy(file, Path.Combine(to, Path.GetFileName(file)));
        foreach (var folder in Directory.EnumerateDirectories(from))
            if (Path.GetFileName(folder) is not ("bin" or "obj"))
                CopySources(folder, Path.Combine(to, Path.GetFileName(folder)));
    }
}
