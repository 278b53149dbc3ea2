using System.CommandLine;
using System.Diagnostics;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using FlaSharp;
using FlaSharp.Ops;
using LanguageModel.Commands;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>overhead: the host's time of a call, which is what a small operation costs.</summary>
internal static class OverheadCommand
{
    private const int CallsOfABurst = 100; // fewer than a GPU's queue holds, so that no call waits for it

    // .NET compiles what is called often anew, in the background; until then a call takes about twice as long.
    private static readonly TimeSpan s_warmUp = TimeSpan.FromSeconds(1.5);

    public static Command Create()
    {
        var common = new CommonOptions();
        var shapes = new ShapeOption([new GlaShape(1, 64, 4, 64)]);
        Option<int> bursts = Choices.AtLeast("--bursts", $"How often {CallsOfABurst} calls are timed.", 20, 50);
        var command = new Command("overhead", "Times the host's part of a call of gated linear attention.")
        {
            shapes.Option, bursts,
        };
        common.AddReport(command);
        command.SetAction(parsed =>
        {
            IReadOnlyList<GlaShape> chosen = shapes.Read(parsed);
            Target target = common.Target(parsed);
            ReportOutput output = common.Output(parsed);
            var report = new Report("overhead", $"Host time of a call, {common.DtypeName(parsed)}", Machine.Of(target),
                new Table(new("shape", "B,T,H,D"), new("call", "call"), new("takes", "takes"), new("microseconds", "us a call")));
            report.Notes.Add($"Median (10th-90th percentile) of {parsed.GetValue(bursts)} bursts of {CallsOfABurst} calls; the "
                + "device is idle before each burst, and the burst ends without waiting for it.");
            if (target.Gpu is null)
                report.Notes.Add("On the CPU a call returns with its result: these times contain the computation.");
            report.Charts.Add(new Chart("calls", "Host time of a call", "us"));
            foreach (GlaShape shape in chosen)
                Measure(report, target, shape, common.Dtype(parsed), parsed.GetValue(bursts));
            return output.Finish(report);
        });
        return command;
    }

    private static void Measure(Report report, Target target, GlaShape shape, ScalarType dtype, int bursts)
    {
        using var inputs = new GlaInputs(shape, dtype, target.Device);
        using (no_grad())
        {
            Add("choosing the path (PlanGla)", "", () => FlaOps.PlanGla(inputs.Q));
            Add("making an output tensor", "", () => empty(shape.B, shape.T, shape.H, shape.D, dtype, target.Device).Dispose());
            foreach (LinearAttentionMode mode in Enum.GetValues<LinearAttentionMode>())
            {
                if (!GlaModes.IsHopeless(shape, mode, dtype, target.Device))
                    Add($"Gla {mode}", GlaModes.Plan(shape, mode, dtype, target.Device), () => inputs.Forward(mode).Dispose());
            }
        }

        Add("Gla Auto, recording for backward", GlaModes.Plan(shape, LinearAttentionMode.Auto, dtype, target.Device),
            () => FlaOps.Gla(inputs.Q, inputs.K, inputs.V, inputs.G).output.Dispose());

        void Add(string call, string takes, Action action) => Trial.Run(report, $"{shape} {call}", () =>
        {
            Timing microseconds = Bursts(target, action, bursts);
            report.Table.Add(shape.ToString(), call, takes, microseconds);
            report.Charts[0].Add(shape.ToString(), call, microseconds.Median);
            ReportOutput.Progress($"{shape} {call}: {Cell.Text(microseconds)} us");
        });
    }

    private static Timing Bursts(Target target, Action action, int bursts)
    {
        long begin = Stopwatch.GetTimestamp();
        do
            Burst();
        while (Stopwatch.GetElapsedTime(begin) < s_warmUp);

        var microseconds = new List<double>();
        for (int i = 0; i < bursts; i++)
            microseconds.Add(Burst());
        target.Synchronize();
        return Timing.Of(microseconds);

        double Burst()
        {
            using DisposeScope scope = NewDisposeScope();
            target.Synchronize();
            long start = Stopwatch.GetTimestamp();
            for (int call = 0; call < CallsOfABurst; call++)
                action();
            return Stopwatch.GetElapsedTime(start).TotalMicroseconds / CallsOfABurst;
        }
    }
}
