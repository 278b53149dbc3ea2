using System.CommandLine;
using System.Text.Json.Nodes;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using FlaSharp;
using FlaSharp.Kernels.Runtime;
using LanguageModel;
using LanguageModel.Commands;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>memory: what forward and backward take beyond their inputs, at their peak.</summary>
internal static class MemoryCommand
{
    private const string ChildName = "memory-of-one";
    private const long WarmUpLength = 64;
    private const int ResultTensors = 5; // the output and the gradients of q, k, v and g

    public static Command Create()
    {
        var common = new CommonOptions();
        var shapes = new ShapeOption(GlaShape.Fla);
        var command = new Command("memory", "Measures the peak of extra GPU memory of gated linear attention.")
        {
            shapes.Option, shapes.SkipLarge,
        };
        common.AddReport(command);
        common.AddPeers(command);
        command.SetAction(parsed =>
        {
            IReadOnlyList<GlaShape> chosen = shapes.Read(parsed);
            Peers peers = common.Peers(parsed);
            Target target = common.Target(parsed);
            RequireGpu(target);
            ReportOutput output = common.Output(parsed);
            var report = new Report("memory", $"Peak extra memory, {common.DtypeName(parsed)}", Machine.Of(target), new Table(
                new("shape", "B,T,H,D"), new("mode", "mode"), new("takes", "takes"),
                new("forward_mib", "fwd, MiB"), new("forward_backward_mib", "fwd+bwd, MiB"),
                new("results_mib", "of which results, MiB"), new("peer", "peer"), new("peer_mib", "its peak, MiB"),
                new("ratio", "peer / own")));
            report.Notes.Add("TorchSharp has no statistics of its memory. Each row is a fresh process that makes the inputs, "
                + $"calls the operation on {WarmUpLength} tokens so that its kernels are loaded, and then asks the driver how "
                + "much memory went until after the pass. libtorch gives nothing back to the driver, so that is the peak of what "
                + "it held, with its rounding: up to 20 MiB a block above the tensors, and at most as much below where the "
                + "inputs' blocks had room.");
            report.Notes.Add("Results: the output and the gradients of q, k, v and g, which any implementation has to make.");
            report.Charts.Add(new Chart("peak", "Peak extra memory of forward + backward", "MiB"));
            ScalarType dtype = common.Dtype(parsed);
            foreach (GlaShape shape in shapes.Fitting(chosen, parsed, report, target, dtype))
            {
                foreach (LinearAttentionMode mode in Enum.GetValues<LinearAttentionMode>())
                {
                    if (mode == LinearAttentionMode.FusedRecurrent && shape.T > GlaModes.LongestRecurrence)
                        continue;
                    Trial.Run(report, $"{shape} {mode}",
                        () => Add(report, target, shape, mode, dtype, common.DtypeName(parsed), peers));
                    output.Save(report);
                }
            }

            return output.Finish(report);
        });
        return command;
    }

    /// <summary>The process of one row.</summary>
    public static Command CreateChild()
    {
        var common = new CommonOptions();
        var shapes = new ShapeOption([]);
        Option<LinearAttentionMode> mode = Choices.OneOf("--mode", "Of the operation.", LinearAttentionMode.Auto);
        var command = new Command(ChildName) { shapes.Option, mode };
        command.Hidden = true;
        common.AddReport(command);
        command.SetAction(parsed =>
        {
            Target target = common.Target(parsed);
            RequireGpu(target);
            Console.WriteLine(
                MeasureHere(target.Gpu!, shapes.Read(parsed)[0], parsed.GetValue(mode), common.Dtype(parsed), target.Device)
                    .ToJsonString());
            return 0;
        });
        return command;
    }

    private static void RequireGpu(Target target)
    {
        if (target.Gpu is null)
            throw new UserError("memory needs a GPU: the driver is asked for its free memory, and the CPU's is shared with "
                + "everything else that runs.");
    }

    private static void Add(Report report, Target target, GlaShape shape, LinearAttentionMode mode, ScalarType dtype,
        string dtypeName, Peers peers)
    {
        JsonObject child = ChildProcess.Run([ChildName, "--shapes", shape.ToString(),
            "--mode", mode.ToString().ToLowerInvariant(), "--dtype", dtypeName, "--device", $"cuda:{target.Gpu!.Ordinal}"]);
        double forward = child["forward_bytes"]!.GetValue<long>() / (double)(1 << 20);
        double both = child["forward_backward_bytes"]!.GetValue<long>() / (double)(1 << 20);
        double results = ResultTensors * shape.Elements * dtype.ElementSize() / (double)(1 << 20);
        string key = GlaModes.PeerKey(mode, shape);
        PeerFigure? peer = peers.Find(key);
        report.Table.Add(
            shape.ToString(), mode.ToString(), GlaModes.Plan(shape, mode, dtype, target.Device), forward, both, results,
            peer is null ? null : key.Split('|')[0], peer?.PeakExtraMiB, Peers.Ratio(peer?.PeakExtraMiB, both));
        Chart chart = report.Charts[0];
        chart.Add(shape.ToString(), "results", results);
        chart.Add(shape.ToString(), mode.ToString(), both);
        chart.Add(shape.ToString(), key.Split('|')[0], peer?.PeakExtraMiB);
        ReportOutput.Progress($"{shape} {mode}: {Cell.Text(forward)}, with backward {Cell.Text(both)} MiB");
    }

    private static JsonObject MeasureHere(
        GpuDevice gpu, GlaShape shape, LinearAttentionMode mode, ScalarType dtype, Device device)
    {
        using var inputs = new GlaInputs(shape, dtype, device);
        using (DisposeScope scope = NewDisposeScope())
        using (var few = new GlaInputs(shape with { B = 1, T = Math.Min(shape.T, WarmUpLength) }, dtype, device))
        {
            few.Forward(mode);
            few.ForwardBackward(mode);
        }

        long before = Free();
        using (DisposeScope scope = NewDisposeScope())
            inputs.Forward(mode);
        long afterForward = Free();
        using (DisposeScope scope = NewDisposeScope())
            inputs.ForwardBackward(mode);
        return new JsonObject
        {
            ["forward_bytes"] = before - afterForward,
            ["forward_backward_bytes"] = before - Free(),
        };

        long Free()
        {
            gpu.Synchronize();
            return gpu.Memory().free;
        }
    }
}
