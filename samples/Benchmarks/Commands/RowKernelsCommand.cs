using System.CommandLine;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using FlaSharp;
using LanguageModel;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>kernels rows: the convolution and the norms, against the time that a copy of their tensors takes.</summary>
internal static class RowKernelsCommand
{
    private const int Sets = 2; // a tensor of the usual shape is larger than a cache

    public static Command Create()
    {
        var common = new CommonOptions();
        var shape = new Option<string>("--shape") { Description = "T,E.", DefaultValueFactory = _ => "8192,12288" };
        var operations = new Option<string>("--ops")
        {
            Description = $"Which operations, with commas between. [{Names}]",
            DefaultValueFactory = _ => Names,
        };
        var command = new Command("rows", "Times the causal convolution and the norms, forward and with backward.")
        {
            shape, operations,
        };
        common.AddReport(command);
        common.AddTiming(command);
        common.AddPeers(command);
        command.SetAction(parsed =>
        {
            long[] sizes = GlaShape.ParseSizes("--shape", parsed.GetValue(shape)!, "T,E");
            IReadOnlyList<RowOperation> chosen = Parse(parsed.GetValue(operations)!);
            Peers peers = common.Peers(parsed);
            Target target = common.Target(parsed);
            ReportOutput output = common.Output(parsed);
            using Stopclock clock = common.Clock(parsed, target);
            string title = $"Convolution and norms of {sizes[0]} x {sizes[1]}, {common.DtypeName(parsed)}";
            var report = new Report("kernels-rows", title, Machine.Of(target), NewTable());
            report.Notes.Add(common.Method(parsed, target));
            Measure(report, clock, chosen, sizes[0], sizes[1], common.Dtype(parsed), peers, output);
            return output.Finish(report);
        });
        return command;
    }

    private static string Names => string.Join(',', RowOperation.All.Select(operation => operation.Name));

    private static Table NewTable() => new(
        new("operation", "operation"), new("takes", "takes"),
        new("forward_ms", "fwd, ms"), new("forward_backward_ms", "fwd+bwd, ms"),
        new("forward_floor_ms", "fwd floor, ms"), new("forward_backward_floor_ms", "fwd+bwd floor, ms"),
        new("forward_of_floor", "floor / fwd"), new("forward_backward_of_floor", "floor / fwd+bwd"),
        new("peer", "peer"), new("peer_forward_ms", "its fwd, ms"), new("peer_forward_backward_ms", "its fwd+bwd, ms"),
        new("forward_ratio", "fwd: peer / own"), new("forward_backward_ratio", "fwd+bwd: peer / own"));

    private static IReadOnlyList<RowOperation> Parse(string names) =>
        [.. names.Split(',').Select(name => RowOperation.All.FirstOrDefault(operation => operation.Name == name)
            ?? throw new UserError($"--ops {name}: choose of {Names.Replace(",", ", ", StringComparison.Ordinal)}."))];

    private static void Measure(Report report, Stopclock clock, IReadOnlyList<RowOperation> operations, long time, long channels,
        ScalarType dtype, Peers peers, ReportOutput output)
    {
        Target target = clock.Target;
        ByteFloor floor = ByteFloor.Measure(clock);
        report.Values["copy_bytes_per_second"] = floor.BytesPerSecond;
        report.Notes.Add("Floor: each tensor of T x E is read or written once, at "
            + $"{floor.BytesPerSecond / 1e9:F0} GB/s, measured by a large copy on the device.");
        report.Notes.Add("The convolution has four taps, a bias and SiLU. Forward runs without a graph; forward + backward "
            + "through autograd.grad, to the gradients of all inputs.");
        IReadOnlyList<OperationPath> paths = Doctor.Examine(target.Device).Operations;
        Trial.Run(report, $"{time},{channels}", () =>
        {
            using DisposeScope scope = NewDisposeScope();
            manual_seed(0);
            RowInputs[] sets = [.. Enumerable.Range(0, Sets).Select(_ => new RowInputs(time, channels, dtype, target.Device))];
            foreach (RowOperation operation in operations)
            {
                Trial.Run(report, operation.Name, () =>
                {
                    Timing forward = clock.Time(Sets, set => sets[set].Forward(operation));
                    Timing both = clock.Time(Sets, set => sets[set].ForwardBackward(operation));
                    double forwardFloor = Milliseconds(operation.ForwardTensors);
                    double bothFloor = Milliseconds(operation.ForwardTensors + operation.BackwardTensors);
                    string path = paths.First(path => path.Operation == operation.Operation).Path;
                    string? key = operation.PeerKey?.Invoke(time, channels);
                    PeerFigure? peer = key is null ? null : peers.Find(key);
                    report.Table.Add(operation.Name, path, forward, both, forwardFloor, bothFloor,
                        forwardFloor / forward.Median, bothFloor / both.Median,
                        peer is null ? null : key!.Split('|')[0], peer?.ForwardMs, peer?.BothMs,
                        Peers.Ratio(peer?.ForwardMs, forward.Median), Peers.Ratio(peer?.BothMs, both.Median));
                    ReportOutput.Progress($"{operation.Name}: {Cell.Text(forward)}, with backward {Cell.Text(both)} ms");
                });
                output.Save(report);
            }
            foreach (RowInputs set in sets)
                set.Dispose();
        });

        double Milliseconds(int tensors) => 1000 * tensors * time * channels * dtype.ElementSize() / floor.BytesPerSecond;
    }
}
