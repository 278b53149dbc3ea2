using System.CommandLine;
using System.Globalization;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using FlaSharp.Models;
using LanguageModel;
using LanguageModel.Commands;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>decode: the tokens that models of one size generate in a second, by layer and batch.</summary>
internal static class DecodeCommand
{
    public static Command Create()
    {
        var common = new CommonOptions();
        var batches = new Option<string>("--batches")
        {
            Description = "Sequences at once; several with commas between.",
            DefaultValueFactory = _ => "1,4,16,64",
        };
        Option<int> hidden = Choices.AtLeast("--hidden", "Width of the models.", 1, 1024);
        Option<int> layers = Choices.AtLeast("--layers",
            "Blocks of a mixer and an MLP; Mamba and Mamba-2 get twice as many blocks, which have no MLP.", 1, 12);
        Option<int> heads = Choices.AtLeast("--heads", "Heads of gated linear attention and of softmax attention.", 1, 4);
        Option<int> vocabulary = Choices.AtLeast("--vocabulary", "Tokens to choose from.", 2, 32_000);
        Option<int> prompt = Choices.AtLeast("--prompt", "Tokens that each sequence has before.", 1, 512);
        var command = new Command("decode", "Measures the tokens per second of generation, by layer and batch.")
        {
            batches, hidden, layers, heads, vocabulary, prompt,
        };
        common.AddReport(command);
        common.AddTiming(command);
        common.AddPeers(command);
        command.SetAction(parsed =>
        {
            int[] sizes = ParseBatches(parsed.GetValue(batches)!);
            Peers peers = common.Peers(parsed);
            Target target = common.Target(parsed);
            ReportOutput output = common.Output(parsed);
            using Stopclock clock = common.Clock(parsed, target);
            string dtype = common.DtypeName(parsed);
            var options = new TrainOptions
            {
                Width = parsed.GetValue(hidden),
                Layers = parsed.GetValue(layers),
                Heads = parsed.GetValue(heads),
                Dtype = common.PrecisionOf(parsed),
            };
            var report = new Report($"decode-{dtype}",
                $"Generation, {dtype}, width {options.Width}, {options.Layers} layers", Machine.Of(target), NewTable());
            report.Notes.Add(common.Method(parsed, target));
            report.Notes.Add($"A step feeds one token per sequence after a prompt of {parsed.GetValue(prompt)}, takes the "
                + $"likeliest of {parsed.GetValue(vocabulary)} and brings it to the host: CausalLM.GenerateTokens. States "
                + "are updated in place where a kernel does that.");
            report.Notes.Add("mamba_ssm: its blocks, a step in a CUDA graph, and one launched from Python "
                + "(eng/time-peer-decoding.py). Their states are bfloat16, FlaSharp's float32.");
            Measure(report, clock, options, sizes, parsed.GetValue(vocabulary), parsed.GetValue(prompt), peers, output);
            return output.Finish(report);
        });
        return command;
    }

    private static Table NewTable() => new(
        new("layer", "layer"), new("parameters", "parameters"), new("batch", "batch"),
        new("step_ms", "a step, ms"), new("tokens_per_second", "tokens/s"),
        new("peer_graph_ms", "mamba_ssm in a graph, ms"), new("peer_eager_ms", "mamba_ssm, ms"));

    private static int[] ParseBatches(string text) => [.. text.Split(',').Select(part =>
        int.TryParse(part.Trim(), NumberStyles.None, CultureInfo.InvariantCulture, out int batch) && batch > 0
            ? batch
            : throw new UserError($"--batches {text}: use whole numbers of at least 1 with commas between."))];

    private static void Measure(Report report, Stopclock clock, TrainOptions options, int[] batches, int vocabulary, int prompt,
        Peers peers, ReportOutput output)
    {
        Device device = clock.Target.Device;
        var chart = new Chart("tokens", report.Title, "tokens/s");
        report.Charts.Add(chart);
        foreach (LayerKind layer in Enum.GetValues<LayerKind>())
        {
            Trial.Run(report, $"{layer}", () =>
            {
                using CausalLM model = ModelFactory.Create(options with { Layer = layer }, vocabulary, device);
                model.eval();
                foreach (int batch in batches)
                {
                    Trial.Run(report, $"{layer}, batch {batch}", () =>
                    {
                        Timing step = Time(clock, model, batch, prompt);
                        double tokens = 1000 * batch / step.Median;
                        report.Table.Add(layer.ToString(), model.ParameterCount, batch, step, tokens,
                            peers.Find($"decode {layer}|B{batch}")?.ForwardMs,
                            peers.Find($"decode {layer} eager|B{batch}")?.ForwardMs);
                        chart.Add(batch.ToString(CultureInfo.InvariantCulture), layer.ToString(), tokens);
                        ReportOutput.Progress($"{layer}, batch {batch}: {Cell.Text(step)} ms, {Cell.Text(tokens)} tokens/s");
                    });
                    output.Save(report);
                }
            });
        }
    }

    private static Timing Time(Stopclock clock, CausalLM model, int batch, int promptLength)
    {
        using Tensor prompt =
            randint(model.Config.VocabSize, [batch, promptLength], int64, clock.Target.Device).DetachFromDisposeScope();
        using IEnumerator<long[]> tokens =
            model.GenerateTokens(prompt, new GenerationOptions { MaxNewTokens = int.MaxValue }).GetEnumerator();
        tokens.MoveNext(); // reads the prompt
        return clock.Time(1, _ => tokens.MoveNext());
    }
}
