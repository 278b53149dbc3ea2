using System.Text;
using FlaSharp.Kernels.Interop;

namespace FlaSharp.Kernels.Runtime;

/// <summary>A kernel on one device, ready to be launched from any thread.</summary>
internal sealed unsafe class CudaKernel
{
    private readonly nint _function;
    private readonly uint _threads;
    private readonly uint _sharedBytes;
    private readonly int _parameterBytes; // 0: unknown, with an older driver

    private CudaKernel(GpuDevice device, KernelVariant variant, nint function)
    {
        (Device, Variant, _function) = (device, variant, function);
        (_threads, _sharedBytes) = ((uint)variant.Threads, (uint)variant.SharedBytes);
        _parameterBytes = ParameterBytes(function);
        Registers = Attribute(FunctionAttribute.RegisterCount);
        LocalBytes = Attribute(FunctionAttribute.LocalSizeBytes);
    }

    public GpuDevice Device { get; }

    public KernelVariant Variant { get; }

    /// <summary>Of a thread.</summary>
    public int Registers { get; }

    /// <summary>Stack and spills of a thread.</summary>
    public int LocalBytes { get; }

    /// <summary>Loads a compiled kernel.</summary>
    /// <exception cref="CudaException">The driver does not take it.</exception>
    public static CudaKernel Load(GpuDevice device, KernelVariant variant, CompiledKernel compiled)
    {
        if (variant.SharedBytes > device.Info.MaxSharedBytesPerBlock)
            throw new NotSupportedException(
                $"{variant} needs more shared memory than a block has on {device}: {device.Info.MaxSharedBytesPerBlock} bytes.");
        using var current = device.MakeCurrent();
        var module = LoadModule(device, variant, compiled.Image);
        try
        {
            CudaException.ThrowIfFailed(
                CudaDriver.cuModuleGetFunction(out var function, module, variant.Entry), $"loading {variant}");
            if (variant.SharedBytes > 0)
                CudaException.ThrowIfFailed(
                    CudaDriver.cuFuncSetAttribute(function, FunctionAttribute.MaxDynamicSharedSizeBytes, variant.SharedBytes),
                    $"asking for the shared memory of {variant}");
            return new CudaKernel(device, variant, function);
        }
        catch
        {
            _ = CudaDriver.cuModuleUnload(module);
            throw;
        }
    }

    /// <summary>Starts the kernel; returns before it has run.</summary>
    /// <param name="gridX">Blocks.</param>
    /// <param name="gridY">At most 65,535, as <paramref name="gridZ"/>.</param>
    /// <param name="gridZ">See <paramref name="gridY"/>.</param>
    /// <param name="stream">See <see cref="LaunchStream"/>.</param>
    /// <param name="parameters">The kernel's one parameter. What it points to is the caller's to keep alive.</param>
    /// <param name="startsEarly">Whether it may start, where the GPU can do that, before the kernel ahead of it in the stream has
    /// ended: it begins with fla::follow_stream.</param>
    /// <exception cref="CudaException">It could not be started; with FLASHARP_SYNC=1, or it failed.</exception>
    public void Launch<TParameters>(
        uint gridX, uint gridY, uint gridZ, nint stream, in TParameters parameters, bool startsEarly = false)
        where TParameters : unmanaged
    {
        if (sizeof(TParameters) != _parameterBytes && _parameterBytes != 0)
            throw new ArgumentException(
                $"{typeof(TParameters).Name} has {sizeof(TParameters)} bytes, but the parameter of {Variant} {_parameterBytes}.");
        using var current = Device.MakeCurrent();
        fixed (TParameters* address = &parameters)
        {
            void* argument = address;
            var early = new LaunchAttribute { Id = LaunchAttribute.ProgrammaticStreamSerialization, Value = 1 };
            var config = new LaunchConfig
            {
                GridX = gridX,
                GridY = gridY,
                GridZ = gridZ,
                BlockX = _threads,
                BlockY = 1,
                BlockZ = 1,
                SharedBytes = _sharedBytes,
                Stream = stream,
                Attributes = &early,
                AttributeCount = startsEarly && Device.Target is { IsHopper: true } ? 1u : 0,
            };
            var result = CudaDriver.cuLaunchKernelEx(&config, _function, &argument, null);
            if (result == CudaResult.Success && CudaRuntime.Synchronous)
                result = CudaDriver.cuStreamSynchronize(stream);
            if (result != CudaResult.Success)
                throw LaunchFailure(result, gridX, gridY, gridZ);
        }
    }

    private CudaException LaunchFailure(CudaResult result, uint gridX, uint gridY, uint gridZ) => CudaException.Of(result,
        $"the launch of {Variant}, grid {gridX} x {gridY} x {gridZ}, on {Device}." + (CudaRuntime.Synchronous
            ? ""
            : $" An earlier kernel may have failed: {CudaRuntime.SynchronousVariable}=1 shows which."));

    private static nint LoadModule(GpuDevice device, KernelVariant variant, byte[] image)
    {
        const int LogBytes = 8192;
        var log = new byte[LogBytes];
        fixed (byte* imageAddress = image)
        fixed (byte* logAddress = log)
        {
            var options = stackalloc JitOption[] { JitOption.ErrorLogBuffer, JitOption.ErrorLogBufferSizeBytes };
            var values = stackalloc void*[] { logAddress, (void*)LogBytes };
            var result = CudaDriver.cuModuleLoadDataEx(out var module, imageAddress, 2, options, values);
            if (result == CudaResult.Success)
                return module;
            var advice = result is CudaResult.InvalidImage or CudaResult.NoBinaryForGpu or CudaResult.UnsupportedPtxVersion
                ? $" The driver (CUDA {device.Info.DriverVersion}) may be older than NVRTC {NvrtcLibrary.Load().Version}: "
                    + $"update the driver, or name an older NVRTC in {NvrtcSearch.Override}."
                : "";
            throw CudaException.Of(result,
                $"loading {variant} on {device}.{advice} {Encoding.UTF8.GetString(log).TrimEnd('\0')}".TrimEnd());
        }
    }

    private static int ParameterBytes(nint function)
    {
        try
        {
            // A second parameter would be an error of the kernel's, which this does not find.
            return CudaDriver.cuFuncGetParamInfo(function, 0, out _, out var size) == CudaResult.Success ? (int)size : 0;
        }
        catch (EntryPointNotFoundException)
        {
            return 0;
        }
    }

    private int Attribute(FunctionAttribute attribute)
    {
        CudaException.ThrowIfFailed(CudaDriver.cuFuncGetAttribute(out var value, attribute, _function), attribute.ToString());
        return value;
    }
}
