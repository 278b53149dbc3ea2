#:project ../../FlaSharp/FlaSharp.csproj
#:package ScottPlot
#:package SkiaSharp.NativeAssets.Linux.NoDependencies
#:property UsesTorch=true
#:property PublishAot=false

// # A language model in five minutes
//
// A model of gated linear attention learns the squares of numbers, byte by byte: first the text, then the model, a training loop,
// the loss curve, and what the model writes. The same walk-through is a notebook, `language-model.ipynb`, and a program,
// `dotnet run language-model.cs`.

using System.Text;
using FlaSharp;
using FlaSharp.Models;
using TorchSharp;

// ## The text
//
// The bytes of UTF-8 are the tokens, so there are 256 of them. A batch is a few pieces of the text, cut out at random.

byte[] text = Encoding.UTF8.GetBytes(string.Concat(Enumerable.Range(0, 1000).Select(n => $"The square of {n} is {n * n}.\n")));
var random = new Random(1);

torch.Tensor Batch(int rows, int length)
{
    var ids = new long[rows * length];
    for (int row = 0; row < rows; row++)
    {
        int offset = random.Next(text.Length - length);
        for (int i = 0; i < length; i++)
            ids[row * length + i] = text[offset + i];
    }

    return torch.tensor(ids, [rows, length]);
}

Console.WriteLine(Encoding.UTF8.GetString(text, 0, 64));

// ## The model
//
// Two blocks of gated linear attention and a gated MLP. `MambaConfig`, `Mamba2Config` and `TransformerConfig` make the other
// models.

torch.manual_seed(1);
var model = new CausalLM(new GlaConfig { VocabSize = 256, HiddenSize = 64, NumHiddenLayers = 2, NumHeads = 4 });
Console.WriteLine($"{model.ParameterCount:N0} parameters");

// ## Training
//
// `Loss` is the cross-entropy of the next token; it shifts the labels itself. The dispose scope frees a step's tensors, and
// `Backward` is FlaSharp's, which reports a failure of an operation as an exception.

var optimizer = torch.optim.AdamW(model.parameters(), lr: 3e-3);
var losses = new List<double>();
for (int step = 0; step < 300; step++)
{
    using var scope = torch.NewDisposeScope();
    var ids = Batch(rows: 8, length: 64);
    var loss = model.Loss(ids, ids);
    optimizer.zero_grad();
    loss.Backward();
    optimizer.step();
    losses.Add(loss.ToDouble());
}

Console.WriteLine($"loss: {losses[0]:F2} nats per byte at first, {losses[^1]:F2} at last");

// ## The loss curve

var plot = new ScottPlot.Plot();
plot.Add.Signal(losses);
plot.XLabel("step");
plot.YLabel("nats per byte");
Directory.CreateDirectory("runs/squares");
plot.SavePng("runs/squares/loss.png", 640, 360);

// ## What it writes
//
// Generation reads the prompt once and then goes on token by token, from a state whose size does not grow.

model.eval();
byte[] start = Encoding.UTF8.GetBytes("The square of 7");
var prompt = torch.tensor(start.Select(b => (long)b).ToArray(), [1, start.Length]);
Console.Write(Encoding.UTF8.GetString(start));
foreach (long[] tokens in model.GenerateTokens(prompt, new GenerationOptions { MaxNewTokens = 60, EosTokenIds = [] }))
    Console.Write((char)tokens[0]);
Console.WriteLine();

// ## Keeping it
//
// `config.json` and `model.safetensors`, in the form of Hugging Face and flash-linear-attention.

model.SavePretrained("runs/squares/model");
var copy = CausalLM.FromPretrained("runs/squares/model");
var files = Directory.GetFiles("runs/squares/model").Select(Path.GetFileName).Order();
Console.WriteLine($"{copy.Config.ModelType}: {string.Join(", ", files)}");
