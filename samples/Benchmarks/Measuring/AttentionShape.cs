using FlaSharp;
using FlaSharp.Ops;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>B, T, H and the head size D of causal softmax attention with K = V = D.</summary>
internal sealed record AttentionShape(long B, long T, long H, long D) : IOperationShape
{
    private const int Tensors = 4; // q, k, v; output or its gradient
    private const int BackwardTensors = 8; // q, k, v, output, its gradient; three gradients

    public static ShapeOperation Operation { get; } = new(
        "attention", "Causal softmax attention", "causal softmax attention, on each backend", "B,T,H,D",
        // Those of gated linear attention, and the windows of layers of 32 and of 1024 channels.
        [
            .. GlaShape.Fla.Select(shape => new AttentionShape(shape.B, shape.T, shape.H, shape.D)),
            new AttentionShape(193, 1024, 1, 32), new AttentionShape(18, 1024, 32, 32),
        ],
        sizes => new AttentionShape(sizes[0], sizes[1], sizes[2], sizes[3]),
        "q, k and v are read and the output is written; backward reads them and its gradient, and writes three gradients. The "
            + "products take longer: half of 4 B H T^2 D operations forward, 2.5 times as many backward",
        "FlaSharp's rows have cuDNN beside them, Torch's FlashAttention as PyTorch has it");

    /// <summary>Of each of the tensors.</summary>
    public long Elements => B * T * H * D;

    public long SetElements => Tensors * Elements;

    public long ForwardElements => Tensors * Elements;

    public long BackwardElements => BackwardTensors * Elements;

    public double? ForwardFlops => 2.0 * Elements * T;

    public double? BackwardFlops => 2.5 * ForwardFlops;

    /// <summary>This library's kernels take no float32, and there are none for the CPU.</summary>
    public IReadOnlyList<string> Ways(ScalarType dtype, Device device) =>
        device.type == TorchSharp.DeviceType.CUDA && dtype != float32
            ? [nameof(AttentionBackend.FlaSharp), nameof(AttentionBackend.Torch)]
            : [nameof(AttentionBackend.Torch)];

    public string Takes(string way, ScalarType dtype, Device device)
    {
        using Tensor one = empty([1], dtype, device);
        using Tensor q = one.expand(B, T, H, D); // only the device and the sizes count
        return FlaOps.PlanAttention(q, q, q, backend: Enum.Parse<AttentionBackend>(way)).Path;
    }

    public string PeerKey(string way) =>
        $"{(way == nameof(AttentionBackend.FlaSharp) ? "sdpa_cudnn" : "sdpa_flash")}|B{B}_T{T}_H{H}_D{D}";

    public OperationInputs Inputs(ScalarType dtype, Device device)
    {
        return new OperationInputs([Leaf(), Leaf(), Leaf()], Normal(), static (i, way) =>
            FlaOps.Attention(i[0], i[1], i[2], backend: Enum.Parse<AttentionBackend>(way)));

        Tensor Normal() => OperationInputs.Normal(dtype, device, B, T, H, D);
        Tensor Leaf() => OperationInputs.Leaf(Normal());
    }

    public override string ToString() => $"{B},{T},{H},{D}";
}
