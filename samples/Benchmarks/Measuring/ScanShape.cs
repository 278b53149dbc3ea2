using FlaSharp.Ops;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>B, E, T and N of a selective scan with one group, as the peer orders them.</summary>
internal sealed record ScanShape(long B, long E, long T, long N) : IOperationShape
{
    private const int SetTensors = 4; // u, delta, z; gradient of y
    private const int ForwardTensors = 4; // u, delta, z; y
    private const int BackwardTensors = 7; // u, delta, z, gradient of y; gradients of the three

    public static ShapeOperation Operation { get; } = new(
        "scan", "Selective scan", "the selective scan of Mamba", "B,E,T,N",
        // Inner widths of the published models, and a long sequence.
        [
            new ScanShape(1, 4096, 8192, 16), new ScanShape(4, 2048, 4096, 16), new ScanShape(8, 1536, 2048, 16),
            new ScanShape(1, 2048, 65536, 16),
        ],
        sizes => new ScanShape(sizes[0], sizes[1], sizes[2], sizes[3]),
        "u, delta and z are read and y is written; backward reads them and the gradient of y, and writes three gradients. The "
            + "exponential of each step, channel and state takes longer",
        "One group, with D, z, the bias and softplus");

    public long SetElements => SetTensors * Elements;

    public long ForwardElements => ForwardTensors * Elements; // b and c are small beside them

    public long BackwardElements => BackwardTensors * Elements;

    public double? ForwardFlops => null;

    public double? BackwardFlops => null;

    private long Elements => B * T * E;

    public IReadOnlyList<string> Ways(ScalarType dtype, Device device) => [""];

    public string Takes(string way, ScalarType dtype, Device device)
    {
        using Tensor one = empty([1], dtype, device);
        using Tensor u = one.expand(B, T, E); // only the device and the sizes count
        return FlaOps.PlanSelectiveScan(u).Path;
    }

    public string PeerKey(string way) => $"mamba_ssm scan|B{B}_E{E}_T{T}_N{N}";

    public OperationInputs Inputs(ScalarType dtype, Device device)
    {
        using Tensor rates = arange(1, N + 1, float32, device).repeat(E, 1);
        Tensor[] inputs =
        [
            Tokens(E), Tokens(E), OperationInputs.Leaf(-rates), Tokens(N), Tokens(N),
            OperationInputs.Leaf(ones([E], float32, device)), Tokens(E), OperationInputs.Leaf(randn([E], float32, device) - 4),
        ];
        return new OperationInputs(inputs, OperationInputs.Normal(dtype, device, B, T, E), static (i, _) =>
            FlaOps.SelectiveScan(i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7], deltaSoftplus: true).output);

        Tensor Tokens(long size) => OperationInputs.Leaf(OperationInputs.Normal(dtype, device, B, T, size));
    }

    public override string ToString() => $"{B},{E},{T},{N}";
}
