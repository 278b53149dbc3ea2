using System.CommandLine;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using FlaSharp;
using LanguageModel.Commands;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>kernels: the operations by shape and mode, against the byte floor and other libraries.</summary>
internal static class KernelsCommand
{
    public static Command Create()
    {
        var common = new CommonOptions();
        var shapes = new ShapeOption([.. GlaShape.Fla, .. GlaShape.Odd]);
        var operations = new Option<string>("--ops")
        {
            Description = $"Which operations, with commas between. [{string.Join('|', GlaModes.Operations.Keys)}]",
            DefaultValueFactory = _ => string.Join(',', GlaModes.Operations.Keys),
        };
        var command = new Command("kernels", "Times gated linear attention, forward and with backward, by shape and mode.")
        {
            operations, shapes.Option, shapes.SkipLarge, RowKernelsCommand.Create(),
        };
        foreach (ShapeOperation operation in ShapeOperation.All)
            command.Add(ShapeKernelsCommand.Create(operation));
        common.AddReport(command);
        common.AddTiming(command);
        common.AddPeers(command);
        command.SetAction(parsed =>
        {
            IReadOnlyList<GlaShape> chosen = shapes.Read(parsed);
            LinearAttentionMode[] modes = GlaModes.Parse(parsed.GetValue(operations)!);
            Peers peers = common.Peers(parsed);
            Target target = common.Target(parsed);
            ReportOutput output = common.Output(parsed);
            using Stopclock clock = common.Clock(parsed, target);
            var report = new Report("kernels", $"Gated linear attention, {common.DtypeName(parsed)}",
                Machine.Of(target), NewTable());
            report.Notes.Add(common.Method(parsed, target));
            Measure(report, clock, shapes.Fitting(chosen, parsed, report, target, common.Dtype(parsed)), modes,
                common.Dtype(parsed), peers, output);
            return output.Finish(report);
        });
        return command;
    }

    /// <summary>A row of the table, from what was measured.</summary>
    public static object?[] Row(GlaShape shape, LinearAttentionMode mode, string takes, Timing forward, Timing both,
        ByteFloor floor, ScalarType dtype, Peers peers)
    {
        double forwardFloor = floor.ForwardMilliseconds(shape, dtype);
        double bothFloor = floor.BothMilliseconds(shape, dtype);
        string key = GlaModes.PeerKey(mode, shape);
        PeerFigure? peer = peers.Find(key);
        return
        [
            shape.ToString(), mode.ToString(), takes, forward, both,
            forwardFloor, bothFloor, forwardFloor / forward.Median, bothFloor / both.Median,
            peer is null ? null : key.Split('|')[0], peer?.ForwardMs, peer?.BothMs,
            Peers.Ratio(peer?.ForwardMs, forward.Median), Peers.Ratio(peer?.BothMs, both.Median),
        ];
    }

    public static Table NewTable() => new(
        new("shape", "B,T,H,D"), new("mode", "mode"), new("takes", "takes"),
        new("forward_ms", "fwd, ms"), new("forward_backward_ms", "fwd+bwd, ms"),
        new("forward_floor_ms", "fwd floor, ms"), new("forward_backward_floor_ms", "fwd+bwd floor, ms"),
        new("forward_of_floor", "floor / fwd"), new("forward_backward_of_floor", "floor / fwd+bwd"),
        new("peer", "peer"), new("peer_forward_ms", "its fwd, ms"), new("peer_forward_backward_ms", "its fwd+bwd, ms"),
        new("forward_ratio", "fwd: peer / own"), new("forward_backward_ratio", "fwd+bwd: peer / own"));

    private static void Measure(Report report, Stopclock clock, IReadOnlyList<GlaShape> shapes,
        LinearAttentionMode[] modes, ScalarType dtype, Peers peers, ReportOutput output)
    {
        Target target = clock.Target;
        ByteFloor floor = ByteFloor.Measure(clock);
        report.Values["copy_bytes_per_second"] = floor.BytesPerSecond;
        report.Notes.Add("Floor: forward moves 5 tensors of B*T*H*D elements, backward 9 more, at "
            + $"{floor.BytesPerSecond / 1e9:F0} GB/s, measured by a large copy on the device.");
        report.Notes.Add("Forward runs without a graph; forward + backward through autograd.grad, to the gradients of q, k, v and "
            + "g, with a given gradient of the output. bench_peers.py does the same by Triton's do_bench, which "
            + "hides less of the host's time of a short call.");
        var forwardChart = new Chart("forward", "Forward", "ms");
        var bothChart = new Chart("forward-backward", "Forward + backward", "ms");
        report.Charts.AddRange([forwardChart, bothChart]);

        foreach (GlaShape shape in shapes)
        {
            Trial.Run(report, $"{shape}", () =>
            {
                using var timings = new GlaTimings(clock, shape, dtype);
                forwardChart.Add(shape.ToString(), "floor", floor.ForwardMilliseconds(shape, dtype));
                bothChart.Add(shape.ToString(), "floor", floor.BothMilliseconds(shape, dtype));
                foreach (LinearAttentionMode mode in modes)
                {
                    if (mode == LinearAttentionMode.FusedRecurrent && shape.T > GlaModes.LongestRecurrence)
                        continue;
                    Trial.Run(report, $"{shape} {mode}", () =>
                    {
                        Timing forward = timings.Forward(mode);
                        Timing both = timings.ForwardBackward(mode);
                        string takes = GlaModes.Plan(shape, mode, dtype, target.Device);
                        report.Table.Add(Row(shape, mode, takes, forward, both, floor, dtype, peers));
                        PeerFigure? peer = peers.Find(GlaModes.PeerKey(mode, shape));
                        string peerName = GlaModes.PeerKey(mode, shape).Split('|')[0];
                        forwardChart.Add(shape.ToString(), mode.ToString(), forward.Median);
                        forwardChart.Add(shape.ToString(), peerName, peer?.ForwardMs);
                        bothChart.Add(shape.ToString(), mode.ToString(), both.Median);
                        bothChart.Add(shape.ToString(), peerName, peer?.BothMs);
                        ReportOutput.Progress($"{shape} {mode}: {Cell.Text(forward)}, with backward {Cell.Text(both)} ms");
                    });
                    output.Save(report);
                }
            });
        }

        if (modes.Contains(LinearAttentionMode.FusedRecurrent))
            report.Notes.Add($"FusedRecurrent is measured up to T = {GlaModes.LongestRecurrence}.");
    }
}
