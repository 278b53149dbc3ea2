using System.Text.Json;
using FlaSharp.Models;
using FlaSharp.Tests.TestSupport;
using LanguageModel;
using LanguageModel.Data;
using LanguageModel.Reporting;
using LanguageModel.Training;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;
using Checkpoint = LanguageModel.Training.Checkpoint;

namespace FlaSharp.Tests.Samples;

public sealed class TrainerTests
{
    private static readonly Corpus s_corpus = Corpus.FromText(
        string.Concat(Enumerable.Range(0, 400).Select(i => $"The square of {i} is {i * i}.\n")), new ByteTokenizer());

    private static readonly TrainOptions s_options = new()
    {
        Width = 16,
        Layers = 1,
        Heads = 2,
        Seq = 16,
        Batch = 2,
        Warmup = 5,
        Steps = 30,
    };

    [Theory]
    [InlineData("Gla", "Fp32")]
    [InlineData("Gla", "Fp16")]
    [InlineData("Mamba2", "Bf16")]
    public void A_killed_run_continues_with_the_same_losses_bit_for_bit(string layer, string precision)
    {
        TrainOptions options = s_options with { Layer = Enum.Parse<LayerKind>(layer), Dtype = Enum.Parse<Precision>(precision) };
        using var unbroken = new TemporaryFolder();
        Train(options, unbroken.Path, new View());

        using var killed = new TemporaryFolder();
        Assert.Throws<KilledException>(() => Train(options, killed.Path, new View { KillAt = 27 }));
        Assert.Equal(27, Losses(killed.Path).Count);
        Assert.Throws<KilledException>(() => Resume(killed.Path, new View { KillAt = 28 }));
        Resume(killed.Path, new View());

        Assert.Equal(Losses(unbroken.Path), Losses(killed.Path));
        Assert.Equal(
            File.ReadAllBytes(Path.Combine(unbroken.Path, "checkpoint-000030", "model.safetensors")),
            File.ReadAllBytes(Path.Combine(killed.Path, "checkpoint-000030", "model.safetensors")));
    }

    [Fact]
    public void An_interrupted_run_ends_with_a_checkpoint_after_the_step_at_hand()
    {
        using var run = new TemporaryFolder();
        using var stop = new CancellationTokenSource();
        Train(s_options, run.Path, new View { At = (7, stop.Cancel) }, stop);
        Assert.Equal("checkpoint-000007", Path.GetFileName(Checkpoint.Latest(run.Path)));
    }

    [Fact]
    public void Two_checkpoints_are_kept_and_unfinished_ones_are_removed()
    {
        using var run = new TemporaryFolder();
        Directory.CreateDirectory(Path.Combine(run.Path, ".unfinished-4"));
        Assert.Null(Checkpoint.Latest(run.Path));
        Train(s_options, run.Path, new View());
        var kept = Directory.GetDirectories(run.Path).Select(Path.GetFileName).Order();
        Assert.Equal(["checkpoint-000020", "checkpoint-000030"], kept);
        using var model = CausalLM.FromPretrained(Checkpoint.Latest(run.Path)!);
        Assert.Equal(16, model.Config.HiddenSize);
    }

    [Fact]
    public void Learns_with_accumulated_micro_batches()
    {
        using var run = new TemporaryFolder();
        Train(s_options with { Batch = 1, Accumulate = 2, Steps = 60, Lr = 1e-2 }, run.Path, new View());
        List<float> losses = Losses(run.Path);
        Assert.Equal(Math.Log(256), losses[0], tolerance: 0.2);
        Assert.InRange(losses[^10..].Average(), 0, 3.5);
    }

    [Fact]
    public void No_tensor_is_left_after_a_step()
    {
        using var run = new TemporaryFolder();
        var live = new List<long>();
        Train(s_options with { Steps = 300 }, run.Path, new View
        {
            Each = () => live.Add(DisposeScopeManager.Statistics.TensorStatistics.ThreadTotalLiveCount),
        });
        Assert.Equal(live[20], live[^1]);
    }

    private static void Train(TrainOptions options, string run, View view, CancellationTokenSource? stop = null)
    {
        using CausalLM model = ModelFactory.Create(options, 256, CPU);
        using var trainer = new Trainer(options, model, s_corpus, CPU);
        trainer.Run(run, view, saveEvery: 10, tensorBoard: false, stop?.Token ?? TestContext.Current.CancellationToken);
    }

    private static void Resume(string run, View view)
    {
        string checkpoint = Checkpoint.Latest(run)!;
        TrainingState state = Checkpoint.ReadState(checkpoint);
        using var model = CausalLM.FromPretrained(checkpoint, CPU, ModelFactory.Type(state.Options.Dtype));
        using var trainer = new Trainer(state.Options, model, s_corpus, CPU);
        trainer.Restore(checkpoint, state);
        trainer.Run(run, view, saveEvery: 10, tensorBoard: false, TestContext.Current.CancellationToken);
    }

    private static List<float> Losses(string run) => [.. File.ReadLines(Path.Combine(run, MetricsLog.FileName))
        .Select(line => JsonDocument.Parse(line).RootElement)
        .Where(json => json.TryGetProperty("loss", out _))
        .Select(json => json.GetProperty("loss").GetSingle())];

    private sealed class KilledException : Exception;

    private sealed class View : IProgressView
    {
        public int KillAt { get; init; } = -1;

        public (int step, Action act) At { get; init; }

        public Action? Each { get; init; }

        public void Step(StepReport report)
        {
            Each?.Invoke();
            if (report.Step == At.step)
                At.act();
            if (report.Step == KillAt)
                throw new KilledException();
        }

        public void Note(string line) { }
    }
}
