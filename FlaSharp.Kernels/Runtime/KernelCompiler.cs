using System.Text;
using FlaSharp.Kernels.Interop;

namespace FlaSharp.Kernels.Runtime;

/// <summary>Compiles kernels with NVRTC, or takes them from the cache. Safe on any number of threads.</summary>
internal sealed class KernelCompiler(KernelSources sources, CubinCache cache)
{
    private static readonly Version s_firstWithCache = new(12, 9);

    /// <summary>For the sources of this assembly, with the user's cache.</summary>
    public static KernelCompiler Default { get; } = new(KernelSources.Embedded, CubinCache.Default);

    /// <exception cref="NvrtcException">It does not compile.</exception>
    /// <exception cref="DllNotFoundException">There is no NVRTC.</exception>
    public CompiledKernel Compile(KernelVariant variant, CompilerTarget target)
    {
        var nvrtc = NvrtcLibrary.Load();
        var source = sources.Resolve(variant.Source);
        var options = Options(variant, target, nvrtc.Version);
        var key = KernelKey.Of(source, variant.Entry, options, nvrtc.Version);
        if (cache.Find(key) is { } cached)
            return cached;
        var compiled = Compile(source, options, target);
        cache.Add(key, compiled);
        return compiled;
    }

    public static string[] Options(KernelVariant variant, CompilerTarget target, Version compilerVersion) =>
    [
        $"--gpu-architecture={target.Architecture}",
        "--std=c++17",
        "-default-device",
        .. variant.Defines.Select(define => $"-D{define}"),
        "--ptxas-options=-v", // registers and spills, for the report
        // NVRTC has a cache of its own, outside of ours and of its settings, and what comes from there has no report.
        .. compilerVersion >= s_firstWithCache ? ["--no-cache"] : Array.Empty<string>(),
    ];

    private static unsafe CompiledKernel Compile(KernelSource source, string[] options, CompilerTarget target)
    {
        string[] headers = [.. source.Headers.Select(header => header.Value)];
        string[] names = [.. source.Headers.Select(header => header.Key)];
        NvrtcException.ThrowIfFailed(
            Nvrtc.nvrtcCreateProgram(out var program, source.Text, source.Name, headers.Length, headers, names));
        try
        {
            var result = Nvrtc.nvrtcCompileProgram(program, options.Length, options);
            var log = Log(program);
            return result == 0
                ? new CompiledKernel(Image(program, target), log)
                : throw NvrtcException.Of(result, source.Name, options, log);
        }
        finally
        {
            _ = Nvrtc.nvrtcDestroyProgram(ref program);
        }
    }

    private static unsafe byte[] Image(nint program, CompilerTarget target)
    {
        nuint size;
        NvrtcException.ThrowIfFailed(
            target.IsPtx ? Nvrtc.nvrtcGetPTXSize(program, out size) : Nvrtc.nvrtcGetCUBINSize(program, out size));
        var image = new byte[size];
        fixed (byte* bytes = image)
            NvrtcException.ThrowIfFailed(target.IsPtx ? Nvrtc.nvrtcGetPTX(program, bytes) : Nvrtc.nvrtcGetCUBIN(program, bytes));
        return image;
    }

    private static unsafe string Log(nint program)
    {
        NvrtcException.ThrowIfFailed(Nvrtc.nvrtcGetProgramLogSize(program, out var size));
        var log = new byte[size];
        fixed (byte* bytes = log)
            NvrtcException.ThrowIfFailed(Nvrtc.nvrtcGetProgramLog(program, bytes));
        return Encoding.UTF8.GetString(log).TrimEnd('\0', '\n');
    }
}
