using System.Reflection;
using FlaSharp.Models;
using LanguageModel.Data;
using LanguageModel.Reporting;
using LanguageModel.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace LanguageModel.Commands;

/// <summary>Trains, and shows what came of it. Everything the user can get wrong is found before a file is written.</summary>
internal static class TrainCommand
{
    private const int SampleTokens = 300;

    /// <summary>Exit code of a run that was interrupted, by the convention of Unix shells.</summary>
    private const int Interrupted = 130;

    public static int Run(TrainRequest request, CancellationToken stop)
    {
        string? checkpoint = request.Resume ? Runs.FindCheckpoint(request) : null;
        TrainingState? state = checkpoint is null ? null : Checkpoint.ReadState(checkpoint);
        TrainOptions options = request.Options(state?.Options);
        if (state is not null)
            RequireSame(options, state.Options);

        Device device = Devices.Choose(request.Device);
        Corpus corpus = Corpus.Load(options.Data, Tokenizers.Create(options.Tokenizer));
        corpus.RequireSequences(options.Seq);
        if (state is not null && state.Fingerprint != corpus.Fingerprint)
            throw new UserError("--resume: the text is not the one this run began with.");

        using CausalLM model = checkpoint is null
            ? ModelFactory.Create(options, corpus.Tokenizer.VocabSize, device)
            : CausalLM.FromPretrained(checkpoint, device, ModelFactory.Type(options.Dtype));
        using var trainer = new Trainer(options, model, corpus, device);
        if (state is not null)
            trainer.Restore(checkpoint!, state);

        string run;
        if (checkpoint is null)
            run = Runs.Create(request, options.Layer);
        else
            Runs.RequireWritable(run = Path.GetDirectoryName(checkpoint)!);

        Introduce(options, model, corpus, device, run, trainer);
        string last = "";
        ProgressViews.Run(view => last = trainer.Run(run, view, request.SaveEvery, request.TensorBoard, stop));
        if (trainer.Step != trainer.TotalSteps)
        {
            Console.WriteLine($"Stopped after step {trainer.Step}. Continue with --resume {run}");
            return Interrupted;
        }

        Conclude(options, model, corpus, trainer, run, last, device);
        return 0;
    }

    private static void RequireSame(TrainOptions asked, TrainOptions stored)
    {
        foreach (PropertyInfo property in typeof(TrainOptions).GetProperties())
        {
            object? now = property.GetValue(asked);
            object? then = property.GetValue(stored);
            if (!Equals(now, then))
            {
                string option = property.Name.ToLowerInvariant();
                throw new UserError(FormattableString.Invariant(
                    $"--resume: the run has --{option} {then ?? "(none)"}, not {now}. Leave it out, or start a new run."));
            }
        }
    }

    private static void Introduce(
        TrainOptions options, CausalLM model, Corpus corpus, Device device, string run, Trainer trainer)
    {
        Console.WriteLine($"model: {options.Layer.ToString().ToLowerInvariant()}, {model.ParameterCount:N0} parameters, "
            + $"width {options.Width}, {options.Dtype.ToString().ToLowerInvariant()} on {device}");
        Console.WriteLine(FormattableString.Invariant($"text: {corpus.Source}, {corpus.Bytes:N0} bytes, ")
            + FormattableString.Invariant($"{corpus.Training.Length:N0} tokens to train on, ")
            + FormattableString.Invariant($"order-0 entropy {corpus.Entropy:F3} nats per byte"));
        Console.WriteLine($"run: {run}" + (trainer.Step > 0 ? $", continued after step {trainer.Step}" : ""));
    }

    private static void Conclude(
        TrainOptions options, CausalLM model, Corpus corpus, Trainer trainer, string run, string checkpoint, Device device)
    {
        double valLoss = trainer.Validate();
        using (var metrics = new MetricsLog(run, long.MaxValue))
            metrics.WriteValidation(trainer.Step, valLoss);
        LossChart.Save(run, (double)corpus.Bytes / (corpus.Training.Length + corpus.Validation.Length));

        Console.WriteLine();
        Console.WriteLine("What the model writes:");
        TextGeneration.Stream(model, corpus.Tokenizer, "System.", new GenerationOptions
        {
            MaxNewTokens = SampleTokens,
            DoSample = true,
            Temperature = 0.7,
            Seed = options.Seed,
        }, device, Console.Out, CancellationToken.None);
        Console.WriteLine();
        Console.WriteLine($"{trainer.Step} steps; loss curve in {Path.Combine(run, LossChart.FileName)}; "
            + FormattableString.Invariant($"order-0 entropy {corpus.Entropy:F3} nats per byte"));
        Console.WriteLine(FormattableString.Invariant(
            $"final val_loss={valLoss:F4} tokens_per_second={trainer.TokensPerSecond:F0} checkpoint={checkpoint}"));
    }
}
