using System.Diagnostics;
using FlaSharp;
using FlaSharp.Models;
using LanguageModel.Data;
using LanguageModel.Reporting;
using TorchSharp;
using static TorchSharp.torch;

namespace LanguageModel.Training;

/// <summary>
/// One training run. Its losses depend on the options and the text alone, so a run that is stopped anywhere and continued from
/// its last checkpoint repeats them bit for bit on the CPU.
/// </summary>
internal sealed class Trainer : IDisposable
{
    private const int ValidationTokens = 32768;
    private const int Validations = 8;

    /// <summary>A run that has become slower than measured ends at this multiple of its time.</summary>
    private const double Patience = 1.15;

    private const int LeastStepsBetweenValidations = 25;

    private readonly TrainOptions _options;
    private readonly CausalLM _model;
    private readonly Corpus _corpus;
    private readonly Device _device;
    private readonly AdamW _optimizer;
    private readonly LossScale _lossScale;
    private readonly BatchSampler _sampler;
    private readonly StepBudget? _budget;
    private double _lastSeconds;
    private double _secondsPerStep;
    private double _secondsBefore;
    private long _metricsLength;

    /// <param name="options">Of the run.</param>
    /// <param name="model">A new model, or the one of the checkpoint to restore.</param>
    /// <param name="corpus">At least one sequence long.</param>
    /// <param name="device">Where the model is.</param>
    public Trainer(TrainOptions options, CausalLM model, Corpus corpus, Device device)
    {
        (_options, _model, _corpus, _device) = (options, model, corpus, device);
        _optimizer = new AdamW(model);
        _lossScale = new LossScale(options.Dtype);
        _sampler = new BatchSampler(corpus.Training, options.Batch, options.Seq, options.Seed);
        if (options.Minutes is double minutes && options.Steps is not <= StepBudget.CalibrationSteps)
            _budget = new StepBudget(minutes);
        else
            TotalSteps = options.Steps;
    }

    /// <summary>Steps done.</summary>
    public int Step { get; private set; }

    /// <summary>Steps of the whole run; null while the speed is being measured.</summary>
    public int? TotalSteps { get; private set; }

    /// <summary>Time spent in steps.</summary>
    public double StepSeconds { get; private set; }

    /// <summary>Training speed without validation and checkpoints.</summary>
    public double TokensPerSecond => StepSeconds > 0 ? Step * _options.TokensPerStep / StepSeconds : 0;

    /// <summary>Continues where a checkpoint of the same options and model left off.</summary>
    public void Restore(string checkpoint, TrainingState state)
    {
        Checkpoint.LoadOptimizer(checkpoint, _optimizer, state.Updates);
        _lossScale.Restore(state.LossScale, state.GoodSteps);
        (Step, TotalSteps, StepSeconds) = (state.Step, state.TotalSteps, state.StepSeconds);
        (_secondsBefore, _metricsLength) = (state.TotalSeconds, state.MetricsLength);
    }

    /// <summary>Trains up to the last step, or until stopped. Returns the last checkpoint.</summary>
    /// <param name="run">The folder for checkpoints and metrics.</param>
    /// <param name="view">Told of every step.</param>
    /// <param name="saveEvery">Steps between checkpoints.</param>
    /// <param name="tensorBoard">Whether to write events for TensorBoard too.</param>
    /// <param name="stop">Ends training after the step at hand; a checkpoint is written then too.</param>
    public string Run(string run, IProgressView view, int saveEvery, bool tensorBoard, CancellationToken stop)
    {
        using var metrics = new MetricsLog(run, _metricsLength);
        var board = new TensorBoardLog(run, tensorBoard);
        long start = Stopwatch.GetTimestamp();
        double Elapsed() => _secondsBefore + Stopwatch.GetElapsedTime(start).TotalSeconds;

        _model.train();
        while (Step != TotalSteps && !stop.IsCancellationRequested)
        {
            StepReport report = TrainStep();
            if (TotalSteps is null)
                FixTotalSteps(Elapsed(), view);
            else if (Step < TotalSteps && Elapsed() > _options.Minutes * 60 * Patience)
                EndNow(view);
            report = report with
            {
                Total = TotalSteps,
                Left = TotalSteps is int total ? TimeSpan.FromSeconds((total - Step) * _secondsPerStep) : null,
            };
            metrics.Write(report, Elapsed());
            board.Write(report);
            view.Step(report);

            if (Step % Math.Max(LeastStepsBetweenValidations, (TotalSteps ?? 0) / Validations) == 0 && Step != TotalSteps)
            {
                double valLoss = Validate();
                metrics.WriteValidation(Step, valLoss);
                board.WriteValidation(Step, valLoss);
                view.Note(FormattableString.Invariant($"step {Step} val_loss {valLoss:F4} nats per byte"));
            }

            if (Step % saveEvery == 0 && Step != TotalSteps)
                Save(run, metrics, Elapsed());
        }

        return Save(run, metrics, Elapsed());
    }

    /// <summary>The loss on held-out text, nats per byte.</summary>
    public double Validate()
    {
        _model.eval();
        Evaluation result = Evaluation.Of(_model, _corpus.Tokenizer, _corpus.Validation, _options.Seq, _options.Batch,
            Math.Max(1, ValidationTokens / _options.Seq), _device);
        _model.train();
        return result.NatsPerByte;
    }

    public void Dispose() => _optimizer.Dispose();

    private StepReport TrainStep()
    {
        long start = Stopwatch.GetTimestamp();
        using DisposeScope scope = NewDisposeScope();
        double learningRate = LearningRate.At(Step, _options.Lr, _options.Warmup, TotalSteps);

        _optimizer.ZeroGradients();
        Tensor loss = zeros(1, device: _device);
        for (int i = 0; i < _options.Accumulate; i++)
            loss.add_(Accumulate((long)Step * _options.Accumulate + i));

        // One transfer from the device for both numbers.
        Tensor norm = _optimizer.GatherGradients(_lossScale.Value);
        float[] numbers = cat([loss, norm.reshape(1)]).cpu().data<float>().ToArray();
        if (_lossScale.Update(numbers[1]))
            _optimizer.Step(learningRate, numbers[1], _options.Clip);
        Step++;

        _lastSeconds = Stopwatch.GetElapsedTime(start).TotalSeconds;
        StepSeconds += _lastSeconds;
        _secondsPerStep = _secondsPerStep == 0 ? _lastSeconds : 0.9 * _secondsPerStep + 0.1 * _lastSeconds;
        double speed = _options.TokensPerStep / _secondsPerStep;
        return new StepReport(Step, TotalSteps, numbers[0], learningRate, numbers[1], speed, Left: null);
    }

    /// <summary>Adds the gradient of a micro-batch. Returns its share of the loss, on the device.</summary>
    private Tensor Accumulate(long microBatch)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor ids = _sampler.Batch(microBatch).to(_device);
        Tensor loss = _model.Loss(ids, ids) / _options.Accumulate;
        (loss * _lossScale.Value).Backward();
        return loss.detach().to(float32).MoveToOuterDisposeScope();
    }

    private void FixTotalSteps(double elapsed, IProgressView view)
    {
        if (_budget!.Add(_lastSeconds, elapsed, Step) is not int steps)
            return;
        TotalSteps = Math.Min(steps, _options.Steps ?? int.MaxValue);
        view.Note(FormattableString.Invariant($"{TotalSteps} steps fit into {_options.Minutes} minutes"));
    }

    private void EndNow(IProgressView view)
    {
        view.Note(FormattableString.Invariant($"the time is up after step {Step} of {TotalSteps}: steps became slower"));
        TotalSteps = Step;
    }

    private string Save(string run, MetricsLog metrics, double elapsed) =>
        Checkpoint.Save(run, _model, _optimizer, State(metrics.Length, elapsed));

    private TrainingState State(long metricsLength, double elapsed) => new()
    {
        Options = _options,
        Step = Step,
        TotalSteps = TotalSteps,
        StepSeconds = StepSeconds,
        TotalSeconds = elapsed,
        Updates = _optimizer.Count,
        LossScale = _lossScale.Value,
        GoodSteps = _lossScale.GoodSteps,
        MetricsLength = metricsLength,
        Fingerprint = _corpus.Fingerprint,
    };
}
