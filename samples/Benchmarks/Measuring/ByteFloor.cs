using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>
/// The time that moving an operation's tensors takes at the speed of a large copy: no kernel that reads its inputs from memory
/// and writes its outputs there is faster.
/// </summary>
/// <param name="bytesPerSecond">Of the copy, read and written.</param>
internal sealed class ByteFloor(double bytesPerSecond)
{
    private const int ForwardTensors = 5; // q, k, v, g; output
    private const int BackwardTensors = 9; // q, k, v, g, gradient of the output; gradients of the four
    private const long CopyBytes = 1L << 30;
    private const long CpuCopyBytes = 64 << 20;

    public double BytesPerSecond => bytesPerSecond;

    /// <summary>Measures the copy.</summary>
    public static ByteFloor Measure(Stopclock clock)
    {
        using DisposeScope scope = NewDisposeScope();
        Target target = clock.Target;
        long bytes = target.Gpu is null ? CpuCopyBytes : Math.Min(CopyBytes, target.FreeBytes / 8);
        Tensor source = ones(bytes, uint8, target.Device);
        Tensor copy = zeros_like(source);
        Timing timing = clock.Time(1, _ => copy.copy_(source));
        return new ByteFloor(2 * bytes / (timing.Median / 1000));
    }

    public double ForwardMilliseconds(GlaShape shape, ScalarType dtype) => Milliseconds(ForwardTensors, shape, dtype);

    /// <summary>Of forward and backward.</summary>
    public double BothMilliseconds(GlaShape shape, ScalarType dtype) =>
        Milliseconds(ForwardTensors + BackwardTensors, shape, dtype);

    private double Milliseconds(int tensors, GlaShape shape, ScalarType dtype) =>
        1000 * tensors * shape.Elements * dtype.ElementSize() / bytesPerSecond;
}
