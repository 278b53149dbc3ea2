using Benchmarks.Reporting;
using LanguageModel;

namespace Benchmarks.Commands;

/// <summary>Part of a benchmark that may fail, as with too little memory, without ending the rest.</summary>
internal static class Trial
{
    public static void Run(Report report, string what, Action action)
    {
        try
        {
            action();
        }
        catch (Exception e) when (e is not UserError)
        {
            string failure = $"{what} not measured: {e.GetType().Name}: {e.Message.Split('\n')[0]}";
            report.Failures.Add(failure);
            ReportOutput.Progress(failure);
        }
    }
}
