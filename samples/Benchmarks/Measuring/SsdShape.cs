using FlaSharp.Ops;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>B, T, H, the head size P and the state size N of the state space duality, with one group.</summary>
internal sealed record SsdShape(long B, long T, long H, long P, long N) : IOperationShape
{
    public static ShapeOperation Operation { get; } = new(
        "ssd", "State space duality", "the state space duality of Mamba-2", "B,T,H,P,N",
        // Those of the published comparisons, and of a small model.
        [
            new SsdShape(1, 8192, 96, 128, 128), new SsdShape(4, 4096, 64, 128, 128), new SsdShape(2, 16384, 16, 128, 128),
            new SsdShape(8, 2048, 24, 64, 128),
        ],
        sizes => new SsdShape(sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]),
        "x, b and c are read and y is written; backward reads them and the gradient of y, and writes three gradients",
        "One group");

    public long SetElements => (2 * Elements) + (2 * SharedElements);

    public long ForwardElements => (2 * Elements) + (2 * SharedElements); // x, b, c in and y out

    public long BackwardElements => (3 * Elements) + (4 * SharedElements); // x, b, c and y's gradient in; x's, b's and c's out

    public double? ForwardFlops => null;

    public double? BackwardFlops => null;

    private long Elements => B * T * H * P;

    private long SharedElements => B * T * N;

    public IReadOnlyList<string> Ways(ScalarType dtype, Device device) => [""];

    public string Takes(string way, ScalarType dtype, Device device)
    {
        using Tensor one = empty([1], dtype, device);
        using Tensor x = one.expand(B, T, H, P); // only the device and the sizes count
        return FlaOps.PlanSsd(x, N).Path;
    }

    public string PeerKey(string way) => $"mamba_ssm ssd N{N}|B{B}_T{T}_H{H}_D{P}";

    public OperationInputs Inputs(ScalarType dtype, Device device)
    {
        using Tensor rates = (rand([H], float32, device) * 15) + 1;
        Tensor[] inputs =
        [
            Tokens(H, P), Tokens(H), OperationInputs.Leaf(-rates), Tokens(1, N), Tokens(1, N),
            OperationInputs.Leaf(ones([H], float32, device)), OperationInputs.Leaf(randn([H], float32, device) - 4),
        ];
        return new OperationInputs(inputs, OperationInputs.Normal(dtype, device, B, T, H, P), static (i, _) =>
            FlaOps.Ssd(i[0], i[1], i[2], i[3], i[4], i[5], dtBias: i[6], dtSoftplus: true).output);

        Tensor Tokens(params long[] sizes) => OperationInputs.Leaf(OperationInputs.Normal(dtype, device, [B, T, .. sizes]));
    }

    public override string ToString() => $"{B},{T},{H},{P},{N}";
}
