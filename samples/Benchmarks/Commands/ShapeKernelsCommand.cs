using System.CommandLine;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>kernels attention, scan and ssd: one operation by shape, against the byte floor and other libraries.</summary>
internal static class ShapeKernelsCommand
{
    public static Command Create(ShapeOperation operation)
    {
        var common = new CommonOptions();
        var shapes = new Option<string[]>("--shapes")
        {
            Description = $"all, or shapes {operation.Letters} with spaces between. All: {string.Join(' ', operation.Shapes)}.",
            AllowMultipleArgumentsPerToken = true,
            DefaultValueFactory = _ => ["all"],
        };
        var command = new Command(operation.Name, $"Times {operation.What}, forward and with backward, by shape.") { shapes };
        common.AddReport(command);
        common.AddTiming(command);
        common.AddPeers(command);
        command.SetAction(parsed =>
        {
            IReadOnlyList<IOperationShape> chosen = operation.Parse(parsed.GetValue(shapes)!);
            Peers peers = common.Peers(parsed);
            Target target = common.Target(parsed);
            ReportOutput output = common.Output(parsed);
            using Stopclock clock = common.Clock(parsed, target);
            var report = new Report($"kernels-{operation.Name}", $"{operation.Title}, {common.DtypeName(parsed)}",
                Machine.Of(target), NewTable(operation));
            report.Notes.Add(common.Method(parsed, target));
            ByteFloor floor = ByteFloor.Measure(clock);
            report.Values["copy_bytes_per_second"] = floor.BytesPerSecond;
            report.Notes.Add($"Floor: {operation.FloorNote}. At {floor.BytesPerSecond / 1e9:F0} GB/s, measured by a large copy "
                + "on the device.");
            report.Notes.Add($"{operation.InputsNote}. Forward runs without a graph; forward + backward through autograd.grad, "
                + "to the gradients of all inputs, with a given gradient of the output.");
            foreach (IOperationShape shape in chosen)
            {
                Measure(report, clock, shape, common.Dtype(parsed), floor, peers);
                output.Save(report);
            }

            return output.Finish(report);
        });
        return command;
    }

    private static Table NewTable(ShapeOperation operation) => new(
        new("shape", operation.Letters), new("way", "backend"), new("takes", "takes"),
        new("forward_ms", "fwd, ms"), new("forward_backward_ms", "fwd+bwd, ms"),
        new("forward_floor_ms", "fwd floor, ms"), new("forward_backward_floor_ms", "fwd+bwd floor, ms"),
        new("forward_of_floor", "floor / fwd"), new("forward_backward_of_floor", "floor / fwd+bwd"),
        new("forward_tflops", "fwd, TFLOP/s"), new("forward_backward_tflops", "fwd+bwd, TFLOP/s"),
        new("peer", "peer"), new("peer_forward_ms", "its fwd, ms"), new("peer_forward_backward_ms", "its fwd+bwd, ms"),
        new("forward_ratio", "fwd: peer / own"), new("forward_backward_ratio", "fwd+bwd: peer / own"));

    private static void Measure(
        Report report, Stopclock clock, IOperationShape shape, ScalarType dtype, ByteFloor floor, Peers peers)
    {
        Target target = clock.Target;
        Trial.Run(report, $"{shape}", () =>
        {
            int count = InputSets.Count(shape.SetElements * dtype.ElementSize(), target.CacheBytes);
            manual_seed(0);
            var sets = new List<OperationInputs>();
            try
            {
                for (int i = 0; i < count; i++)
                    sets.Add(shape.Inputs(dtype, target.Device));
                foreach (string way in shape.Ways(dtype, target.Device))
                    Trial.Run(report, $"{shape} {way}".TrimEnd(), () =>
                    {
                        string takes = shape.Takes(way, dtype, target.Device);
                        Timing forward = clock.Time(count, set => sets[set].Forward(way));
                        Timing both = clock.Time(count, set => sets[set].ForwardBackward(way));
                        report.Table.Add(Row(shape, way, takes, forward, both, floor, dtype, peers));
                        ReportOutput.Progress(
                            $"{shape} {takes} {way}: {Cell.Text(forward)}, with backward {Cell.Text(both)} ms");
                    });
            }
            finally
            {
                sets.ForEach(set => set.Dispose());
            }
        });
    }

    private static object?[] Row(IOperationShape shape, string way, string takes, Timing forward, Timing both, ByteFloor floor,
        ScalarType dtype, Peers peers)
    {
        double forwardFloor = Milliseconds(shape.ForwardElements);
        double bothFloor = Milliseconds(shape.ForwardElements + shape.BackwardElements);
        string key = shape.PeerKey(way);
        PeerFigure? peer = peers.Find(key);
        return
        [
            shape.ToString(), way.Length == 0 ? null : way, takes, forward, both, forwardFloor, bothFloor,
            forwardFloor / forward.Median, bothFloor / both.Median,
            TeraPerSecond(shape.ForwardFlops, forward), TeraPerSecond(shape.ForwardFlops + shape.BackwardFlops, both),
            peer is null ? null : key.Split('|')[0], peer?.ForwardMs, peer?.BothMs,
            Peers.Ratio(peer?.ForwardMs, forward.Median), Peers.Ratio(peer?.BothMs, both.Median),
        ];

        double Milliseconds(long elements) => 1000 * elements * dtype.ElementSize() / floor.BytesPerSecond;
        static double? TeraPerSecond(double? operations, Timing timing) => operations / timing.Median / 1e9;
    }
}
