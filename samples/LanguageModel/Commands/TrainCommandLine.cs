using System.CommandLine;
using FlaSharp;
using LanguageModel.Data;

namespace LanguageModel.Commands;

/// <summary>The options of training and what they mean for a new and for a resumed run.</summary>
internal sealed class TrainCommandLine
{
    private static readonly TrainOptions s_standard = new();

    private readonly Option<LayerKind> _layer = Choices.OneOf("--layer", "What mixes tokens along time.", s_standard.Layer);
    private readonly Option<LinearAttentionMode> _mode =
        Choices.OneOf("--mode", "Algorithm of gated linear attention.", s_standard.Mode);
    private readonly Option<string> _tokenizer = Choices.OneOf("--tokenizer", "Tokens of the text.", Tokenizers.Names);
    private readonly Option<string?> _data = new("--data")
    {
        Description = "A text file, or a folder of them; without it the documentation of the .NET SDK.",
    };
    private readonly Option<int?> _steps = Choices.AtLeastIfGiven("--steps", "Optimizer steps.", 1);
    private readonly Option<double?> _minutes = Choices.AtLeastIfGiven("--minutes",
        $"Time for training; the number of steps follows from the first ones' speed ({DefaultMinutes:F1} without --steps).", 0.01);
    private readonly Option<int> _batch = Choices.AtLeast("--batch", "Sequences per micro-batch.", 1, s_standard.Batch);
    private readonly Option<int> _seq = Choices.AtLeast("--seq", "Tokens per sequence.", 2, s_standard.Seq);
    private readonly Option<int> _width = Choices.AtLeast("--width", "Model width.", 1, s_standard.Width);
    private readonly Option<int> _layers = Choices.AtLeast("--layers",
        "Blocks of a mixer and an MLP; twice as many blocks of Mamba and Mamba-2, which have no MLP.", 1, s_standard.Layers);
    private readonly Option<int> _heads = Choices.AtLeast("--heads", "Heads of attention.", 1, s_standard.Heads);
    private readonly Option<double> _lr = Choices.AtLeast("--lr", "Highest learning rate; warm-up, then a cosine to a tenth.",
        1e-9, s_standard.Lr);
    private readonly Option<int> _warmup = Choices.AtLeast("--warmup", "Steps of warm-up.", 0, s_standard.Warmup);
    private readonly Option<double> _clip = Choices.AtLeast("--clip", "Largest norm of the gradient.", 1e-9, s_standard.Clip);
    private readonly Option<int> _accumulate =
        Choices.AtLeast("--accumulate", "Micro-batches per step.", 1, s_standard.Accumulate);
    private readonly Option<Precision> _dtype = Choices.OneOf("--dtype",
        "Weights and activations; the optimizer keeps fp32 weights, and fp16 scales the loss.", s_standard.Dtype);
    private readonly Option<long> _seed = Choices.AtLeast("--seed", "Of weights and data order.", 0L, s_standard.Seed);

    private readonly Option<string?> _device = Devices.Option();
    private readonly Option<string?> _out = new("--out") { Description = "Folder of the run (runs/<layer>-<time> without it)." };
    private readonly Option<int> _saveEvery = Choices.AtLeast("--save-every", "Steps between checkpoints.", 1, 200);
    private readonly Option<bool> _tensorBoard = new("--tensorboard") { Description = "Write events for TensorBoard too." };
    private readonly Option<string?> _resume = new("--resume")
    {
        Description = "Continue a run: its folder, --out, or the newest under runs.",
        Arity = ArgumentArity.ZeroOrOne,
    };

    /// <summary>Of a run with neither --minutes nor --steps.</summary>
    private const double DefaultMinutes = 3.5;

    public void AddTo(Command command)
    {
        Option[] all = [_layer, _mode, _data, _tokenizer, _steps, _minutes, _batch, _seq, _width, _layers, _heads, _lr, _warmup,
            _clip, _accumulate, _device, _dtype, _saveEvery, _resume, _out, _seed, _tensorBoard];
        foreach (Option option in all)
            command.Options.Add(option);
    }

    public TrainRequest Read(ParseResult parsed)
    {
        bool resume = parsed.GetResult(_resume) is { Implicit: false };
        return new TrainRequest
        {
            Options = baseline => Apply(parsed, baseline),
            Resume = resume,
            ResumeFrom = resume ? parsed.GetValue(_resume) : null,
            Out = parsed.GetValue(_out),
            Device = parsed.GetValue(_device),
            SaveEvery = parsed.GetValue(_saveEvery),
            TensorBoard = parsed.GetValue(_tensorBoard),
        };
    }

    /// <summary>What was given on the command line, on top of the defaults or of what a resumed run began with.</summary>
    private TrainOptions Apply(ParseResult parsed, TrainOptions? resumed)
    {
        T Get<T>(Option<T> option, T otherwise) =>
            parsed.GetResult(option) is { Implicit: false } ? parsed.GetValue(option)! : otherwise;

        TrainOptions baseline = resumed ?? s_standard;
        var options = new TrainOptions
        {
            Layer = Get(_layer, baseline.Layer),
            Mode = Get(_mode, baseline.Mode),
            Data = Get(_data, baseline.Data),
            Tokenizer = Get(_tokenizer, baseline.Tokenizer),
            Steps = Get(_steps, baseline.Steps),
            Minutes = Get(_minutes, baseline.Minutes),
            Batch = Get(_batch, baseline.Batch),
            Seq = Get(_seq, baseline.Seq),
            Width = Get(_width, baseline.Width),
            Layers = Get(_layers, baseline.Layers),
            Heads = Get(_heads, baseline.Heads),
            Lr = Get(_lr, baseline.Lr),
            Warmup = Get(_warmup, baseline.Warmup),
            Clip = Get(_clip, baseline.Clip),
            Accumulate = Get(_accumulate, baseline.Accumulate),
            Dtype = Get(_dtype, baseline.Dtype),
            Seed = Get(_seed, baseline.Seed),
        };
        if (options.Mode != LinearAttentionMode.Auto && options.Layer is not (LayerKind.Gla or LayerKind.Hybrid))
            throw new UserError($"--mode is for --layer gla and hybrid, not {options.Layer.ToString().ToLowerInvariant()}.");
        return options is { Steps: null, Minutes: null } ? options with { Minutes = DefaultMinutes } : options;
    }
}
