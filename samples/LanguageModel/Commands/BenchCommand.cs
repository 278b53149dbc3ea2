using System.CommandLine;
using System.Diagnostics;
using FlaSharp;
using FlaSharp.Models;
using LanguageModel.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace LanguageModel.Commands;

/// <summary>bench: what a training step costs with each layer, in models of one size.</summary>
internal static class BenchCommand
{
    private const int Vocabulary = 256;
    private const int WarmUps = 3;

    public static Command Create()
    {
        var standard = new TrainOptions();
        var batch = Choices.AtLeast("--batch", "Sequences per step.", 1, standard.Batch);
        var seq = Choices.AtLeast("--seq", "Tokens per sequence.", 2, standard.Seq);
        var width = Choices.AtLeast("--width", "Model width.", 1, standard.Width);
        var layers = Choices.AtLeast("--layers", "As for training.", 1, standard.Layers);
        var heads = Choices.AtLeast("--heads", "Heads of attention.", 1, standard.Heads);
        var dtype = Choices.OneOf("--dtype", "Weights and activations.", standard.Dtype);
        var repeats = Choices.AtLeast("--repeats", "Steps to time, of each layer in turn.", 1, 20);
        Option<string?> device = Devices.Option();
        var command = new Command("bench", "Times a training step of every --layer in models of one size.")
        {
            batch, seq, width, layers, heads, dtype, repeats, device,
        };
        command.SetAction(parsed =>
        {
            Run(standard with
            {
                Batch = parsed.GetValue(batch),
                Seq = parsed.GetValue(seq),
                Width = parsed.GetValue(width),
                Layers = parsed.GetValue(layers),
                Heads = parsed.GetValue(heads),
                Dtype = parsed.GetValue(dtype),
            }, parsed.GetValue(repeats), Devices.Choose(parsed.GetValue(device)));
            return 0;
        });
        return command;
    }

    private static void Run(TrainOptions options, int repeats, Device device)
    {
        var subjects = Enum.GetValues<LayerKind>().Select(layer => new Subject(options with { Layer = layer }, device)).ToList();

        // In turns, so that a busy moment of the machine falls on all of them.
        for (int i = 0; i < WarmUps + repeats; i++)
        {
            foreach (Subject subject in subjects)
                subject.Step(isTimed: i >= WarmUps);
        }

        double[] baseline = subjects.Single(subject => subject.Layer == LayerKind.Softmax).Milliseconds();
        Console.WriteLine(
            FormattableString.Invariant($"{device}, {options.Dtype}, width {options.Width}, {options.Layers} layers, ")
            + FormattableString.Invariant($"batch {options.Batch} x {options.Seq} tokens; ms per training step"));
        Console.WriteLine($"{"layer",-10}{"parameters",12}{"min",10}{"median",10}{"tokens/s",12}{"of softmax",12}");
        foreach (Subject subject in subjects)
        {
            double[] times = subject.Milliseconds();
            double median = times[times.Length / 2];
            Console.WriteLine(FormattableString.Invariant(
                $"{subject.Layer.ToString().ToLowerInvariant(),-10}{subject.Parameters,12:N0}{times[0],10:F1}{median,10:F1}")
                + FormattableString.Invariant($"{options.TokensPerStep / median * 1000,12:N0}{times[0] / baseline[0],12:F2}"));
            subject.Dispose();
        }
    }

    /// <summary>A model and its optimizer.</summary>
    private sealed class Subject : IDisposable
    {
        private readonly List<double> _milliseconds = [];
        private readonly CausalLM _model;
        private readonly AdamW _optimizer;
        private readonly Tensor _ids;

        public Subject(TrainOptions options, Device device)
        {
            Layer = options.Layer;
            _model = ModelFactory.Create(options, Vocabulary, device);
            _optimizer = new AdamW(_model);
            _ids = randint(Vocabulary, [options.Batch, options.Seq], int64, device);
        }

        public LayerKind Layer { get; }

        public long Parameters => _model.ParameterCount;

        public double[] Milliseconds() => [.. _milliseconds.Order()];

        public void Step(bool isTimed)
        {
            long start = Stopwatch.GetTimestamp();
            using DisposeScope scope = NewDisposeScope();
            _optimizer.ZeroGradients();
            _model.Loss(_ids, _ids).Backward();
            // Reading the norm waits for the device.
            double norm = _optimizer.GatherGradients().ToDouble();
            _optimizer.Step(learningRate: 1e-4, norm, clip: 1);
            if (isTimed)
                _milliseconds.Add(Stopwatch.GetElapsedTime(start).TotalMilliseconds);
        }

        public void Dispose()
        {
            _ids.Dispose();
            _optimizer.Dispose();
            _model.Dispose();
        }
    }
}
