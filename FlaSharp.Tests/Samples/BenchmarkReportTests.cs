using System.Text.Json.Nodes;
using Benchmarks.Commands;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using FlaSharp.Tests.TestSupport;
using LanguageModel;
using TorchSharp;
using Xunit;

namespace FlaSharp.Tests.Samples;

public sealed class BenchmarkReportTests
{
    private static readonly GlaShape s_shape = new(1, 8192, 96, 128);

    [Fact]
    public void Figures_of_peers_come_with_ratios()
    {
        Peers peers = Load("""
            {
              "fla chunk_gla|B1_T8192_H96_D128": {"fwd_ms": 2.4, "fwdbwd_ms": 10.5, "first_s": 220.5, "peak_extra_mb": 768},
              "seed sdpa|H1_C32_T197912": {"fwd_ms": 1.5, "first_s": 0.1}
            }
            """);
        Assert.Equal(new PeerFigure(2.4, 10.5, 220.5, 768), peers.Find(GlaModes.PeerKey(LinearAttentionMode.Auto, s_shape)));
        Assert.Equal(new PeerFigure(1.5, null, 0.1, null), peers.Find("seed sdpa|H1_C32_T197912"));
        Assert.Equal("fla fused_recurrent|B1_T8192_H96_D128", GlaModes.PeerKey(LinearAttentionMode.FusedRecurrent, s_shape));
        Assert.Null(peers.Find(GlaModes.PeerKey(LinearAttentionMode.FusedRecurrent, s_shape)));

        Dictionary<string, object?> row = Row(LinearAttentionMode.Chunk, peers);
        Assert.Equal("fla chunk_gla", row["peer"]);
        Assert.Equal(3.0, (double)row["forward_ratio"]!, 12);
        Assert.Equal(3.5, (double)row["forward_backward_ratio"]!, 12);
    }

    [Fact]
    public void Without_a_peer_there_is_no_ratio_and_no_column_for_it()
    {
        Dictionary<string, object?> row = Row(LinearAttentionMode.Chunk, Peers.None);
        Assert.Null(row["peer"]);
        Assert.Null(row["forward_ratio"]);
        Assert.Null(Peers.Ratio(null, 1));
        Assert.Null(Peers.Ratio(1, null));

        Table table = KernelsCommand.NewTable();
        table.Add([.. table.Columns.Select(column => row[column.Key])]);
        Assert.Equal([0, 1, 2, 3, 4, 5, 6, 7, 8], table.Filled);
    }

    [Fact]
    public void A_row_has_the_fraction_of_the_floor()
    {
        Dictionary<string, object?> row = Row(LinearAttentionMode.Auto, Peers.None);
        Assert.Equal(0.33554432 / 0.8, (double)row["forward_of_floor"]!, 12);
        Assert.Equal(0.939524096 / 3, (double)row["forward_backward_of_floor"]!, 12);
    }

    [Theory]
    [InlineData("not json")]
    [InlineData("[1]")]
    [InlineData("""{"fla chunk_gla|B1_T1_H1_D1": 3}""")]
    public void Another_file_is_no_file_of_peers(string content)
    {
        var error = Assert.Throws<UserError>(() => Load(content));
        Assert.Contains("is no JSON of bench_peers.py", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0.0, "0.0000")]
    [InlineData(0.00123, "0.0012")]
    [InlineData(0.0456, "0.0456")]
    [InlineData(2.39251, "2.393")]
    [InlineData(14.046, "14.05")]
    [InlineData(123.46, "123.5")]
    [InlineData(7936.2, "7936")]
    public void Numbers_have_about_four_digits(double value, string expected) => Assert.Equal(expected, Cell.Text(value));

    [Fact]
    public void A_timing_is_text_and_json()
    {
        var timing = new Timing(2.392, 2.38, 2.41, 50);
        Assert.Equal("2.392 (2.380-2.410)", Cell.Text(timing));
        Assert.Equal("""{"median":2.392,"p10":2.38,"p90":2.41,"count":50}""", Cell.Json(timing)!.ToJsonString());
    }

    [Fact]
    public void A_report_is_json_and_markdown()
    {
        var report = new Report("kernels", "Kernels", new Machine("a GPU", "570", "2.10", "12.8", "0.1.0"),
            new Table(new Column("shape", "B,T,H,D"), new Column("forward_ms", "fwd, ms"), new Column("peer", "peer")));
        report.Table.Add("1,2,3,4", new Timing(1, 1, 1, 20), null);
        report.Notes.Add("a note");
        var date = new DateTime(2026, 1, 2, 3, 4, 5, DateTimeKind.Utc);

        JsonObject json = report.Json(date, "Benchmarks kernels", "abc");
        Assert.Equal("2026-01-02T03:04:05Z", (string?)json["date"]);
        Assert.Equal("abc", (string?)json["commit"]);
        Assert.Equal("Benchmarks kernels", (string?)json["command_line"]);
        Assert.Equal("12.8", (string?)json["machine"]!["nvrtc"]);
        Assert.Equal(20, (int)json["rows"]![0]!["forward_ms"]!["count"]!);
        Assert.Equal("""
            # Kernels

            2026-01-02; commit abc; a GPU; driver 570; libtorch 2.10; NVRTC 12.8; FlaSharp 0.1.0. Command: `Benchmarks kernels`.

            | B,T,H,D | fwd, ms |
            |---|---|
            | 1,2,3,4 | 1.000 (1.000-1.000) |

            - a note

            """, report.Markdown(date, "Benchmarks kernels", "abc"));
        Assert.Throws<ArgumentException>(() => report.Table.Add("too", "few"));
    }

    [Fact]
    public void A_chart_is_a_picture_and_leaves_out_what_was_not_measured()
    {
        var chart = new Chart("forward", "Forward", "ms");
        chart.Add("a", "own", 0.02);
        chart.Add("a", "peer", 3);
        chart.Add("b", "own", 40);
        chart.Add("b", "peer", null);
        Assert.Equal(["a", "b"], chart.Groups);
        Assert.Equal(["own", "peer"], chart.Series);
        Assert.Null(chart.Value("b", "peer"));
        Assert.Equal([0x89, (byte)'P', (byte)'N', (byte)'G'], ChartFile.Png(chart)[..4]);
    }

    [Fact]
    public void The_advice_is_the_fastest_to_train_with_its_reason()
    {
        Candidate[] candidates =
        [
            Candidate(LinearAttentionMode.Auto, 1.0, 2.05), Candidate(LinearAttentionMode.Chunk, 1.0, 2.0),
            new(new LayerChoice("Mamba", null), Just(0.5), Just(3)),
            new(new LayerChoice(LayerChoice.Attention, null), Just(2), Just(5)),
        ];
        Assert.Equal("Take GatedLinearAttention Auto: forward and backward take 2.050 ms for width 8, 2 heads, 1 x 64 tokens, "
            + "Mamba 1.46 times as long, SoftmaxAttention 2.44 times as long. For forward alone Mamba is faster: 0.5000 ms "
            + "instead of 1.000.", Advice.Of(candidates, new ModelSizes(8, 2, 64, 1)));
    }

    [Fact]
    public void An_explicit_mode_is_advised_where_it_clearly_beats_auto()
    {
        Candidate[] candidates = [Candidate(LinearAttentionMode.Auto, 1, 2.2), Candidate(LinearAttentionMode.FusedChunk, 0.9, 2)];
        Assert.StartsWith("Take GatedLinearAttention FusedChunk: forward and backward take 2.000 ms",
            Advice.Of(candidates, new ModelSizes(8, 2, 64, 1)), StringComparison.Ordinal);
        Assert.Throws<InvalidOperationException>(() => Advice.Of([], new ModelSizes(8, 2, 64, 1)));
    }

    [Fact]
    public void Published_figures_belong_to_the_published_sizes()
    {
        Assert.Equal(10.77, LayersCommand.Published([1, 32, 197912], new LayerChoice(LayerChoice.Gla, LinearAttentionMode.Auto)));
        Assert.Equal(13.93, LayersCommand.Published([32, 1024, 18432], new LayerChoice("Mamba", null)));
        Assert.Null(LayersCommand.Published([1, 32, 1024], new LayerChoice("Mamba", null)));
        Assert.Null(LayersCommand.Published([2, 64, 197912], new LayerChoice("Mamba", null)));
        Assert.Null(LayersCommand.Published([1, 32, 197912], new LayerChoice("Mamba2", null)));
    }

    private static Timing Just(double milliseconds) => Timing.Of([milliseconds]);

    private static Candidate Candidate(LinearAttentionMode mode, double forward, double both) =>
        new(new LayerChoice(LayerChoice.Gla, mode), Just(forward), Just(both));

    private static Dictionary<string, object?> Row(LinearAttentionMode mode, Peers peers)
    {
        object?[] cells = KernelsCommand.Row(s_shape, mode, "Chunk, cuda", new Timing(0.8, 0.7, 0.9, 50), new Timing(3, 2, 4, 50),
            new ByteFloor(3e12), torch.ScalarType.BFloat16, peers);
        return KernelsCommand.NewTable().Columns.Zip(cells).ToDictionary(pair => pair.First.Key, pair => pair.Second);
    }

    private static Peers Load(string content)
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("peers.json"), content);
        return Peers.Load(folder.File("peers.json"));
    }
}
