using System.CommandLine;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using LanguageModel;
using LanguageModel.Commands;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>The options that several commands have.</summary>
internal sealed class CommonOptions
{
    private readonly Option<string?> _device = Devices.Option();
    private readonly Option<Precision> _dtype = Choices.OneOf("--dtype", "Of the inputs and weights.", Precision.Bf16);
    private readonly Option<string?> _json = new("--json") { Description = "Write the results to this file." };
    private readonly Option<string?> _out = new("--out") { Description = "Write JSON, markdown and charts into this folder." };
    private readonly Option<string?> _commit = new("--commit") { Description = "The program's commit, for the record." };
    private readonly Option<string?> _peers = new("--peers") { Description = "What bench_peers.py wrote: adds ratios." };
    private readonly Option<int> _iterations = Choices.AtLeast("--iterations", "Timed runs of each, after a warm-up.", 20, 50);
    private readonly Option<double> _seconds = Choices.AtLeast("--seconds",
        "For one timing; where they do not suffice there are fewer runs, at least 3, or 1 that takes longer.", 0.001, 20.0);
    private readonly Option<bool> _flush = new("--flush")
    {
        Description = "Write 256 MiB eight times before each run: empties the caches, and hides the host's time of short runs.",
    };

    public void AddReport(Command command) => Add(command, _device, _dtype, _json, _out, _commit);

    public void AddTiming(Command command) => Add(command, _iterations, _seconds, _flush);

    public void AddPeers(Command command) => Add(command, _peers);

    public Target Target(ParseResult parsed) => Measuring.Target.Choose(parsed.GetValue(_device));

    public ScalarType Dtype(ParseResult parsed) => ModelFactory.Type(PrecisionOf(parsed));

    public Precision PrecisionOf(ParseResult parsed) => parsed.GetValue(_dtype);

    /// <summary>As on the command line.</summary>
    public string DtypeName(ParseResult parsed) => parsed.GetValue(_dtype).ToString().ToLowerInvariant();

    public ReportOutput Output(ParseResult parsed) => new(parsed.Tokens.Select(token => token.Value),
        parsed.GetValue(_json), parsed.GetValue(_out), parsed.GetValue(_commit));

    public Peers Peers(ParseResult parsed) =>
        parsed.GetValue(_peers) is { } file ? Reporting.Peers.Load(file) : Reporting.Peers.None;

    public Stopclock Clock(ParseResult parsed, Target target) =>
        new(target, parsed.GetValue(_iterations), parsed.GetValue(_seconds), parsed.GetValue(_flush));

    /// <summary>How the timings came about.</summary>
    public string Method(ParseResult parsed, Target target) =>
        $"Times: median (10th-90th percentile) of {parsed.GetValue(_iterations)} runs, or of as many, at least 3, as "
        + $"{Cell.Text(parsed.GetValue(_seconds))} s allow, or of a single one that takes longer, after a warm-up; "
        + (target.Gpu is null ? "by the host's clock. " : "by CUDA events, without waiting between runs. ")
        + $"Inputs take turns over sets that together exceed twice the {target.CacheBytes >> 20} MiB cache"
        + $" (at most {InputSets.Most} sets)."
        + (parsed.GetValue(_flush) ? " 256 MiB are written eight times before each run, which hides the host's time of a short one." : "");

    private static void Add(Command command, params Option[] options)
    {
        foreach (Option option in options)
            command.Options.Add(option);
    }
}
