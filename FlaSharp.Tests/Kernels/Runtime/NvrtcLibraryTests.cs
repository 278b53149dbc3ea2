using FlaSharp.Kernels.Runtime;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class NvrtcLibraryTests : IDisposable
{
    private readonly TemporaryFolder _root = new();
    private readonly CubinCache _known;

    public NvrtcLibraryTests()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "Linux's names.");
        _known = new CubinCache(_root.File("kernels"), extension: ".nvrtc");
    }

    public void Dispose() => _root.Dispose();

    [Fact]
    public void A_file_that_is_no_NVRTC_is_named_and_not_used()
    {
        torch.InitializeDeviceType(DeviceType.CPU);
        var text = MakeText();
        var (library, problem) = NvrtcLibrary.Find(SearchFor(text), _known);
        Assert.Null(library);
        Assert.Contains($"  {text} cannot be loaded\n", problem, StringComparison.Ordinal);

        var other = Path.Combine(LoadedTorch.Folder!, "libc10.so");
        (library, problem) = NvrtcLibrary.Find(SearchFor(other), _known);
        Assert.Null(library);
        Assert.Contains($"  {other} is no NVRTC\n", problem, StringComparison.Ordinal);
        Assert.Equal((0, 0), _known.Size());
    }

    [Fact]
    public void What_an_NVRTC_says_of_itself_is_kept_and_it_is_not_loaded_to_be_asked_again()
    {
        var path = TestKernels.RequireNvrtc().Path;
        var asked = NvrtcLibrary.Find(SearchFor(path), _known).Item1!;
        var known = NvrtcLibrary.Find(SearchFor(path), _known).Item1!;

        Assert.Equal((1, true, false), (_known.Size().files, asked.Handle.IsValueCreated, known.Handle.IsValueCreated));
        Assert.Equal((asked.Path, asked.Version), (known.Path, known.Version));
        Assert.Equal(asked.Architectures, known.Architectures);
        Assert.Contains(80, known.Architectures);
        Assert.Equal(asked.Handle.Value, known.Handle.Value);
    }

    [Fact]
    public void One_that_is_known_but_cannot_be_loaded_any_more_is_named()
    {
        var text = MakeText();
        new NvrtcFacts(new Version(12, 4), [80, 90]).Keep(_known, text);
        var library = NvrtcLibrary.Find(SearchFor(text), _known).Item1!;

        Assert.Equal(new Version(12, 4), library.Version);
        Assert.Equal([80, 90], library.Architectures);
        var message = Assert.Throws<DllNotFoundException>(() => library.Handle.Value).Message;
        Assert.StartsWith($"{text} was an NVRTC before, and cannot be loaded now", message, StringComparison.Ordinal);
        Assert.Equal(message, library.Describe());
    }

    [Fact]
    public void A_file_that_has_changed_is_not_known()
    {
        var text = MakeText();
        new NvrtcFacts(new Version(12, 4), [80]).Keep(_known, text);
        Assert.NotNull(NvrtcFacts.Find(_known, text));

        File.SetLastWriteTimeUtc(text, new DateTime(2026, 1, 1, 0, 0, 0, DateTimeKind.Utc));
        Assert.Null(NvrtcFacts.Find(_known, text));
        Assert.Null(NvrtcLibrary.Find(SearchFor(text), _known).Item1);

        File.Delete(text);
        Assert.Null(NvrtcFacts.Find(_known, text));
    }

    private static NvrtcSearch SearchFor(string file) => new(name => name == NvrtcSearch.Override ? file : null, null, []);

    private string MakeText()
    {
        var path = _root.File("libnvrtc.so.12");
        File.WriteAllText(path, "no library");
        return path;
    }
}
