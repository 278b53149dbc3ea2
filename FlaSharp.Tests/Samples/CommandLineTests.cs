using FlaSharp.Tests.TestSupport;
using LanguageModel.Commands;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Samples;

public sealed class CommandLineTests
{
    private const string Small = "--width 16 --layers 1 --heads 2 --seq 16 --batch 2";

    [Theory]
    [InlineData("--layer rnn", "--layer rnn: choose gla, mamba, mamba2, softmax, hybrid.")]
    [InlineData("--steps -3", "--steps -3: use a whole number of at least 1.")]
    [InlineData("--batch 0", "--batch 0: use a whole number of at least 1.")]
    [InlineData("--lr nan", "--lr nan: use a number of at least 1E-09.")]
    [InlineData("--width 2.5", "--width 2.5: use a whole number of at least 1.")]
    [InlineData("--tokenizer words", "--tokenizer words: choose bytes, cl100k.")]
    [InlineData("--dtype fp8", "--dtype fp8: choose fp32, bf16, fp16.")]
    [InlineData("--mode fast", "--mode fast: choose auto, chunk, fusedchunk, fusedrecurrent.")]
    [InlineData("--layer mamba --mode chunk", "--mode is for --layer gla and hybrid, not mamba.")]
    [InlineData("--device tpu", "--device tpu: use cpu, cuda or cuda:N.")]
    [InlineData("--data nowhere.txt", "--data nowhere.txt: no such file or folder.")]
    [InlineData("--data text.txt --seq 65536", "too few for --seq 65536")]
    [InlineData("--data text.txt --width 30 --heads 4", "NumHeads")]
    [InlineData("--data empty.txt", "--data empty.txt: there is no text in it.")]
    [InlineData("--data text.txt --out text.txt/run", "cannot be written to")]
    [InlineData("--resume nowhere", "--resume nowhere: there is no checkpoint in it.")]
    [InlineData("generate --checkpoint nowhere --prompt x", "there is no checkpoint of this program in it.")]
    [InlineData("eval --checkpoint nowhere --data nowhere.txt", "no such file or folder")]
    [InlineData("--colour red", "--colour")]
    public void A_mistake_gives_one_line_and_exit_code_1_and_leaves_nothing(string arguments, string expected)
    {
        using var folder = new TemporaryFolder();
        Write(folder);
        (int code, _, string error) = Run(folder, arguments);

        Assert.Equal(1, code);
        Assert.Contains(expected, error, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.TrimEnd());
        Assert.Equal(["empty.txt", "text.txt"], Names(folder.Path));
    }

    [Fact]
    public void Cuda_is_refused_where_there_is_none()
    {
        Assert.SkipWhen(cuda.is_available(), "This machine has a GPU.");
        using var folder = new TemporaryFolder();
        (int code, _, string error) = Run(folder, "--device cuda");
        Assert.Equal(1, code);
        Assert.StartsWith("--device cuda:0: TorchSharp sees 0 CUDA devices here.", error, StringComparison.Ordinal);
    }

    [Fact]
    public void Trains_resumes_generates_and_evaluates()
    {
        using var folder = new TemporaryFolder();
        Write(folder);

        (int code, string output, string error) = Run(folder, $"--data text.txt --out run --steps 4 {Small}");
        Assert.Equal((0, ""), (code, error));
        Assert.Matches(@"\nfinal val_loss=\d+\.\d{4} tokens_per_second=\d+ checkpoint=.*checkpoint-000004\n$", output);
        Assert.Equal(["checkpoint-000004", "loss.png", "metrics.jsonl"], Names(Path.Combine(folder.Path, "run")));

        (code, _, error) = Run(folder, $"--data text.txt --out run --steps 4 {Small}");
        Assert.Equal(1, code);
        Assert.Contains("holds a run already", error, StringComparison.Ordinal);

        (code, _, error) = Run(folder, "--resume run --layer mamba");
        Assert.Equal(1, code);
        Assert.Contains("--resume: the run has --layer Gla, not Mamba.", error, StringComparison.Ordinal);

        (code, output, _) = Run(folder, "--resume run");
        Assert.Equal(0, code);
        Assert.Contains("continued after step 4", output, StringComparison.Ordinal);

        (code, output, _) = Run(folder, "generate --checkpoint run --prompt abc --tokens 5 --temperature 0");
        Assert.Equal(0, code);
        Assert.StartsWith("abc", output, StringComparison.Ordinal);

        (code, output, _) = Run(folder, "eval --checkpoint run --data text.txt");
        Assert.Equal(0, code);
        Assert.Matches(@"^loss=(\d+\.\d{4}) nats_per_byte=\1 perplexity=\d+\.\d{3} tokens=\d+\n$", output);
    }

    [Fact]
    public void A_damaged_checkpoint_gives_one_line()
    {
        using var folder = new TemporaryFolder();
        Write(folder);
        Assert.Equal(0, Run(folder, $"--data text.txt --out run --steps 2 {Small}").code);
        File.WriteAllText(Path.Combine(folder.Path, "run", "checkpoint-000002", "model.safetensors"), "damaged");
        (int code, _, string error) = Run(folder, "generate --checkpoint run --prompt abc");
        Assert.Equal(1, code);
        Assert.Contains("model.safetensors", error, StringComparison.Ordinal);
    }

    [Fact]
    public void The_doctor_reports()
    {
        using var folder = new TemporaryFolder();
        (int code, string output, string error) = Run(folder, "doctor --device cpu");
        Assert.Equal((0, ""), (code, error));
        Assert.Contains("operations on cpu", output, StringComparison.Ordinal);
    }

    private static void Write(TemporaryFolder folder)
    {
        File.WriteAllText(Path.Combine(folder.Path, "empty.txt"), "");
        File.WriteAllText(Path.Combine(folder.Path, "text.txt"), string.Concat(Enumerable.Repeat("All work and no play. ", 500)));
    }

    private static IEnumerable<string?> Names(string folder) =>
        Directory.EnumerateFileSystemEntries(folder).Select(Path.GetFileName).Order();

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
            int code = CommandLine.Run(arguments.Split(' '), CancellationToken.None);
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
