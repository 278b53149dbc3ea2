using FlaSharp.Kernels.Runtime;
using FlaSharp.Tests.TestSupport;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class SharedCacheTests
{
    [Fact]
    public void Processes_that_compile_the_same_at_once_leave_one_whole_file_of_each()
    {
        TestKernels.RequireNvrtc();
        using var folder = new TemporaryFolder();
        ChildProcess.Run(3, typeof(SharedCacheTests), nameof(Compile), (CubinCache.FolderVariable, folder.Path));

        var files = Directory.GetFiles(folder.Path).ToDictionary(file => file, File.ReadAllBytes);
        var kinds = files.Keys.CountBy(file => Path.GetExtension(file)).ToDictionary();
        Assert.Equal(new Dictionary<string, int> { [".cubin"] = CompilerTarget.Binary.Count, [".nvrtc"] = 1 }, kinds);

        // One that were not whole would be compiled and written again.
        foreach (var target in CompilerTarget.Binary)
            TestKernels.Compiler(folder.Path).Compile(TestKernels.Axpy, target);
        Assert.Equal(files, Directory.GetFiles(folder.Path).ToDictionary(file => file, File.ReadAllBytes));
    }

    [Fact(Explicit = true)]
    public void Compile()
    {
        foreach (var target in CompilerTarget.Binary)
            TestKernels.Compiler(CubinCache.Default.Folder).Compile(TestKernels.Axpy, target);
    }
}
