using System.Diagnostics;
using DropIn;
using FlaSharp;
using FlaSharp.Layers;
using TorchSharp;
using static TorchSharp.torch;

const int Width = 64;
const int Heads = 4;
int steps = args.Length > 0 ? int.Parse(args[0], System.Globalization.CultureInfo.InvariantCulture) : 200;

// The one line that changes from model to model: what the transformer uses to look back.
var mixers = new (string name, Func<nn.Module<Tensor, Tensor>> create)[]
{
    ("TorchSharp attention", () => new TorchAttention(Width, Heads)),
    ("SoftmaxAttention", () => new SoftmaxAttention(Width, Heads)),
    ("GatedLinearAttention", () => new GatedLinearAttention(Width, Heads, useShortConv: true)),
    ("Mamba", () => new Mamba(Width)),
    ("Mamba2", () => new Mamba2(Width, headDim: 32, stateSize: 32)),
};

Device device = cuda.is_available() ? CUDA : CPU;
Console.WriteLine($"Associative recall of {RecallTask.Pairs} pairs, {steps} steps on {device}");
Console.WriteLine($"{"mixer",-22}{"parameters",12}{"first loss",12}{"last loss",12}{"seconds",10}");
foreach ((string name, Func<nn.Module<Tensor, Tensor>> create) in mixers)
{
    manual_seed(1);
    var random = new Random(1);
    using var model = new TinyTransformer(RecallTask.Vocabulary, RecallTask.Length, Width, blocks: 2, create);
    model.to(device);
    using var optimizer = optim.AdamW(model.parameters(), lr: 3e-3);
    long start = Stopwatch.GetTimestamp();
    var losses = new List<float>();
    for (int step = 0; step < steps; step++)
    {
        using DisposeScope scope = NewDisposeScope();
        (Tensor ids, Tensor targets) = RecallTask.Batch(32, random);
        Tensor logits = model.forward(ids.to(device));
        Tensor loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), ignore_index: -100);
        optimizer.zero_grad();
        loss.Backward();
        optimizer.step();
        losses.Add(loss.ToSingle());
    }

    Console.WriteLine(FormattableString.Invariant(
        $"{name,-22}{model.parameters().Sum(parameter => parameter.numel()),12:N0}{losses[0],12:F3}{losses[^1],12:F3}")
        + FormattableString.Invariant($"{Stopwatch.GetElapsedTime(start).TotalSeconds,10:F1}"));
}
