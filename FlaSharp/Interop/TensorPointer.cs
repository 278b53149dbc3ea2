using System.Runtime.InteropServices;
using FlaSharp.Kernels.Cpu;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>The address of a tensor's first element: right for views and for every dtype, unlike <c>storage().data_ptr()</c>.</summary>
internal static unsafe class TensorPointer
{
    private static readonly delegate* unmanaged<nint, nint> s_data = Resolve();

    /// <summary>The caller keeps the tensor alive while it uses the address (<c>GC.KeepAlive</c>).</summary>
    public static nint Of(Tensor? tensor) => tensor is null ? 0 : s_data(tensor.Handle);

    public static float* Float32(Tensor? tensor) => (float*)Of(tensor);

    private static delegate* unmanaged<nint, nint> Resolve()
    {
        var data = TorchExports.Find("THSTensor_data"); // loads libtorch
        // The CPU kernels, which begin with a pointer, run on libtorch's threads where these are GNU OpenMP's.
        if (NativeLibrary.TryLoad("torch_cpu", typeof(torch).Assembly, null, out var torchCpu) &&
            NativeLibrary.TryGetExport(torchCpu, "GOMP_parallel", out var parallel))
            OpenMpThreads.Use(parallel);
        return (delegate* unmanaged<nint, nint>)data;
    }
}
