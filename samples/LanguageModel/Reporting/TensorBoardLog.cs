using TorchSharp.Modules;
using static TorchSharp.torch.utils;

namespace LanguageModel.Reporting;

/// <summary>The same numbers for TensorBoard, if asked for.</summary>
internal sealed class TensorBoardLog
{
    private readonly SummaryWriter? _writer;

    public TensorBoardLog(string run, bool isOn)
    {
        if (isOn)
            _writer = tensorboard.SummaryWriter(Path.Combine(run, "tensorboard"));
    }

    public void Write(StepReport report)
    {
        _writer?.add_scalar("loss/training", (float)report.Loss, report.Step);
        _writer?.add_scalar("learning_rate", (float)report.LearningRate, report.Step);
        _writer?.add_scalar("gradient_norm", (float)report.GradientNorm, report.Step);
    }

    public void WriteValidation(int step, double valLoss) => _writer?.add_scalar("loss/validation", (float)valLoss, step);
}
