using System.Text.Json.Nodes;
using Benchmarks.Commands;
using FlaSharp.Tests.TestSupport;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Samples;

public sealed class BenchmarkCommandTests
{
    private const string Quick = "--device cpu --dtype fp32 --iterations 20 --seconds 0.001";

    [Theory]
    [InlineData("", "Required command was not provided.")]
    [InlineData("kernels --shapes 1,2,3", "--shapes 1,2,3: use B,T,H,D, whole numbers of at least 1.")]
    [InlineData("kernels --shapes 1,0,3,4", "--shapes 1,0,3,4: use B,T,H,D, whole numbers of at least 1.")]
    [InlineData("kernels --ops gla,sort", "--ops sort: choose of gla, recurrent.")]
    [InlineData("kernels rows --ops sort", "--ops sort: choose of conv1d, gated_norm, norm_of_gated, norm, add_norm.")]
    [InlineData("kernels rows --shape 8", "--shape 8: use T,E, whole numbers of at least 1.")]
    [InlineData("kernels scan --shapes 1,2,3", "--shapes 1,2,3: use B,E,T,N, whole numbers of at least 1.")]
    [InlineData("kernels attention --shapes 1,2,3,4 5", "--shapes 5: use B,T,H,D, whole numbers of at least 1.")]
    [InlineData("kernels --dtype fp8", "--dtype fp8: choose fp32, bf16, fp16.")]
    [InlineData("kernels --iterations 5", "--iterations 5: use a whole number of at least 20.")]
    [InlineData("kernels --device tpu", "--device tpu: use cpu, cuda or cuda:N.")]
    [InlineData("kernels --peers nowhere.json", "--peers nowhere.json is no JSON of bench_peers.py")]
    [InlineData("kernels --device cpu --json nowhere/k.json", "--json nowhere/k.json: name a file in an existing folder.")]
    [InlineData("kernels --device cpu --out file/out", "cannot be written to")]
    [InlineData("layers --sizes 1,32", "--sizes 1,32: use H,C,T, whole numbers of at least 1.")]
    [InlineData("layers --device cpu --sizes 3,32,64", "These sizes do not make a layer GatedLinearAttention")]
    [InlineData("memory --device cpu", "memory needs a GPU")]
    [InlineData("chart nowhere.json c.png --groups a --bars b:c", "nowhere.json")]
    [InlineData("chart file c.png --groups a --bars b:c", "file is no report of this program")]
    [InlineData("decode --batches 1,0", "--batches 1,0: use whole numbers of at least 1 with commas between.")]
    [InlineData("first-call --mode fast", "--mode fast: choose auto, chunk, fusedchunk, fusedrecurrent.")]
    [InlineData("overhead --bursts 1", "--bursts 1: use a whole number of at least 20.")]
    [InlineData("advise --hidden 8 --seq 8", "--heads")]
    [InlineData("advise --hidden 0 --heads 1 --seq 8", "--hidden 0: use a whole number of at least 1.")]
    [InlineData("advise --device cpu --hidden 30 --heads 4 --seq 8", "These sizes do not make a layer GatedLinearAttention")]
    public void A_mistake_gives_one_line_and_exit_code_1_and_leaves_nothing(string arguments, string expected)
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("file"), "");
        (int code, _, string error) = Run(folder, arguments);

        Assert.Equal(1, code);
        Assert.Contains(expected, error, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.TrimEnd());
        Assert.Equal(["file"], Directory.EnumerateFileSystemEntries(folder.Path).Select(Path.GetFileName));
    }

    [Fact]
    public void Kernels_are_measured_against_a_peer()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("peers.json"), """{"fla chunk_gla|B1_T20_H2_D4": {"fwd_ms": 1000, "fwdbwd_ms": 2000}}""");
        (int code, string output, string error) =
            Run(folder, $"kernels --shapes 1,20,2,4 --peers peers.json --out out --json k.json --commit abc {Quick}");

        Assert.Equal((0, ""), (code, error));
        Assert.Contains("fwd: peer / own", output, StringComparison.Ordinal);
        Assert.Equal(["kernels-forward-backward.png", "kernels-forward.png", "kernels.json", "kernels.md"],
            Directory.EnumerateFiles(folder.File("out")).Select(Path.GetFileName).Order(StringComparer.Ordinal));
        Assert.Equal(File.ReadAllText(folder.File("k.json")), File.ReadAllText(Path.Combine(folder.File("out"), "kernels.json")));

        JsonNode json = JsonNode.Parse(File.ReadAllText(folder.File("k.json")))!;
        Assert.Equal("abc", (string?)json["commit"]);
        Assert.StartsWith("cpu", (string?)json["machine"]!["device"], StringComparison.Ordinal);
        Assert.InRange((double)json["values"]!["copy_bytes_per_second"]!, 1e7, 1e13);
        JsonArray rows = json["rows"]!.AsArray();
        Assert.Equal(["Chunk", "FusedChunk", "Auto", "FusedRecurrent"], rows.Select(row => (string?)row!["mode"]));
        Assert.Equal("FusedRecurrent, cpu-simd", (string?)rows[2]!["takes"]);
        double forward = (double)rows[0]!["forward_ms"]!["median"]!;
        Assert.InRange(forward, 1e-6, 60_000);
        Assert.Equal(1000 / forward, (double)rows[0]!["forward_ratio"]!, 6);
        Assert.Null(rows[3]!["peer"]);
    }

    [Fact]
    public void Columns_of_a_report_are_drawn()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("r.json"), """
            {"title": "t", "rows": [{"size": "1", "layer": "A", "ms": {"median": 2}, "peer": "P", "peer_ms": 3},
                                    {"size": "2", "layer": "A", "ms": 4, "peer": null, "peer_ms": null}]}
            """);
        (int code, _, string error) = Run(folder, "chart r.json r.png --groups size --bars layer:ms peer:peer_ms");

        Assert.Equal((0, ""), (code, error));
        Assert.Equal([0x89, (byte)'P', (byte)'N', (byte)'G'], File.ReadAllBytes(folder.File("r.png"))[..4]);
    }

    [Fact]
    public void A_shape_that_does_not_fit_is_left_out_with_a_note()
    {
        using var folder = new TemporaryFolder();
        (int code, string output, string error) = Run(folder, $"kernels --skip-large --shapes 1000,1000000,1000,100 {Quick}");
        Assert.Equal((0, ""), (code, error));
        Assert.Contains("1000,1000000,1000,100 left out: it needs about", output, StringComparison.Ordinal);
    }

    [Fact]
    public void What_cannot_be_measured_is_said_and_fails_the_program()
    {
        using var folder = new TemporaryFolder();
        (int code, string output, string error) = Run(folder, $"kernels --shapes 1000,1000000,1000,100 1,8,1,4 {Quick}");
        Assert.Equal(1, code);
        Assert.StartsWith("1000,1000000,1000,100 not measured: ", error, StringComparison.Ordinal);
        Assert.Contains("1,8,1,4 Chunk: ", output, StringComparison.Ordinal); // the others are
    }

    [Fact]
    public void The_convolution_and_the_norms_are_measured_against_a_copy()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("peers.json"), """
            {
              "causal_conv1d|B1_E24_T20": { "fwd_ms": 2, "fwdbwd_ms": 6 },
              "fla rmsnorm_gated|20x24": { "fwd_ms": 3, "fwdbwd_ms": 7 }
            }
            """);
        (int code, _, string error) =
            Run(folder, $"kernels rows --shape 20,24 --peers peers.json --json rows.json {Quick}");
        Assert.Equal((0, ""), (code, error));
        JsonArray rows = JsonNode.Parse(File.ReadAllText(folder.File("rows.json")))!["rows"]!.AsArray();
        Assert.Equal(["conv1d", "gated_norm", "norm_of_gated", "norm", "add_norm"],
            rows.Select(row => (string?)row!["operation"]));
        foreach (JsonNode? row in rows)
        {
            Assert.Equal("cpu-simd", (string?)row!["takes"]);
            double forward = (double)row["forward_ms"]!["median"]!;
            Assert.Equal((double)row["forward_floor_ms"]! / forward, (double)row["forward_of_floor"]!, 9);
        }
        Assert.Equal(2.5, (double)rows[0]!["forward_backward_floor_ms"]! / (double)rows[0]!["forward_floor_ms"]!, 9);
        Assert.Equal(["causal_conv1d", "fla rmsnorm_gated", null, null, null], rows.Select(row => (string?)row!["peer"]));
        Assert.Equal(6 / (double)rows[0]!["forward_backward_ms"]!["median"]!, (double)rows[0]!["forward_backward_ratio"]!, 9);
        Assert.Equal(3 / (double)rows[1]!["forward_ms"]!["median"]!, (double)rows[1]!["forward_ratio"]!, 9);
    }

    [Fact]
    public void The_state_space_duality_is_measured_beside_its_peer()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("peers.json"), """{ "mamba_ssm ssd N4|B1_T20_H2_D8": { "fwd_ms": 2, "fwdbwd_ms": 6 } }""");
        (int code, _, string error) =
            Run(folder, $"kernels ssd --shapes 1,20,2,8,4 1,20,2,8,5 --peers peers.json --json ssd.json {Quick}");
        Assert.Equal((0, ""), (code, error));
        JsonArray rows = JsonNode.Parse(File.ReadAllText(folder.File("ssd.json")))!["rows"]!.AsArray();
        Assert.Equal(2 / (double)rows[0]!["forward_ms"]!["median"]!, (double)rows[0]!["forward_ratio"]!, 9);
        Assert.Null(rows[1]!["forward_ratio"]); // of another state size
    }

    [Fact]
    public void Generation_is_measured_by_layer_and_batch()
    {
        using var folder = new TemporaryFolder();
        (int code, _, string error) = Run(folder, "decode --batches 1,3 --hidden 16 --layers 1 --heads 2 --vocabulary 11 "
            + $"--prompt 5 --out out {Quick}");
        Assert.Equal((0, ""), (code, error));
        Assert.Equal(["decode-fp32-tokens.png", "decode-fp32.json", "decode-fp32.md"],
            Directory.EnumerateFiles(folder.File("out")).Select(Path.GetFileName).Order(StringComparer.Ordinal));
        JsonArray rows =
            JsonNode.Parse(File.ReadAllText(Path.Combine(folder.File("out"), "decode-fp32.json")))!["rows"]!.AsArray();
        Assert.Equal(
            ["Gla 1", "Gla 3", "Mamba 1", "Mamba 3", "Mamba2 1", "Mamba2 3", "Softmax 1", "Softmax 3", "Hybrid 1", "Hybrid 3"],
            rows.Select(row => $"{row!["layer"]} {row["batch"]}"));
        Assert.All(rows, row => Assert.Equal(
            1000 * (double)row!["batch"]! / (double)row["step_ms"]!["median"]!, (double)row["tokens_per_second"]!, 6));
    }

    [Fact]
    public void The_selective_scan_is_measured_beside_its_peer()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("peers.json"),
            """{ "mamba_ssm scan|B1_E24_T20_N4": { "fwd_ms": 2, "fwdbwd_ms": 6 } }""");
        (int code, _, string error) = Run(folder,
            $"kernels scan --shapes 1,24,20,4 2,8,3,1 --peers peers.json --json scan.json {Quick}");
        Assert.Equal((0, ""), (code, error));
        JsonArray rows = JsonNode.Parse(File.ReadAllText(folder.File("scan.json")))!["rows"]!.AsArray();
        Assert.Equal(["1,24,20,4", "2,8,3,1"], rows.Select(row => (string?)row!["shape"]));
        Assert.All(rows, row => Assert.Equal("cpu-simd", (string?)row!["takes"]));
        Assert.All(rows, row => Assert.Null(row!["way"])); // there is one
        Assert.Equal(6 / (double)rows[0]!["forward_backward_ms"]!["median"]!, (double)rows[0]!["forward_backward_ratio"]!, 9);
        Assert.Equal(11.0 / 4, (double)rows[0]!["forward_backward_floor_ms"]! / (double)rows[0]!["forward_floor_ms"]!, 9);
        Assert.Null(rows[1]!["forward_ratio"]);
    }

    [Fact]
    public void Attention_is_measured_on_each_backend_of_the_device()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("peers.json"), """{ "sdpa_flash|B1_T20_H2_D4": { "fwd_ms": 2, "fwdbwd_ms": 6 } }""");
        (int code, _, string error) = Run(folder,
            $"kernels attention --shapes 1,20,2,4 --peers peers.json --json attention.json {Quick}");
        Assert.Equal((0, ""), (code, error));
        JsonNode row =
            Assert.Single(JsonNode.Parse(File.ReadAllText(folder.File("attention.json")))!["rows"]!.AsArray())!;
        Assert.Equal(("Torch", "torch", "sdpa_flash"), ((string?)row["way"], (string?)row["takes"], (string?)row["peer"]));
        double forward = (double)row["forward_ms"]!["median"]!;
        Assert.Equal(2 / forward, (double)row["forward_ratio"]!, 9);
        Assert.Equal(2 * 20 * 20 * 2 * 4 / forward / 1e9, (double)row["forward_tflops"]!, 9);
        Assert.Equal(3, (double)row["forward_backward_floor_ms"]! / (double)row["forward_floor_ms"]!, 9);
    }

    [Fact]
    public void Layers_are_measured_in_every_mode()
    {
        using var folder = new TemporaryFolder();
        (int code, _, string error) = Run(folder, $"layers --sizes 2,16,40 --json layers.json {Quick}");
        Assert.Equal((0, ""), (code, error));
        JsonArray rows = JsonNode.Parse(File.ReadAllText(folder.File("layers.json")))!["rows"]!.AsArray();
        Assert.Equal(
            ["GatedLinearAttention Auto", "GatedLinearAttention Chunk", "GatedLinearAttention FusedChunk",
                "GatedLinearAttention FusedRecurrent", "Mamba", "Mamba2", "SoftmaxAttention"],
            rows.Select(row => (string?)row!["layer"]));
        Assert.Equal(["cpu-simd", "cpu-simd", "torch"], rows.Skip(4).Select(row => (string?)row!["takes"]));
        Assert.All(rows, row => Assert.Null(row!["published_rtx3090_ms"])); // of the issue's sizes alone
    }

    [Fact]
    public void Layers_are_compared_with_their_peers_and_attention_alone_with_attention_alone()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("peers.json"), """
            {
              "seed sdpa|H1_C8_T1024": {"fwd_ms": 1000, "first_s": 0.1},
              "seed gla layer|H1_C8_T1024": {"fwd_ms": 2000, "first_s": 60},
              "seed mamba layer|H2_C8_T1024": {"fwd_ms": 3000, "first_s": 2}
            }
            """);
        (int code, _, string error) = Run(folder, $"layers --sizes 1,8,1024 --peers peers.json --json layers.json {Quick}");
        Assert.Equal((0, ""), (code, error));
        JsonArray rows = JsonNode.Parse(File.ReadAllText(folder.File("layers.json")))!["rows"]!.AsArray();
        Assert.Equal(["gla layer", "gla layer", "gla layer", "gla layer", null, null, null, "sdpa"],
            rows.Select(row => (string?)row!["peer"]));
        Assert.Equal("attention alone", (string?)rows[^1]!["layer"]);
        Assert.Equal(1000 / (double)rows[^1]!["forward_ms"]!["median"]!, (double)rows[^1]!["forward_ratio"]!, 6);
        Assert.Equal(2000 / (double)rows[0]!["forward_ms"]!["median"]!, (double)rows[0]!["forward_ratio"]!, 6);
    }

    [Fact]
    public void Advice_names_a_layer()
    {
        using var folder = new TemporaryFolder();
        (int code, string output, string error) = Run(folder, $"advise --hidden 16 --heads 2 --seq 20 --batch 2 {Quick}");
        Assert.Equal((0, ""), (code, error));
        Assert.Matches(
            @"\nTake \w+( \w+)?: forward and backward take \S+ ms for width 16, 2 heads, 2 x 20 tokens, .*\.\n$", output);
    }

    [Fact]
    public void The_overhead_of_a_call_is_measured()
    {
        using var folder = new TemporaryFolder();
        (int code, string output, string error) = Run(folder, "overhead --shapes 1,1,1,1 --bursts 20 --device cpu --dtype fp32");
        Assert.Equal((0, ""), (code, error));
        Assert.Contains("Gla Auto, recording for backward", output, StringComparison.Ordinal);
    }

    [Fact]
    public void The_first_call_is_timed_in_processes_of_its_own()
    {
        using var folder = new TemporaryFolder();
        (int code, _, string error) = Run(folder,
            "first-call --shapes 1,16,1,4 --repeats 1 --random 6 --json first.json --device cpu --dtype fp32");
        Assert.Equal((0, ""), (code, error));
        JsonNode json = JsonNode.Parse(File.ReadAllText(folder.File("first.json")))!;
        Assert.Equal(["empty", "filled"], json["rows"]!.AsArray().Select(row => (string?)row!["cache"]));
        foreach (JsonNode? row in json["rows"]!.AsArray())
        {
            double ready = (double)row!["start_s"]!["median"]!;
            double both = (double)row["forward_backward_s"]!["median"]!;
            Assert.InRange(ready, 0.05, both);
            Assert.Equal(both - ready, (double)row["forward_backward_after_start_s"]!["median"]!, 6);
        }

        Assert.Equal(6, (int)json["values"]!["random_calls 1,16,1,4"]!["count"]!);
        Assert.Equal(0, (int)json["values"]!["random_calls 1,16,1,4"]!["compiled"]!);
    }

    [GpuFact]
    public void The_peak_memory_holds_at_least_the_results()
    {
        using var folder = new TemporaryFolder();
        (int code, _, string error) = Run(folder, "memory --shapes 4,2048,16,128 --json memory.json");
        Assert.Equal((0, ""), (code, error));
        JsonArray rows = JsonNode.Parse(File.ReadAllText(folder.File("memory.json")))!["rows"]!.AsArray();
        Assert.Equal(4, rows.Count);
        Assert.All(rows, row => Assert.True((double)row!["forward_backward_mib"]! >= (double)row["results_mib"]! - 20));
    }

    [Fact]
    public void Cuda_is_refused_where_there_is_none()
    {
        Assert.SkipWhen(cuda.is_available(), "This machine has a GPU.");
        using var folder = new TemporaryFolder();
        (int code, _, string error) = Run(folder, "kernels --device cuda");
        Assert.Equal(1, code);
        Assert.StartsWith("--device cuda:0: TorchSharp sees 0 CUDA devices here.", error, StringComparison.Ordinal);
    }

    private static (int code, string output, string error) Run(TemporaryFolder folder, string arguments)
    {
        (TextWriter standardOut, TextWriter standardError) = (Console.Out, Console.Error);
        string current = Directory.GetCurrentDirectory();
        using var output = new StringWriter { NewLine = "\n" };
        using var error = new StringWriter { NewLine = "\n" };
        try
        {
            Console.SetOut(output);
            Console.SetError(error);
            Directory.SetCurrentDirectory(folder.Path);
            int code = CommandLine.Run(arguments.Split(' ', StringSplitOptions.RemoveEmptyEntries));
            return (code, output.ToString(), error.ToString());
        }
        finally
        {
            Directory.SetCurrentDirectory(current);
            Console.SetOut(standardOut);
            Console.SetError(standardError);
        }
    }
}
