using System.CommandLine;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using LanguageModel.Commands;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>advise: which layer is the fastest for a model of the user's sizes, here.</summary>
internal static class AdviseCommand
{
    public static Command Create()
    {
        var common = new CommonOptions();
        Option<int?> hidden = Choices.AtLeastIfGiven("--hidden", "Width of the model.", 1);
        Option<int?> heads = Choices.AtLeastIfGiven("--heads", "Heads of attention.", 1);
        Option<int?> seq = Choices.AtLeastIfGiven("--seq", "Tokens of a sequence.", 1);
        Option<int> batch = Choices.AtLeast("--batch", "Sequences at once.", 1, 1);
        foreach (Option<int?> required in new[] { hidden, heads, seq })
            required.Required = true;
        var command = new Command("advise", "Times every layer for a model of your sizes and recommends one.")
        {
            hidden, heads, seq, batch,
        };
        common.AddReport(command);
        common.AddTiming(command);
        command.SetAction(parsed =>
        {
            Target target = common.Target(parsed);
            ReportOutput output = common.Output(parsed);
            using Stopclock clock = common.Clock(parsed, target);
            int Given(Option<int?> option) => parsed.GetValue(option)!.Value; // since it is required
            var sizes = new ModelSizes(Given(hidden), Given(heads), Given(seq), parsed.GetValue(batch));
            var report = new Report("advise", $"One layer, {sizes}, {common.DtypeName(parsed)}", Machine.Of(target), new Table(
                new("layer", "layer"), new("takes", "takes"), new("parameters", "parameters"),
                new("forward_ms", "fwd, ms"), new("forward_backward_ms", "fwd+bwd, ms")));
            report.Notes.Add(common.Method(parsed, target));
            List<Candidate> candidates = Measure(report, clock, sizes, common.Dtype(parsed), output);
            int code = output.Finish(report);
            if (candidates.Count > 0)
                Console.WriteLine(report.Values["advice"]);
            return code;
        });
        return command;
    }

    private static List<Candidate> Measure(
        Report report, Stopclock clock, ModelSizes sizes, ScalarType dtype, ReportOutput output)
    {
        (int hidden, int heads, int seq, int batch) = sizes;
        var chart = new Chart("layers", report.Title, "ms");
        report.Charts.Add(chart);
        var candidates = new List<Candidate>();
        foreach (LayerChoice choice in LayerChoice.All)
        {
            (string takes, bool isHopeless) = choice.Plan(batch, seq, hidden, heads, dtype, clock.Target.Device);
            if (isHopeless)
            {
                report.Notes.Add($"{choice} left out: there is no kernel for it here, only a loop over its tokens.");
                continue;
            }

            Trial.Run(report, choice.ToString(), () =>
            {
                using var timings = new LayerTimings(
                    clock, choice.Create(hidden, heads, dtype, clock.Target.Device), batch, seq, dtype);
                var candidate = new Candidate(choice, timings.Forward(), timings.ForwardBackward());
                candidates.Add(candidate);
                report.Table.Add(choice.ToString(), takes, timings.ParameterCount, candidate.Forward, candidate.Both);
                chart.Add("forward", choice.ToString(), candidate.Forward.Median);
                chart.Add("forward + backward", choice.ToString(), candidate.Both.Median);
                ReportOutput.Progress(
                    $"{choice}: {Cell.Text(candidate.Forward)}, with backward {Cell.Text(candidate.Both)} ms");
            });
            output.Save(report);
        }

        if (candidates.Count > 0)
            report.Values["advice"] = Advice.Of(candidates, sizes);
        return candidates;
    }
}
