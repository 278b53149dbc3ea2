using System.Diagnostics;
using FlaSharp.Interop;
using FlaSharp.Kernels.Interop;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

public sealed class KernelRuntimeOnGpuTests
{
    private static readonly KernelLibrary s_library = new(TestKernels.Compiler(CubinCache.Default.Folder));

    [GpuFact]
    public void Kernels_are_available_and_the_gpu_is_described()
    {
        Assert.True(CudaRuntime.IsAvailable(0, out var reason), reason);
        var info = GpuDevice.Get(0).Info;
        Assert.All([info.MultiprocessorCount, info.L2Bytes, info.MemoryBytes], value => Assert.True(value > 0, info.ToString()));
        Assert.True(info.MaxSharedBytesPerBlock >= GpuDevice.Get(0).Target!.MaxSharedBytes, info.ToString());
        var (free, total) = GpuDevice.Get(0).Memory();
        Assert.InRange(free, 1, total);
        Assert.False(CudaRuntime.IsAvailable(GpuDevice.Count(), out reason));
        Assert.StartsWith("there is no device", reason, StringComparison.Ordinal);
    }

    [GpuTheory]
    [InlineData(1)]
    [InlineData(100_003)]
    public void A_kernel_reads_and_writes_tensors(int count)
    {
        using var scope = NewDisposeScope();
        var x = randn(count + 1, device: CUDA)[1..]; // a view
        var y = randn(count, device: CUDA);
        var expected = x * 3 + y;
        Launch(Kernel(TestKernels.Axpy), x, y, a: 3);
        Assert.Equal(0, (y - expected).abs().max().ToSingle(), 1e-6f);
    }

    [GpuFact]
    public void More_than_48_KiB_of_shared_memory_is_asked_for()
    {
        using var scope = NewDisposeScope();
        var x = arange(2 * TestKernels.Threads, dtype: ScalarType.Float32, device: CUDA);
        var sums = zeros(2, device: CUDA);
        Kernel(TestKernels.BlockSum).Launch(2, 1, 1, LaunchStream.Current, Parameters(x, sums, 0));
        Assert.Equal([32640f, 98176f], sums.cpu().data<float>().ToArray());
    }

    [GpuFact]
    public void A_kernel_runs_from_any_thread_and_in_the_order_of_the_stream()
    {
        using var scope = NewDisposeScope();
        var (x, y) = (ones(1000, device: CUDA), zeros(1000, device: CUDA));
        var kernel = Kernel(TestKernels.Axpy);
        for (var i = 0; i < 50; i++)
        {
            Launch(kernel, x, y, 1);
            var thread = new Thread(() => Launch(kernel, x, y, 1)); // with no context of its own
            thread.Start();
            thread.Join();
            y.add_(1);
        }
        Assert.Equal(150, y.min().ToSingle());
        Assert.Equal(150, y.max().ToSingle());
    }

    [GpuFact]
    public void Many_threads_get_one_kernel()
    {
        var library = new KernelLibrary(TestKernels.Compiler());
        var kernels = new CudaKernel[16];
        Parallel.For(0, kernels.Length, i => kernels[i] = library.Kernel(GpuDevice.Get(0), TestKernels.Axpy with { }));
        Assert.All(kernels, kernel => Assert.Same(kernels[0], kernel));
    }

    [GpuFact]
    public void The_compilers_report_agrees_with_the_driver()
    {
        var target = GpuDevice.Get(0).Target!;
        Assert.SkipWhen(target.IsPtx, "The driver compiles for this GPU.");
        foreach (var variant in new[] { TestKernels.Axpy, TestKernels.BlockSum, TestKernels.Spills })
        {
            var compiled = TestKernels.Compiler().Compile(variant, target);
            var (report, kernel) = (CompileReport.Parse(compiled.Log, variant.Entry), Kernel(variant));
            Assert.True(
                report.Registers == kernel.Registers && (report.StackBytes > 0) == (kernel.LocalBytes > 0),
                $"{variant}: {kernel.Registers} registers, {kernel.LocalBytes} local bytes, but the log says\n{compiled.Log}");
        }
    }

    [GpuFact]
    public void PTX_is_loaded_through_the_drivers_compiler()
    {
        using var scope = NewDisposeScope();
        var compiled = TestKernels.Compiler().Compile(TestKernels.Axpy, CompilerTarget.Ptx80);
        var (x, y) = (ones(1000, device: CUDA), zeros(1000, device: CUDA));
        Launch(CudaKernel.Load(GpuDevice.Get(0), TestKernels.Axpy, compiled), x, y, 2);
        Assert.Equal(2000, y.sum().ToSingle());
    }

    [GpuFact]
    public void A_binary_that_the_driver_does_not_take_is_reported()
    {
        var thrown = Assert.Throws<CudaException>(
            () => CudaKernel.Load(GpuDevice.Get(0), TestKernels.Axpy, new CompiledKernel(new byte[1000], "")));
        Assert.Contains("Test/axpy.cu:axpy", thrown.Message, StringComparison.Ordinal);
        Assert.Contains("update the driver", thrown.Message, StringComparison.Ordinal);
    }

    [GpuFact]
    public void A_launch_that_the_driver_refuses_is_reported_with_its_grid()
    {
        var thrown = Assert.Throws<CudaException>(
            () => Kernel(TestKernels.Axpy).Launch(1, 70_000, 1, LaunchStream.Current, default(TestKernels.Parameters)));
        Assert.Contains("CUDA_ERROR_INVALID_VALUE", thrown.Message, StringComparison.Ordinal);
        Assert.Contains("the launch of Test/axpy.cu:axpy", thrown.Message, StringComparison.Ordinal);
        Assert.Contains("grid 1 x 70000 x 1", thrown.Message, StringComparison.Ordinal);
    }

    [GpuFact]
    public void A_kernel_that_fails_is_named_where_each_launch_waits() => // in a process of its own, whose GPU is lost then
        ChildProcess.Run(1, typeof(KernelRuntimeOnGpuTests), nameof(Fail), (CudaRuntime.SynchronousVariable, "1"));

    [Fact(Explicit = true)]
    public void Fail()
    {
        var kernel = Kernel(TestKernels.Fail);
        var thrown = Assert.Throws<CudaException>(
            () => kernel.Launch(2, 1, 1, LaunchStream.Current, default(TestKernels.Parameters)));
        Assert.Contains("CUDA_ERROR_ILLEGAL_ADDRESS", thrown.Message, StringComparison.Ordinal);
        Assert.Contains($"the launch of {TestKernels.Fail}, grid 2 x 1 x 1", thrown.Message, StringComparison.Ordinal);
    }

    [GpuFact]
    public void Parameters_of_another_size_are_refused()
    {
        Assert.SkipWhen(
            GpuDevice.Get(0).Info.DriverVersion < new Version(12, 4), "The driver does not tell the parameters' size.");
        var thrown = Assert.Throws<ArgumentException>(() => Kernel(TestKernels.Axpy).Launch(1, 1, 1, LaunchStream.Current, 0L));
        Assert.StartsWith("Int64 has 8 bytes, but the parameter of Test/axpy.cu:axpy", thrown.Message, StringComparison.Ordinal);
    }

    [GpuFact]
    public void Events_measure_the_time_between_them()
    {
        using var scope = NewDisposeScope();
        var (x, y) = (ones(50_000_000, device: CUDA), zeros(50_000_000, device: CUDA));
        var device = GpuDevice.Get(0);
        using var start = new CudaEvent(device);
        using var end = new CudaEvent(device);
        Launch(Kernel(TestKernels.Axpy), x, y, 1);
        device.Synchronize();
        var watch = Stopwatch.StartNew();
        start.Record(LaunchStream.Current);
        for (var i = 0; i < 20; i++)
            Launch(Kernel(TestKernels.Axpy), x, y, 1);
        end.Record(LaunchStream.Current);
        end.Synchronize();
        Assert.InRange(end.MillisecondsSince(start), 0.1, watch.Elapsed.TotalMilliseconds);
    }

    [GpuFact]
    public void A_launch_takes_at_most_5_microseconds_of_the_host_and_no_memory()
    {
        Assert.SkipWhen(CudaRuntime.Synchronous, $"{CudaRuntime.SynchronousVariable} is set: each launch waits.");
        const int Launches = 500; // fewer than the driver queues before it makes the caller wait
        using var scope = NewDisposeScope();
        var (x, y) = (ones(256, device: CUDA), zeros(256, device: CUDA));
        var device = GpuDevice.Get(0);
        var parameters = Parameters(x, y, 1);
        var best = double.PositiveInfinity;
        var watch = Stopwatch.StartNew();
        while (watch.ElapsedMilliseconds < 1000) // the JIT's last tier is a matter of time too
        {
            device.Synchronize();
            var start = Stopwatch.GetTimestamp();
            for (var i = 0; i < Launches; i++)
                s_library.Kernel(device, TestKernels.Axpy).Launch(1, 1, 1, LaunchStream.Current, parameters);
            best = Math.Min(best, Stopwatch.GetElapsedTime(start).TotalMicroseconds / Launches);
        }
        var allocated = GC.GetAllocatedBytesForCurrentThread();
        for (var i = 0; i < Launches; i++)
            s_library.Kernel(device, TestKernels.Axpy).Launch(1, 1, 1, LaunchStream.Current, parameters);
        Assert.Equal(allocated, GC.GetAllocatedBytesForCurrentThread());
        device.Synchronize();

        TestContext.Current.TestOutputHelper?.WriteLine($"{best:F2} us of host time for each launch");
        Assert.InRange(best, 0, 5);
    }

    private static CudaKernel Kernel(KernelVariant variant) => s_library.Kernel(GpuDevice.Get(0), variant);

    private static void Launch(CudaKernel kernel, Tensor x, Tensor y, float a)
    {
        var blocks = (uint)((x.numel() + TestKernels.Threads - 1) / TestKernels.Threads);
        kernel.Launch(blocks, 1, 1, LaunchStream.Current, Parameters(x, y, a));
        GC.KeepAlive((x, y));
    }

    private static TestKernels.Parameters Parameters(Tensor x, Tensor y, float a) =>
        new(TensorPointer.Of(x), TensorPointer.Of(y), x.numel(), a);
}
