using System.CommandLine;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using FlaSharp.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>kernels ssd: the state space duality of Mamba-2 by shape, against the byte floor and other libraries.</summary>
internal static class SsdKernelsCommand
{
    public static Command Create()
    {
        var common = new CommonOptions();
        var shapes = new Option<string?>("--shapes")
        {
            Description = $"B,T,H,P,N; several with semicolons between. [{string.Join("; ", SsdShape.All)}]",
        };
        var command = new Command("ssd", "Times the state space duality of Mamba-2, forward and with backward, by shape.")
        {
            shapes,
        };
        common.AddReport(command);
        common.AddTiming(command);
        common.AddPeers(command);
        command.SetAction(parsed =>
        {
            IReadOnlyList<SsdShape> chosen = parsed.GetValue(shapes) is { } text
                ? [.. text.Split(';').Select(shape => SsdShape.Parse(shape.Trim()))]
                : SsdShape.All;
            Peers peers = common.Peers(parsed);
            Target target = common.Target(parsed);
            ReportOutput output = common.Output(parsed);
            using Stopclock clock = common.Clock(parsed, target);
            var report = new Report("kernels-ssd", $"State space duality, {common.DtypeName(parsed)}", Machine.Of(target),
                NewTable());
            report.Notes.Add(common.Method(parsed, target));
            Measure(report, clock, chosen, common.Dtype(parsed), peers, output);
            return output.Finish(report);
        });
        return command;
    }

    private static Table NewTable() => new(
        new("shape", "B,T,H,P,N"), new("takes", "takes"),
        new("forward_ms", "fwd, ms"), new("forward_backward_ms", "fwd+bwd, ms"),
        new("forward_floor_ms", "fwd floor, ms"), new("forward_backward_floor_ms", "fwd+bwd floor, ms"),
        new("forward_of_floor", "floor / fwd"), new("forward_backward_of_floor", "floor / fwd+bwd"),
        new("peer_forward_ms", "mamba_ssm fwd, ms"), new("peer_forward_backward_ms", "mamba_ssm fwd+bwd, ms"),
        new("forward_ratio", "fwd: peer / own"), new("forward_backward_ratio", "fwd+bwd: peer / own"));

    private static void Measure(Report report, Stopclock clock, IReadOnlyList<SsdShape> shapes, ScalarType dtype, Peers peers,
        ReportOutput output)
    {
        Target target = clock.Target;
        ByteFloor floor = ByteFloor.Measure(clock);
        report.Values["copy_bytes_per_second"] = floor.BytesPerSecond;
        report.Notes.Add("Floor: x, b and c are read and y is written; backward reads them and the gradient of y, and writes "
            + $"three gradients, at {floor.BytesPerSecond / 1e9:F0} GB/s, measured by a large copy on the device.");
        report.Notes.Add("One group. Forward runs without a graph; forward + backward through autograd.grad, to the gradients of "
            + "x, dt, a, b, c, d and the bias of dt, with a given gradient of the output.");

        foreach (SsdShape shape in shapes)
        {
            Trial.Run(report, $"{shape}", () =>
            {
                int count = InputSets.Count(SsdInputs.Bytes(shape, dtype), target.CacheBytes);
                manual_seed(0);
                var sets = new List<SsdInputs>();
                try
                {
                    for (int i = 0; i < count; i++)
                        sets.Add(new SsdInputs(shape, dtype, target.Device));
                    Timing forward = clock.Time(count, set => sets[set].Forward());
                    Timing both = clock.Time(count, set => sets[set].ForwardBackward());
                    report.Table.Add(Row(shape, dtype, target.Device, forward, both, floor, peers));
                    ReportOutput.Progress($"{shape}: {Cell.Text(forward)}, with backward {Cell.Text(both)} ms");
                }
                finally
                {
                    sets.ForEach(set => set.Dispose());
                }
            });
            output.Save(report);
        }
    }

    private static object?[] Row(
        SsdShape shape, ScalarType dtype, Device device, Timing forward, Timing both, ByteFloor floor, Peers peers)
    {
        double forwardFloor = Milliseconds(shape.ForwardElements);
        double bothFloor = Milliseconds(shape.ForwardElements + shape.BackwardElements);
        PeerFigure? peer = peers.Find($"mamba_ssm ssd N{shape.N}|{shape.Key}");
        using Tensor one = empty([1], dtype, device);
        using Tensor x = one.expand(shape.B, shape.T, shape.H, shape.P); // only the device and the sizes count
        return
        [
            shape.ToString(), FlaOps.PlanSsd(x, shape.N).Path, forward, both, forwardFloor, bothFloor,
            forwardFloor / forward.Median, bothFloor / both.Median, peer?.ForwardMs, peer?.BothMs,
            Peers.Ratio(peer?.ForwardMs, forward.Median),
            Peers.Ratio(peer?.BothMs, both.Median),
        ];

        double Milliseconds(long elements) => 1000 * elements * dtype.ElementSize() / floor.BytesPerSecond;
    }
}
