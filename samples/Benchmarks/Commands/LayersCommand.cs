using System.CommandLine;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using FlaSharp;
using FlaSharp.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>layers: the forward pass of one layer by width, the table of flash-linear-attention's issue 22.</summary>
internal static class LayersCommand
{
    private const long Window = 1024;
    private const string AttentionAlone = "attention alone";

    private static readonly long[][] s_sizes =
    [
        [1, 32, 197912], [2, 64, 197912], [4, 128, 197912], [8, 256, 18432], [16, 512, 18432], [32, 1024, 18432],
    ];

    // That figures, in ms.
    private static readonly (long hidden, string layer, double milliseconds)[] s_published =
    [
        (32, LayerChoice.Attention, 1.48), (32, LayerChoice.Gla, 10.77), (32, "Mamba", 1.30),
        (128, LayerChoice.Attention, 4.40), (128, LayerChoice.Gla, 12.74), (128, "Mamba", 4.93),
        (1024, LayerChoice.Attention, 8.06), (1024, LayerChoice.Gla, 5.64), (1024, "Mamba", 13.93),
    ];

    public static Command Create()
    {
        var common = new CommonOptions();
        var sizes = new Option<string[]>("--sizes")
        {
            Description = "all, or sizes H,C,T (heads, width, tokens) with spaces between.",
            AllowMultipleArgumentsPerToken = true,
            DefaultValueFactory = _ => ["all"],
        };
        var command = new Command("layers", "Times the forward pass of each layer at the sizes of fla's issue 22.")
        {
            sizes,
        };
        common.AddReport(command);
        common.AddTiming(command);
        common.AddPeers(command);
        command.SetAction(parsed =>
        {
            IReadOnlyList<long[]> chosen = [.. parsed.GetValue(sizes)!.SelectMany(text =>
                text == "all" ? s_sizes : [GlaShape.ParseSizes("--sizes", text, "H,C,T")])];
            Peers peers = common.Peers(parsed);
            Target target = common.Target(parsed);
            ReportOutput output = common.Output(parsed);
            using Stopclock clock = common.Clock(parsed, target);
            var report = new Report("layers", $"Forward of one layer, {common.DtypeName(parsed)}, one sequence",
                Machine.Of(target), NewTable());
            report.Notes.Add(common.Method(parsed, target));
            report.Notes.Add($"Attention runs over windows of {Window} tokens, a batch of T / {Window}. Alone it has no "
                + "projections, and one tensor for queries, keys and values, as its peer, sdpa, has.");
            if (chosen.Any(size => LayerChoice.All.Any(choice => Published(size, choice) is not null)))
                report.Notes.Add("RTX 3090: the figures published in flash-linear-attention's issue 22, of another GPU and of "
                    + "the libraries of its time.");
            Measure(report, clock, chosen, common.Dtype(parsed), peers, output);
            return output.Finish(report);
        });
        return command;
    }

    private static Table NewTable() => new(
        new("size", "H,C,T"), new("layer", "layer"), new("takes", "takes"), new("forward_ms", "fwd, ms"),
        new("peer", "peer"), new("peer_forward_ms", "its fwd, ms"), new("forward_ratio", "peer / own"),
        new("published_rtx3090_ms", "published, RTX 3090, ms"));

    private static void Measure(
        Report report, Stopclock clock, IReadOnlyList<long[]> sizes, ScalarType dtype, Peers peers, ReportOutput output)
    {
        var chart = new Chart("forward", report.Title, "ms");
        report.Charts.Add(chart);
        foreach (long[] size in sizes)
        {
            (int heads, long hidden, long time) = ((int)size[0], size[1], size[2]);
            string name = $"{heads},{hidden},{time}";
            foreach (LayerChoice choice in LayerChoice.All)
            {
                bool inWindows = choice.Name == LayerChoice.Attention && time >= Window;
                (long batch, long length) = inWindows ? (time / Window, Window) : (1, time);
                (string takes, bool isHopeless) = choice.Plan(batch, length, hidden, heads, dtype, clock.Target.Device);
                if (isHopeless)
                {
                    report.Notes.Add($"{name} {choice} left out: there is no kernel for it here, only a loop over its tokens.");
                    continue;
                }

                Trial.Run(report, $"{name} {choice}", () =>
                {
                    using var timings = new LayerTimings(
                        clock, choice.Create(hidden, heads, dtype, clock.Target.Device), batch, length, dtype);
                    Add(choice.ToString(), takes, timings.Forward(), PeerName(choice), Published(size, choice));
                });
                output.Save(report);
            }

            if (time >= Window)
                Trial.Run(report, $"{name} {AttentionAlone}", () =>
                {
                    var shape = new AttentionShape(time / Window, Window, heads, hidden / heads);
                    string takes = shape.Takes(nameof(AttentionBackend.Auto), dtype, clock.Target.Device);
                    Add(AttentionAlone, takes, TimeAttention(clock, shape, dtype), "sdpa", null);
                });
            output.Save(report);

            void Add(string layer, string takes, Timing forward, string? peerName, double? published)
            {
                PeerFigure? peer = peers.Find($"seed {peerName}|H{heads}_C{hidden}_T{time}");
                report.Table.Add(name, layer, takes, forward, peer is null ? null : peerName, peer?.ForwardMs,
                    Peers.Ratio(peer?.ForwardMs, forward.Median), published);
                chart.Add(name, layer, forward.Median);
                if (peer is not null)
                    chart.Add(name, $"peer: {peerName}", peer.ForwardMs);
                ReportOutput.Progress($"{name} {layer}: {Cell.Text(forward)} ms");
            }
        }
    }

    private static Timing TimeAttention(Stopclock clock, AttentionShape shape, ScalarType dtype)
    {
        long bytes = shape.Elements * dtype.ElementSize();
        Tensor[] sets = [.. Enumerable.Range(0, InputSets.Count(bytes, clock.Target.CacheBytes))
            .Select(_ => OperationInputs.Normal(dtype, clock.Target.Device, shape.B, shape.T, shape.H, shape.D))];
        try
        {
            return clock.Time(sets.Length, set =>
            {
                using IDisposable _ = no_grad();
                FlaOps.Attention(sets[set], sets[set], sets[set]);
            });
        }
        finally
        {
            foreach (Tensor tensor in sets)
                tensor.Dispose();
        }
    }

    /// <summary>The published time of a layer, if this is one of the published sizes.</summary>
    public static double? Published(long[] size, LayerChoice choice) => s_published
        .Where(figure => figure.hidden == size[1] && figure.layer == choice.Name && s_sizes.Any(size.SequenceEqual))
        .Select(figure => (double?)figure.milliseconds)
        .FirstOrDefault();

    /// <summary>The same layer in the JSON of bench_peers.py; null if it has none.</summary>
    private static string? PeerName(LayerChoice choice) => choice.Name switch
    {
        LayerChoice.Gla => "gla layer",
        "Mamba" => "mamba layer",
        _ => null,
    };
}
