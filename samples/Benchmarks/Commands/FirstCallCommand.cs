using System.CommandLine;
using System.Globalization;
using System.Text.Json.Nodes;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using FlaSharp;
using FlaSharp.Kernels.Runtime;
using LanguageModel.Commands;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>first-call: how long a user waits for a new process's first result.</summary>
internal static class FirstCallCommand
{
    private const string ChildName = "first-call-of-one";

    public static Command Create()
    {
        var common = new CommonOptions();
        var shapes = new ShapeOption([new GlaShape(4, 2048, 16, 128)]);
        Option<LinearAttentionMode> mode = Choices.OneOf("--mode", "Of the operation.", LinearAttentionMode.Auto);
        Option<int> repeats = Choices.AtLeast("--repeats", "Processes of each kind.", 1, 3);
        Option<int> random = Choices.AtLeast("--random", "Calls of random sizes after a warm-up.", 0, 200);
        var command = new Command("first-call", "Times a new process's first result, with an empty and a filled kernel cache.")
        {
            shapes.Option, mode, repeats, random,
        };
        common.AddReport(command);
        common.AddPeers(command);
        command.SetAction(parsed =>
        {
            IReadOnlyList<GlaShape> chosen = shapes.Read(parsed);
            Peers peers = common.Peers(parsed);
            Target target = common.Target(parsed);
            ReportOutput output = common.Output(parsed);
            var report = new Report("first-call", $"First call, {common.DtypeName(parsed)}", Machine.Of(target), new Table(
                new("shape", "B,T,H,D"), new("cache", "kernel cache"), new("start_s", "library ready, s"),
                new("forward_s", "first fwd, s"), new("forward_backward_s", "first fwd+bwd, s"),
                new("forward_after_start_s", "fwd after ready, s"),
                new("forward_backward_after_start_s", "fwd+bwd after ready, s"), new("compiled", "kernels compiled"),
                new("peer_first_s", "peer's first call, s")));
            report.Notes.Add("Seconds since the process was started; medians (10th-90th percentile). Ready: libtorch is loaded "
                + "and the inputs lie on the device. 'After ready' counts from there to the end of the first forward pass, which "
                + "records for backward, and to that of the backward pass that follows. An empty cache is a new folder in "
                + $"{CubinCache.FolderVariable}. The command's own process holds the device meanwhile, so that no run waits for "
                + "a GPU to wake up.");
            var chart = new Chart("seconds", "First forward + backward after the library is ready", "s");
            report.Charts.Add(chart);
            string[] fixedArguments = ["--mode", parsed.GetValue(mode).ToString().ToLowerInvariant(),
                "--dtype", common.DtypeName(parsed), "--device", target.Gpu is null ? "cpu" : $"cuda:{target.Gpu.Ordinal}"];
            foreach (GlaShape shape in chosen)
            {
                Trial.Run(report, shape.ToString(), () =>
                {
                    string[] arguments = ["--shapes", shape.ToString(), .. fixedArguments];
                    PeerFigure? peer = peers.Find(GlaModes.PeerKey(parsed.GetValue(mode), shape));
                    AddShape(report, chart, shape, arguments, parsed.GetValue(repeats), parsed.GetValue(random), peer);
                });
                output.Save(report);
            }

            return output.Finish(report);
        });
        return command;
    }

    /// <summary>The process of one measurement.</summary>
    public static Command CreateChild()
    {
        var common = new CommonOptions();
        var shapes = new ShapeOption([]);
        Option<LinearAttentionMode> mode = Choices.OneOf("--mode", "Of the operation.", LinearAttentionMode.Auto);
        Option<long> started = Choices.AtLeast("--started", "UTC ticks before its start.", 0L, 0L);
        Option<int> random = Choices.AtLeast("--random", "Calls of random sizes.", 0, 0);
        var command = new Command(ChildName) { shapes.Option, mode, started, random };
        command.Hidden = true;
        common.AddReport(command);
        command.SetAction(parsed =>
        {
            var start = new DateTime(parsed.GetValue(started), DateTimeKind.Utc);
            Target target = common.Target(parsed);
            GlaShape shape = shapes.Read(parsed)[0];
            Console.WriteLine(
                MeasureHere(target, shape, parsed.GetValue(mode), common.Dtype(parsed), start, parsed.GetValue(random))
                    .ToJsonString());
            return 0;
        });
        return command;
    }

    private static void AddShape(
        Report report, Chart chart, GlaShape shape, string[] arguments, int repeats, int random, PeerFigure? peer)
    {
        var cold = new List<JsonObject>();
        var warm = new List<JsonObject>();
        for (int i = 0; i < repeats; i++)
        {
            string cache = Directory.CreateTempSubdirectory("flasharp-first-call-").FullName;
            try
            {
                cold.Add(Start(cache, 0));
                warm.Add(Start(cache, i == 0 ? random : 0));
            }
            finally
            {
                Directory.Delete(cache, recursive: true);
            }
        }

        Add("empty", cold);
        Add("filled", warm);
        if (random > 0)
        {
            JsonObject calls = warm[0]["random"]!.AsObject();
            report.Values[$"random_calls {shape}"] = calls.DeepClone();
            report.Notes.Add($"{random} calls, forward and backward, of random B, T and packed lengths, up to the tokens of "
                + $"{shape}, after a warm-up: slowest {Cell.Text(Number(calls, "slowest_ms"))} ms ({calls["slowest"]}), "
                + $"median {Cell.Text(Number(calls, "median_ms"))} ms, {calls["compiled"]} new compilations.");
        }

        JsonObject Start(string cache, int calls) => ChildProcess.Run(
            [ChildName, .. arguments, "--random", calls.ToString(CultureInfo.InvariantCulture),
                "--started", DateTime.UtcNow.Ticks.ToString(CultureInfo.InvariantCulture)],
            (CubinCache.FolderVariable, cache), (CubinCache.SwitchVariable, "1"));

        void Add(string name, List<JsonObject> runs)
        {
            Timing ready = Seconds(run => Number(run, "ready_s"));
            Timing both = Seconds(run => Number(run, "forward_backward_s") - Number(run, "ready_s"));
            report.Table.Add(shape.ToString(), name, ready, Seconds(run => Number(run, "forward_s")),
                Seconds(run => Number(run, "forward_backward_s")),
                Seconds(run => Number(run, "forward_s") - Number(run, "ready_s")), both,
                runs.Max(run => run["compiled"]!.GetValue<int>()), peer?.FirstSeconds);
            chart.Add(shape.ToString(), $"{name} cache", both.Median);
            chart.Add(shape.ToString(), "peer", peer?.FirstSeconds);
            ReportOutput.Progress(
                $"{shape}, {name} cache: ready after {Cell.Text(ready)}, then forward and backward {Cell.Text(both)} s");

            Timing Seconds(Func<JsonObject, double> value) => Timing.Of(runs.Select(value));
        }
    }

    private static JsonObject MeasureHere(
        Target target, GlaShape shape, LinearAttentionMode mode, ScalarType dtype, DateTime start, int random)
    {
        using DisposeScope scope = NewDisposeScope();
        manual_seed(0);
        using var inputs = new GlaInputs(shape, dtype, target.Device);
        double ready = Elapsed();
        double forward = 0;
        inputs.ForwardBackward(mode, between: () => forward = Elapsed());
        double both = Elapsed();
        var result = new JsonObject
        {
            ["ready_s"] = ready,
            ["forward_s"] = forward,
            ["forward_backward_s"] = both,
            ["compiled"] = CubinCache.Default.Size().files,
        };
        if (random > 0)
            result["random"] = RandomCalls.Run(target, shape, mode, dtype, random);
        return result;

        double Elapsed()
        {
            target.Synchronize();
            return (DateTime.UtcNow - start).TotalSeconds;
        }
    }

    private static double Number(JsonObject json, string name) => json[name]!.GetValue<double>();
}
