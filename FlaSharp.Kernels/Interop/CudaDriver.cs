using System.Runtime.InteropServices;

namespace FlaSharp.Kernels.Interop;

/// <summary>
/// The CUDA driver's functions that are used here, one to one. Handles are <c>nint</c>. The first call throws
/// <see cref="DllNotFoundException"/>, with the names that were tried, where there is no driver.
/// </summary>
internal static unsafe partial class CudaDriver
{
    private const string Library = NativeLibraries.Driver;

    static CudaDriver() => NativeLibraries.Register();

    [LibraryImport(Library)]
    public static partial CudaResult cuInit(uint flags);

    [LibraryImport(Library)]
    public static partial CudaResult cuDriverGetVersion(out int version);

    [LibraryImport(Library)]
    public static partial CudaResult cuGetErrorName(CudaResult error, out byte* name);

    [LibraryImport(Library)]
    public static partial CudaResult cuGetErrorString(CudaResult error, out byte* text);

    [LibraryImport(Library)]
    public static partial CudaResult cuDeviceGetCount(out int count);

    [LibraryImport(Library)]
    public static partial CudaResult cuDeviceGet(out int device, int ordinal);

    [LibraryImport(Library)]
    public static partial CudaResult cuDeviceGetName(byte* name, int length, int device);

    [LibraryImport(Library)]
    public static partial CudaResult cuDeviceGetAttribute(out int value, DeviceAttribute attribute, int device);

    [LibraryImport(Library, EntryPoint = "cuDeviceTotalMem_v2")]
    public static partial CudaResult cuDeviceTotalMem(out nuint bytes, int device);

    [LibraryImport(Library)]
    public static partial CudaResult cuDevicePrimaryCtxRetain(out nint context, int device);

    [LibraryImport(Library)]
    public static partial CudaResult cuCtxGetCurrent(out nint context);

    [LibraryImport(Library, EntryPoint = "cuCtxPushCurrent_v2")]
    public static partial CudaResult cuCtxPushCurrent(nint context);

    [LibraryImport(Library, EntryPoint = "cuCtxPopCurrent_v2")]
    public static partial CudaResult cuCtxPopCurrent(out nint context);

    [LibraryImport(Library)]
    public static partial CudaResult cuCtxSynchronize();

    [LibraryImport(Library)]
    public static partial CudaResult cuStreamSynchronize(nint stream);

    [LibraryImport(Library, EntryPoint = "cuMemGetInfo_v2")]
    public static partial CudaResult cuMemGetInfo(out nuint free, out nuint total);

    [LibraryImport(Library)]
    public static partial CudaResult cuModuleLoadDataEx(
        out nint module, void* image, uint optionCount, JitOption* options, void** values);

    [LibraryImport(Library)]
    public static partial CudaResult cuModuleUnload(nint module);

    [LibraryImport(Library, StringMarshalling = StringMarshalling.Utf8)]
    public static partial CudaResult cuModuleGetFunction(out nint function, nint module, string name);

    [LibraryImport(Library)]
    public static partial CudaResult cuFuncGetAttribute(out int value, FunctionAttribute attribute, nint function);

    [LibraryImport(Library)]
    public static partial CudaResult cuFuncSetAttribute(nint function, FunctionAttribute attribute, int value);

    /// <summary>Since CUDA 12.4: an older driver has no such entry point.</summary>
    [LibraryImport(Library)]
    public static partial CudaResult cuFuncGetParamInfo(nint function, nuint index, out nuint offset, out nuint size);

    [LibraryImport(Library)]
    public static partial CudaResult cuLaunchKernelEx(LaunchConfig* config, nint function, void** parameters, void** extra);

    [LibraryImport(Library)]
    public static partial CudaResult cuEventCreate(out nint handle, uint flags);

    [LibraryImport(Library)]
    public static partial CudaResult cuEventRecord(nint handle, nint stream);

    [LibraryImport(Library)]
    public static partial CudaResult cuEventSynchronize(nint handle);

    [LibraryImport(Library)]
    public static partial CudaResult cuEventElapsedTime(out float milliseconds, nint start, nint end);

    [LibraryImport(Library, EntryPoint = "cuEventDestroy_v2")]
    public static partial CudaResult cuEventDestroy(nint handle);

    /// <summary>Since CUDA 12.0. <paramref name="map"/> lies at a multiple of 64 bytes.</summary>
    [LibraryImport(Library)]
    public static partial CudaResult cuTensorMapEncodeTiled(void* map, TensorMapType type, uint rank, void* address,
        ulong* sizes, ulong* strides, uint* box, uint* elementStrides,
        int interleave, TensorMapSwizzle swizzle, int l2Promotion, int outOfBounds);
}
