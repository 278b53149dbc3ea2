using FlaSharp.Kernels.Runtime;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

/// <summary>The places on Linux; Windows differs in names only.</summary>
public sealed class NvrtcSearchTests : IDisposable
{
    private readonly TemporaryFolder _root = new();

    public NvrtcSearchTests() => Assert.SkipUnless(OperatingSystem.IsLinux(), "Linux's names.");

    public void Dispose() => _root.Dispose();

    [Fact]
    public void Hashed_names_beside_libtorch_are_found_without_builtins_and_alternatives()
    {
        var nvrtc = Make("torch/lib/libnvrtc-2bb82d1a.so.12");
        Make("torch/lib/libnvrtc.alt.so.12");
        var builtins = Make("torch/lib/libnvrtc-builtins.so");
        Make("torch/lib/libnvrtc-builtins.alt.so.12.8");
        Assert.Equal(nvrtc, Candidates("torch/lib").First());
        Assert.Equal([builtins], NvrtcSearch.Builtins(nvrtc));
    }

    [Theory]
    [InlineData("nvidia/cuda_nvrtc/lib/libnvrtc.so.12")]
    [InlineData("nvidia/cu13/lib/libnvrtc.so.13")]
    public void The_packages_beside_a_Python_torch_are_found(string file)
    {
        Directory.CreateDirectory(_root.File("site/torch/lib"));
        Directory.CreateDirectory(_root.File("site/nvidia/cublas/lib"));
        Assert.Equal(Make($"site/{file}"), Candidates("site/torch/lib").First());
    }

    [Fact]
    public void The_order_is_libtorch_Python_application_toolkit_loader()
    {
        string[] expected =
        [
            Make("site/torch/lib/libnvrtc-2bb82d1a.so.12"), Make("site/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"),
            Make("application/libnvrtc.so.12"), Make("cuda/lib64/libnvrtc.so.12.8"), Make("cuda/lib64/libnvrtc.so.12.4"),
        ];
        var found = Candidates("site/torch/lib", ("CUDA_HOME", _root.File("cuda"))).ToList();
        Assert.Equal(expected, found.Take(5));
        Assert.Equal(["libnvrtc.so.13", "libnvrtc.so.12"], found.TakeLast(2));
    }

    [Fact]
    public void What_the_user_names_is_taken_alone()
    {
        Make("torch/lib/libnvrtc.so.12");
        var mine = Make("mine/libnvrtc.so.12.4");
        Assert.Equal([mine], Candidates("torch/lib", (NvrtcSearch.Override, mine)));
        Assert.Equal([mine], Candidates("torch/lib", (NvrtcSearch.Override, _root.File("mine"))));
        Assert.Empty(Candidates("torch/lib", (NvrtcSearch.Override, _root.File("nowhere"))));
    }

    [Fact]
    public void Where_there_is_none_the_message_lists_every_place()
    {
        Directory.CreateDirectory(_root.File("site/nvidia/cu13/lib"));
        var search = Search("site/torch/lib", ("CUDA_PATH", _root.File("cuda")));
        Assert.DoesNotContain(search.Candidates(), candidate => candidate.StartsWith(_root.Path, StringComparison.Ordinal));

        var message = NvrtcLibrary.NotFound(search.Places, ["/x/libnvrtc.so.12 cannot be loaded"]);
        string[] places =
        [
            $"  {_root.File("site/torch/lib")} (beside libtorch)", $"  {_root.File("site/nvidia/cu13/lib")} (Python packages)",
            $"  {_root.File("cuda/lib64")} (CUDA_PATH)", "  libnvrtc.so.13 (system loader)", "  libnvrtc.so.12 (system loader)",
            "  /x/libnvrtc.so.12 cannot be loaded", "Name its file or folder in FLASHARP_NVRTC.",
        ];
        Assert.All(places, place => Assert.Contains(place, message.Split('\n')));
    }

    private IEnumerable<string> Candidates(string torch, params (string name, string value)[] environment) =>
        Search(torch, environment).Candidates();

    private NvrtcSearch Search(string torch, params (string name, string value)[] environment) =>
        new(environment.ToDictionary().GetValueOrDefault, _root.File(torch), [_root.File("application")]);

    private string Make(string file)
    {
        var path = _root.File(file);
        Directory.CreateDirectory(Path.GetDirectoryName(path)!);
        File.WriteAllText(path, "");
        return path;
    }
}
